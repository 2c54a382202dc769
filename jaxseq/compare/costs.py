"""What the figures say about speed, memory and decoding: ratios at the longest length that both reached, crossovers.

A crossover is the first measured length from which one stays below the other; between measurements only the size of
the state is interpolated, since it is counted and grows in straight lines. Measured times must differ by NOISE to count.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
PREFILL = Metric("prefill", "length", "seconds")
TRAIN_SPEED = Metric("train_speed", "length", "tokens_per_second")
TRAIN_MEMORY = Metric("train_memory", "length", "bytes")


def series(entry: Mapping[str, Any], metric: Metric) -> Series:
    """The positive finite measurements in order of length."""
    points = [(finite(point.get(metric.x)), finite(point.get(metric.y))) for point in entry.get(metric.part) or ()]
    return {int(x): y for x, y in sorted((x, y) for x, y in points if x is not None and y is not None) if x > 0 and y > 0}


def possessive(who: str) -> str:
    return who + ("'" if who.endswith("s") else "'s")


def verdicts(architectures: Mapping[str, Any], called: Mapping[str, str]) -> dict[str, Any]:
    """{"speed", "memory", "decoding": sentences, "headlines": {"decoding", "memory": sentence | None}}."""
    decoding = against(architectures, DECODE, lambda a, b: decode_sentence(architectures, called, a, b))
    speed = run_speed(architectures, called) + against(
        architectures, TRAIN_SPEED, lambda a, b: train_speed_sentence(architectures, called, a, b)
    )
    memory = against(architectures, TRAIN_MEMORY, lambda a, b: memory_sentence(architectures, called, a, b))
    crossing = against(architectures, STATE, lambda a, b: state_crossover(architectures, called, a, b))
    prefill = against(architectures, PREFILL, lambda a, b: prefill_sentence(architectures, called, a, b))
    headlines = {
        "decoding": extreme(architectures, called, DECODE, decode_headline),
        "memory": extreme(architectures, called, TRAIN_MEMORY, memory_headline),
    }
    return {"speed": speed, "memory": memory, "decoding": decoding + crossing + prefill, "headlines": headlines}


def reference(architectures: Mapping[str, Any], metric: Metric) -> str | None:
    """Whom the others are held against: the reference if it was measured, or the first that was."""
    measured = [name for name in architectures if series(architectures[name], metric)]
    return REFERENCE if REFERENCE in measured else next(iter(measured), None)


def against(architectures: Mapping[str, Any], metric: Metric, say: Callable[[str, str], str | None]) -> list[str]:
    """What `say(anchor, other)` says of each other architecture that was measured."""
    anchor = reference(architectures, metric)
    others = [name for name in architectures if name != anchor and series(architectures[name], metric)]
    return [text for name in others if (text := say(anchor, name))]


def at_longest(architectures: Mapping[str, Any], metric: Metric, a: str, b: str) -> tuple[int, float, float] | None:
    """(length, a's, b's) at the longest length that both reached."""
    left, right = (series(architectures[name], metric) for name in (a, b))
    shared = left.keys() & right.keys()
    return (max(shared), left[max(shared)], right[max(shared)]) if shared else None


def crossover(below: Series, above: Series, margin: float = 1.0) -> int | None:
    """The first shared length from which `below` · margin < `above` at every length; None: not at the longest."""
    first = None
    for x in sorted(below.keys() & above.keys(), reverse=True):
        if not below[x] * margin < above[x]:
            break
        first = x
    return first


def exact_crossover(below: Series, above: Series) -> int | None:
    """The same for series that are straight between measurements: the first whole length, interpolated."""
    first = crossover(below, above)
    shared = sorted(below.keys() & above.keys())
    if first is None or first == shared[0]:
        return first
    left = shared[shared.index(first) - 1]
    gap_left, gap_first = above[left] - below[left], above[first] - below[first]
    return min(first, left + math.floor((first - left) * -gap_left / (gap_first - gap_left)) + 1)


def ordered(a: str, b: str, value_a: float, value_b: float) -> tuple[str, str, float, float]:
    """The larger one first."""
    return (a, b, value_a, value_b) if value_a >= value_b else (b, a, value_b, value_a)


def decode_sentence(architectures: Mapping[str, Any], called: Mapping[str, str], a: str, b: str) -> str | None:
    """ "Decoding one token at context C takes A 9.3 times as long as B; its state is 512 times as large." """
    found = at_longest(architectures, DECODE, a, b)
    if found is None:
        return None
    slow, fast, high, low = ordered(a, b, *found[1:])
    token = f"decoding one token at context {count(found[0])}"
    numbers = f"({duration(high)} against {duration(low)})"
    text = f"{token} takes {called[slow]} {times(high / low)} times as long as {called[fast]} {numbers}"
    if high < NOISE * low:
        text = f"{token} takes {called[a]} and {called[b]} about as long {numbers}"
    states = [state_at(architectures[name], found[0]) for name in (slow, fast)]
    if all(states):
        text += "; " + state_clause(slow, fast, *states, called, high >= NOISE * low)
    first = crossover(series(architectures[fast], DECODE), series(architectures[slow], DECODE), NOISE)
    shared = series(architectures[a], DECODE).keys() & series(architectures[b], DECODE).keys()
    if first is not None and first > min(shared):
        text += f"; {called[fast]} is the faster from context {count(first)} on"
    return sentence(text)


def state_at(entry: Mapping[str, Any], context: int) -> float | None:
    """Bytes of the state at a context, counted there or in the decoding run."""
    return series(entry, STATE).get(context) or series(entry, Metric("decode", "context", "state_bytes")).get(context)


def state_clause(slow: str, fast: str, of_slow: float, of_fast: float, called: Mapping[str, str], pronoun: bool) -> str:
    if of_slow == of_fast:
        return f"their states are of one size ({size(of_slow)})"
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


def prefill_sentence(architectures: Mapping[str, Any], called: Mapping[str, str], a: str, b: str) -> str | None:
    found = at_longest(architectures, PREFILL, a, b)
    if found is None:
        return None
    slow, fast, high, low = ordered(a, b, *found[1:])
    numbers = f"({duration(high)} against {duration(low)})"
    prompt = f"reading a prompt of {count(found[0])} tokens takes"
    if high < NOISE * low:
        return sentence(f"{prompt} {called[a]} and {called[b]} about as long {numbers}")
    return sentence(f"{prompt} {called[slow]} {times(high / low)} times as long as {called[fast]} {numbers}")


def run_speed(architectures: Mapping[str, Any], called: Mapping[str, str]) -> list[str]:
    """How fast the runs themselves were, compilation left out."""
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


def train_speed_sentence(architectures: Mapping[str, Any], called: Mapping[str, str], a: str, b: str) -> str | None:
    found = at_longest(architectures, TRAIN_SPEED, a, b)
    if found is None:
        return None
    fast, slow, high, low = ordered(a, b, *found[1:])
    numbers = f"({significant(high)} against {significant(low)} tokens a second)"
    if high < NOISE * low:
        return sentence(f"at length {count(found[0])}, {called[a]} and {called[b]} train about as fast {numbers}")
    text = f"at length {count(found[0])}, {called[fast]} trains {times(high / low)} times as fast as {called[slow]} {numbers}"
    rates = series(architectures[fast], TRAIN_SPEED), series(architectures[slow], TRAIN_SPEED)
    first = crossover(rates[1], rates[0], NOISE)
    if first is not None and first > min(rates[0].keys() & rates[1].keys()):
        text += f", and it is the faster from length {count(first)} on"
    return sentence(text)


def memory_sentence(architectures: Mapping[str, Any], called: Mapping[str, str], a: str, b: str) -> str | None:
    found = at_longest(architectures, TRAIN_MEMORY, a, b)
    if found is None:
        return None
    large, small, high, low = ordered(a, b, *found[1:])
    step = f"a training step on one row of {count(found[0])} tokens"
    if high < 1.01 * low:
        return sentence(f"{step} needs about the same memory with {called[a]} and {called[b]} ({size(high)})")
    text = f"{step} needs {times(high / low)} times as much memory with {called[large]} as with {called[small]}"
    text += f" ({size(high)} against {size(low)})"
    needs = series(architectures[small], TRAIN_MEMORY), series(architectures[large], TRAIN_MEMORY)
    first = crossover(*needs)
    if first is not None and first > min(needs[0].keys() & needs[1].keys()):
        text += f"; {called[small]} needs less from length {count(first)} on"
    return sentence(text)


def extreme(
    architectures: Mapping[str, Any],
    called: Mapping[str, str],
    metric: Metric,
    say: Callable[[Mapping[str, str], str, str, int, float, float], str],
) -> str | None:
    """The reference against the one that needs least at the longest length that both reached."""
    anchor = reference(architectures, metric)
    found = {
        name: at_longest(architectures, metric, anchor, name)
        for name in architectures
        if name != anchor and series(architectures[name], metric)
    }
    found = {name: values for name, values in found.items() if values}
    if not found:
        return None
    longest = max(values[0] for values in found.values())
    best = min((name for name in found if found[name][0] == longest), key=lambda name: found[name][2])
    return sentence(
        say(called, *ordered(anchor, best, *found[best][1:])[:2], longest, max(found[best][1:]), min(found[best][1:]))
    )


def decode_headline(called: Mapping[str, str], slow: str, fast: str, context: int, high: float, low: float) -> str:
    if high < NOISE * low:
        return f"{called[slow]} and {called[fast]} take about as long a token at context {count(context)} ({duration(low)})"
    return f"{called[slow]} takes {times(high / low)} times as long as {called[fast]} for a token at context {count(context)}"


def memory_headline(called: Mapping[str, str], large: str, small: str, length: int, high: float, low: float) -> str:
    return f"{called[large]} needs {times(high / low)} times the memory of {called[small]} to train on {count(length)} tokens"
