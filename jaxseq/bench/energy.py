"""Energy of a call, from the counters of the machine: RAPL for processors (Linux), NVML for NVIDIA GPUs.

RAPL counts whole processor packages, NVML whole GPUs: idle power and other programs are included. Recent kernels let only root
read RAPL, and virtual machines have no counters; then nothing is measured.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

POWERCAP = Path("/sys/class/powercap")
MISSING = "not measured: this machine has no energy counter that can be read"
SHORTEST = 2.0  # seconds of a measurement: counters advance every millisecond (RAPL) to every tenth of a second (NVML)


class EnergyCounter(NamedTuple):
    """`read()` gives joules; after `span` joules the counter starts again at 0 (0: never)."""

    name: str
    read: Callable[[], float]
    span: float = 0.0


def counters(root: Path = POWERCAP) -> list[EnergyCounter]:
    """The counters of this machine that can be read: processor packages, and the GPU that JAX computes on."""
    return [*packages(root), *gpus()]


def packages(root: Path = POWERCAP) -> Iterator[EnergyCounter]:
    """The processor packages that RAPL counts; their parts, such as cores, are contained in them."""
    for zone in sorted(root.glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text(encoding="ascii").strip()
            span = int((zone / "max_energy_range_uj").read_text(encoding="ascii")) * 1e-6
            read = lambda path=zone / "energy_uj": int(path.read_text(encoding="ascii")) * 1e-6  # noqa: E731
            read()
        except (OSError, ValueError):  # not readable by this user
            continue
        if name.startswith("package"):
            yield EnergyCounter(f"RAPL {name}", read, span)


def gpus() -> Iterator[EnergyCounter]:
    """The GPU that JAX computes on, if it is NVIDIA's and nvidia-ml-py is installed."""
    if jax.default_backend() != "gpu" or importlib.util.find_spec("pynvml") is None:
        return
    import pynvml

    try:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(jax.local_devices()[0].local_hardware_id or 0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except pynvml.NVMLError:  # older than Volta, or no right to read it
        return
    yield EnergyCounter("NVML", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) * 1e-3)


def joules(call: Callable[[], Any], found: list[EnergyCounter], shortest: float = SHORTEST) -> float:
    """Joules per call, from calls that together take at least `shortest` seconds."""
    before, began, calls = [counter.read() for counter in found], time.monotonic(), 0
    while calls == 0 or time.monotonic() - began < shortest:
        call()
        calls += 1
    spent = (spent_since(counter, start) for counter, start in zip(found, before, strict=True))
    return sum(spent) / calls


def spent_since(counter: EnergyCounter, start: float) -> float:
    """Joules since the counter showed `start`. It must not have started again more than once."""
    spent = counter.read() - start
    return spent + counter.span if spent < 0 else spent
