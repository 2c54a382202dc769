"""Energy counters: which are read, what they are divided by, and a counter that starts again."""

import sys
import types

import jax
import pytest

from jaxseq.bench import energy


def zone(root, name, kind, joules="5000000", span="9000000"):
    folder = root / name
    folder.mkdir()
    for file, text in (("name", kind), ("max_energy_range_uj", span), ("energy_uj", joules)):
        (folder / file).write_text(f"{text}\n")
    return folder


def test_packages_are_read_and_their_parts_are_not(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0")
    zone(tmp_path, "intel-rapl:0:0", "core")
    zone(tmp_path, "intel-rapl:1", "psys")
    (zone(tmp_path, "intel-rapl:2", "package-1") / "energy_uj").unlink()  # not readable
    zone(tmp_path, "intel-rapl:3", "package-2", joules="?")
    (found,) = energy.packages(tmp_path)
    assert (found.name, found.read(), found.span) == ("RAPL package-0", 5.0, 9.0)
    assert [counter.name for counter in energy.counters(tmp_path)] == ["RAPL package-0"]
    assert list(energy.packages(tmp_path / "none")) == []


def test_a_counter_that_starts_again(tmp_path):
    folder = zone(tmp_path, "intel-rapl:0", "package-0")
    (counter,) = energy.packages(tmp_path)
    start = counter.read()
    (folder / "energy_uj").write_text("7000000")
    assert energy.spent_since(counter, start) == pytest.approx(2.0)
    (folder / "energy_uj").write_text("1000000")
    assert energy.spent_since(counter, start) == pytest.approx(5.0)


def test_joules_per_call_of_all_counters_together():
    spent = [0.0]
    found = [energy.EnergyCounter("a", lambda: spent[0]), energy.EnergyCounter("b", lambda: 2 * spent[0])]

    def call():
        spent[0] += 1.5

    assert energy.joules(call, found, shortest=0.01) == pytest.approx(4.5)
    before = spent[0]
    energy.joules(call, found, shortest=0.0)
    assert spent[0] == before + 1.5, "one call at least"


@pytest.mark.parametrize("right", [True, False])
def test_an_nvidia_gpu(monkeypatch, right):
    class NVMLError(Exception):
        pass

    def consumption(gpu):
        if not right:
            raise NVMLError
        return 1000 * gpu

    fake = types.SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: None, nvmlDeviceGetHandleByIndex=lambda i: 7 + i,
        nvmlDeviceGetTotalEnergyConsumption=consumption, __spec__=object(),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert list(energy.gpus()) == []  # JAX computes on the CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [(counter.name, counter.read()) for counter in energy.gpus()] == ([("NVML", 7.0)] if right else [])
