"""The parts of a comparison, in order. A part knows what it computes, for which architectures, and whether it is done."""

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from jaxseq.compare import costs, entries, measure
from jaxseq.compare.presets import Preset
from jaxseq.compare.runs import evaluated, run_of

if TYPE_CHECKING:
    from jaxseq.compare.engine import Comparison

STEPS = 3  # timings of a training step: few, because a step is long and its time steady


class Part(NamedTuple):
    """`run(names)` computes the part for architectures for whose entry `lacks` is true."""

    title: str
    weight: float  # relative time for one architecture
    names: tuple[str, ...]
    lacks: Callable[[dict], bool]
    run: Callable[[list[str]], None]
    where: str = ""  # prefix of the reason when it fails


class Measurement(NamedTuple):
    """A series of points at the lengths in the preset's field named `sizes`."""

    metric: costs.Metric
    title: str
    weight: float
    sizes: str
    figures: Callable[[measure.Models, int, Preset, measure.OnProgress], measure.Figures]


def _train_speed(models, length, preset, on_progress):
    return measure.train_speed(models, length, preset.speed_tokens, STEPS, on_progress)


def _train_memory(models, length, preset, on_progress):
    return measure.train_memory(models, length, on_progress)


def _decode(models, context, preset, on_progress):
    return measure.decode(models, context, preset.decode_steps, preset.rounds, on_progress)


def _decode_energy(models, context, preset, on_progress):
    return measure.decode_energy(models, context, preset.decode_steps, on_progress)


def _prefill(models, length, preset, on_progress):
    return measure.prefill(models, length, preset.rounds, on_progress)


MEASUREMENTS = (
    Measurement(costs.TRAIN_SPEED, "training speed at length", 5, "speed_lengths", _train_speed),
    Measurement(costs.TRAIN_MEMORY, "training memory at length", 3, "memory_lengths", _train_memory),
    Measurement(costs.DECODE, "decoding at context", 1, "decode_contexts", _decode),
    Measurement(costs.ENERGY, "energy of decoding at context", 1, "energy_contexts", _decode_energy),
    Measurement(costs.PREFILL, "prefill of length", 2, "prefill_lengths", _prefill),
)


def untrained(entry: dict, seed: int) -> bool:
    return "train_seconds" not in run_of(entry, seed)


def unevaluated(entry: dict, seed: int, step: int) -> bool:
    return step not in evaluated(run_of(entry, seed))


def unsampled(entry: dict) -> bool:
    return "samples" not in entry


def unweighed(entry: dict) -> bool:
    return "disk_bytes" not in entry


def unmeasured(entry: dict, metric: costs.Metric, size: int) -> bool:
    return size not in [point[metric.x] for point in entry.get(metric.part, ())]


def parts(comparison: "Comparison") -> Iterator[Part]:
    """All parts in order. Weights are roughly the seconds on two cores."""
    every, preset, bind = tuple(comparison.configs), comparison.preset, functools.partial
    training = 10 + 4e-5 * preset.tokens * (preset.parameters / 1e5) ** 0.5
    for name in every:
        for seed in comparison.seeds:
            where = "" if seed == comparison.seed else f"seed {seed}: "
            what, own = f"{name}: {where}", {"seed": seed}
            lacks, run = bind(untrained, **own), bind(comparison.train, **own)
            yield Part(f"{what}training", training, (name,), lacks, run, where)
            for step in entries.evaluation_steps(preset):
                lacks, run = bind(unevaluated, step=step, **own), bind(comparison.evaluate, step=step, **own)
                yield Part(f"{what}evaluation at step {step}", 2, (name,), lacks, run, where)
        yield Part(f"{name}: samples", 3, (name,), unsampled, comparison.sample)
        yield size_part(name, comparison)
    for measurement in MEASUREMENTS:
        yield from of_measurement(measurement, every, comparison)


def size_part(name: str, comparison: "Comparison") -> Part:
    return Part(f"{name}: size", 1, (name,), unweighed, comparison.weigh)


def of_measurement(measurement: Measurement, names: tuple[str, ...], comparison: "Comparison") -> Iterator[Part]:
    """The parts that measure one series of these architectures, one for each size of the preset."""
    for size in getattr(comparison.preset, measurement.sizes):
        lacks = functools.partial(unmeasured, metric=measurement.metric, size=size)
        run = functools.partial(comparison.add_points, measurement=measurement, size=size)
        yield Part(f"{measurement.title} {size}", measurement.weight, names, lacks, run)
