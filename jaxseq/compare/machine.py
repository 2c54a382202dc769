"""The machine that a comparison runs on."""

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax
import psutil

PACKAGES = ("jaxseq", "jax", "jaxlib", "flax", "optax", "numpy")


def describe() -> dict[str, Any]:
    """The machine as plain data. Takes a moment, because it times a large matrix product."""
    from jaxseq.train.flops import matmul_peak

    device = jax.local_devices()[0]
    return {
        "platform": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "cpu": processor(),
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "matmul_flops_per_second": matmul_peak("float32"),
    }


class OtherPrograms:
    """The share of all processors that other programs have used since this object was made. A high share distorts timings."""

    def __init__(self):
        self.before = self._seconds()

    def share(self) -> float:
        """0: no other program ran; 1: other programs used every processor."""
        wall, busy, own = (now - before for now, before in zip(self._seconds(), self.before, strict=True))
        return min(1.0, max(0.0, busy - own) / max(wall * (psutil.cpu_count() or 1), 1e-9))

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        waiting = times.idle + getattr(times, "iowait", 0.0)
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # also contained in user and nice
        return time.monotonic(), sum(times) - waiting - guests, sum(os.times()[:4])


def processor() -> str:
    """The processor's name, from the operating system."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
