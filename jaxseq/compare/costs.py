"""Verdicts on speed, memory and decoding: ratios at the longest length measured for both, and crossovers.

A crossover is the first measured length from which one architecture stays below the other. Only the state size is
interpolated between measurements, because it is computed exactly and is piecewise linear. Measured times count as
different if their ratio is at least NOISE.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxseq.bench.timing import crossover
from jaxseq.compare.words import REFERENCE, count, duration, finite, sentence, significant, size, times

NOISE = 1.05
Series = dict[int, float]  # length or context -> measurement


class Metric(NamedTuple):
    """One measurement over lengths: entry[part] = [{x: …, y: …}]."""

    part: str
    x: str
    y: str


STATE = Metric("state_bytes", "context", "bytes")
DECODE = Metric("decode", "context", "seconds_per_token")
ENERGY = Metric("decode_energy", "context", "joules_per_token")
PREFILL = Metric("prefill", "length", "seconds")
TRAIN_SPEED = Metric("train_speed", "length", "tokens_per_second")
TRAIN_MEMORY = Metric("train_memory", "length", "bytes")


def series(entry: Mapping[str, Any], metric: Metric) -> Series:
    """The positive finite measurements in order of length."""
    points = [(finite(point.get(metric.x)), finite(point.get(metric.y))) for point in entry.get(metric.part) or ()]
    return {int(x): y for x, y in sorted((x, y) for x, y in points if x is not None and y is not None) if x > 0 and y > 0}


def possessive(who: str) -> str:
    return who + ("'" if who.endswith("s") else "'s")


class Wording(NamedTuple):
    """Sentence templates for two architectures at the longest length x measured for both.

    {larger}, {smaller}: the architectures with the larger and the smaller value
    {first}, {second}: the reference and the other architecture
    {high}, {low}, {ratio}: the two values and high / low
    {since}: the length from which they are in this order
    {state}: a clause on their state sizes
    """

    metric: Metric
    value: Callable[[float], str]
    differ: str
    alike: str  # used if high / low < `noise`
    later: str = ""  # appended to `differ` if the order is different at shorter lengths
    noise: float = NOISE
    headline: str = ""
    headline_alike: str = ""
    crossing: float = NOISE  # the ratio from which one counts as below the other


DECODING = Wording(
    DECODE,
    duration,
    "decoding one token at context {x} takes {larger} {ratio} times as long as {smaller} ({high} against {low}){state}",
    "decoding one token at context {x} takes {first} and {second} about as long ({high} against {low}){state}",
    "; {smaller} is the faster from context {since} on",
    headline="{larger} takes {ratio} times as long as {smaller} for a token at context {x}",
    headline_alike="{larger} and {smaller} take about as long a token at context {x} ({low})",
)
READING = Wording(
    PREFILL,
    duration,
    "reading a prompt of {x} tokens takes {larger} {ratio} times as long as {smaller} ({high} against {low})",
    "reading a prompt of {x} tokens takes {first} and {second} about as long ({high} against {low})",
)
TRAINING = Wording(
    TRAIN_SPEED,
    significant,
    "at length {x}, {larger} trains {ratio} times as fast as {smaller} ({high} against {low} tokens a second)",
    "at length {x}, {first} and {second} train about as fast ({high} against {low} tokens a second)",
    ", and it is the faster from length {since} on",
)
MEMORY = Wording(
    TRAIN_MEMORY,
    size,
    "a training step on one row of {x} tokens needs {ratio} times as much memory with {larger} as with {smaller} "
    "({high} against {low})",
    "a training step on one row of {x} tokens needs about the same memory with {first} and {second} ({high})",
    "; {smaller} needs less from length {since} on",
    noise=1.01,
    headline="{larger} needs {ratio} times the memory of {smaller} to train on {x} tokens",
    headline_alike="{larger} needs {ratio} times the memory of {smaller} to train on {x} tokens",
    crossing=1.0,
)


def verdicts(architectures: Mapping[str, Any], called: Mapping[str, str]) -> dict[str, Any]:
    """{"speed", "memory", "decoding": sentences, "headlines": {"decoding", "memory": sentence | None}}."""
    speed = run_speed(architectures, called) + sentences(architectures, called, TRAINING)
    memory = sentences(architectures, called, MEMORY)
    crossing = against(architectures, STATE, lambda a, b: state_crossover(architectures, called, a, b))
    decoding = sentences(architectures, called, DECODING) + crossing + sentences(architectures, called, READING)
    headlines = {"decoding": headline(architectures, called, DECODING), "memory": headline(architectures, called, MEMORY)}
    return {"speed": speed, "memory": memory, "decoding": decoding, "headlines": headlines}


def sentences(architectures: Mapping[str, Any], called: Mapping[str, str], wording: Wording) -> list[str]:
    """One sentence for each architecture that can be compared with the reference."""
    return against(architectures, wording.metric, lambda a, b: compared(architectures, called, wording, a, b))


def reference(architectures: Mapping[str, Any], metric: Metric) -> str | None:
    """The architecture that the others are compared with: REFERENCE if it was measured, else the first one measured."""
    measured = [name for name in architectures if series(architectures[name], metric)]
    return REFERENCE if REFERENCE in measured else next(iter(measured), None)


def against(architectures: Mapping[str, Any], metric: Metric, say: Callable[[str, str], str | None]) -> list[str]:
    """`say(anchor, other)` for each other architecture that was measured."""
    anchor = reference(architectures, metric)
    others = [name for name in architectures if name != anchor and series(architectures[name], metric)]
    return [text for name in others if (text := say(anchor, name))]


def at_longest(architectures: Mapping[str, Any], metric: Metric, a: str, b: str) -> tuple[int, float, float] | None:
    """(length, a's value, b's value) at the longest length measured for both."""
    left, right = (series(architectures[name], metric) for name in (a, b))
    shared = left.keys() & right.keys()
    return (max(shared), left[max(shared)], right[max(shared)]) if shared else None


def exact_crossover(below: Series, above: Series) -> int | None:
    """As `crossover`, for piecewise linear series: interpolates to the first integer length."""
    first = crossover(below, above)
    shared = sorted(below.keys() & above.keys())
    if first is None or first == shared[0]:
        return first
    left = shared[shared.index(first) - 1]
    gap_left, gap_first = above[left] - below[left], above[first] - below[first]
    return min(first, left + math.floor((first - left) * -gap_left / (gap_first - gap_left)) + 1)


def ordered(a: str, b: str, value_a: float, value_b: float) -> tuple[str, str, float, float]:
    """Both names and values, the larger value first."""
    return (a, b, value_a, value_b) if value_a >= value_b else (b, a, value_b, value_a)


def compared(architectures: Mapping[str, Any], called: Mapping[str, str], wording: Wording, a: str, b: str) -> str | None:
    """The sentence on a and b; None if no length was measured for both."""
    found = at_longest(architectures, wording.metric, a, b)
    if found is None:
        return None
    larger, smaller, high, low = ordered(a, b, *found[1:])
    differ = high >= wording.noise * low
    values = said(called, wording, larger, smaller, found[0], high, low) | {"first": called[a], "second": called[b], "state": ""}
    states = [state_at(architectures[name], found[0]) for name in (larger, smaller)]
    if "{state}" in wording.differ and all(states):
        values["state"] = "; " + state_clause(larger, smaller, *states, called, differ)
    text = (wording.differ if differ else wording.alike).format(**values)
    below, above = (series(architectures[name], wording.metric) for name in (smaller, larger))
    since = crossover(below, above, wording.crossing)
    if differ and wording.later and since is not None and since > min(below.keys() & above.keys()):
        text += wording.later.format(since=count(since), **values)
    return sentence(text)


def said(
    called: Mapping[str, str], wording: Wording, larger: str, smaller: str, x: int, high: float, low: float
) -> dict[str, str]:
    """The values to fill a template with."""
    numbers = {"x": count(x), "high": wording.value(high), "low": wording.value(low), "ratio": times(high / low)}
    return numbers | {"larger": called[larger], "smaller": called[smaller]}


def state_at(entry: Mapping[str, Any], context: int) -> float | None:
    """State bytes at a context, from the state series or from the decoding run."""
    return series(entry, STATE).get(context) or series(entry, Metric("decode", "context", "state_bytes")).get(context)


def state_clause(slow: str, fast: str, of_slow: float, of_fast: float, called: Mapping[str, str], pronoun: bool) -> str:
    if of_slow == of_fast:
        return f"their states are the same size ({size(of_slow)})"
    large, _, high, low = ordered(slow, fast, of_slow, of_fast)
    whose = "its" if pronoun and large == slow else possessive(called[large])
    return f"{whose} state is {times(high / low)} times as large ({size(high)} against {size(low)})"


def state_crossover(architectures: Mapping[str, Any], called: Mapping[str, str], a: str, b: str) -> str | None:
    """ "B's state is smaller than A's from context 96 on." """
    found = at_longest(architectures, STATE, a, b)
    if found is None or found[1] == found[2]:
        return None
    large, small, *_ = ordered(a, b, *found[1:])
    first = exact_crossover(series(architectures[small], STATE), series(architectures[large], STATE))
    shared = series(architectures[a], STATE).keys() & series(architectures[b], STATE).keys()
    where = (
        f"from context {count(first)} on" if first > min(shared) else f"at every context counted, from {count(min(shared))} on"
    )
    return sentence(f"{possessive(called[small])} state is smaller than {possessive(called[large])} {where}")


def run_speed(architectures: Mapping[str, Any], called: Mapping[str, str]) -> list[str]:
    """Training speed of the runs themselves, without compilation."""
    rates = {name: finite(entry.get("tokens_per_second")) for name, entry in architectures.items()}
    rates = {name: rate for name, rate in rates.items() if rate and rate > 0}
    if len(rates) < 2:
        return []
    slow, fast = min(rates, key=rates.__getitem__), max(rates, key=rates.__getitem__)
    numbers = f"{significant(rates[fast])} tokens a second against {significant(rates[slow])}"
    if rates[fast] < NOISE * rates[slow]:
        return [sentence(f"in this run all trained about as fast ({numbers})")]
    who = (
        f"{called[fast]} trained the fastest and {called[slow]} the slowest"
        if len(rates) > 2
        else f"{called[fast]} trained faster than {called[slow]}"
    )
    return [sentence(f"in this run {who}: {numbers}, {times(rates[fast] / rates[slow])} times as fast")]


def headline(architectures: Mapping[str, Any], called: Mapping[str, str], wording: Wording) -> str | None:
    """The reference against the architecture that needs least, at the longest length measured for both."""
    metric = wording.metric
    anchor = reference(architectures, metric)
    others = [name for name in architectures if name != anchor and series(architectures[name], metric)]
    found = {name: values for name in others if (values := at_longest(architectures, metric, anchor, name))}
    if not found:
        return None
    longest = max(values[0] for values in found.values())
    best = min((name for name in found if found[name][0] == longest), key=lambda name: found[name][2])
    larger, smaller, high, low = ordered(anchor, best, *found[best][1:])
    template = wording.headline if high >= NOISE * low else wording.headline_alike
    return sentence(template.format(**said(called, wording, larger, smaller, longest, high, low)))
