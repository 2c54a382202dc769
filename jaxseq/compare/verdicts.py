"""Turns the figures of a comparison into sentences by fixed rules; no sentence is written by hand.

Quality is judged on two bases. Equal tokens: the final validations. Equal time: the moment when the first architecture
finished training; the others are interpolated linearly between their evaluations before and after it.
A model is ahead of another if the 95 % interval of their difference over documents and seeds (jaxseq.compare.intervals)
excludes 0, also after Holm's correction for all pairs. Both must also be better than an order-2 Markov model of the training
text, by the same test. With one seed, the difference must also exceed SEED_SPREAD. In every other case the verdict is
NOT_TOLD_APART.

Speed, memory and decoding are in jaxseq.compare.costs.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxseq.compare import costs
from jaxseq.compare.intervals import SEED_SPREAD, Scores, scores
from jaxseq.compare.judgement import MARKOV_ORDER, NOT_TOLD_APART, Judgement, Standing
from jaxseq.compare.runs import count_seeds, runs
from jaxseq.compare.words import count, duration, finite, labels, listing, sentence, subject

UNRANKED = "nothing is ranked by bits per byte: the tokenizer loses text ({}), which makes them too low"
BUSY = 0.1  # share of the processors used by other programs from which the report warns about its times
WHOLE = 0.99  # share of the largest number of training tokens that still counts as "equal tokens"


def verdicts(results: Mapping[str, Any]) -> dict[str, Any]:
    """The verdicts of a results.json (only its measurements are read).

    Returns (JSON-able):
      seeds: a sentence on the number of seeds per architecture and, with one seed, on what that means
      busy: a warning if other programs disturbed the times, else ""
      equal_tokens, equal_time, markov, speed, memory, decoding, missing: sentences
      headlines: {"tokens", "time", "decoding", "memory"}: one sentence each, or None
      pairs: [{"a", "b", "basis": "tokens" | "time", "difference": bits per byte a - b, "low", "high" (None: no interval),
        "p", "p_adjusted" (two-sided; after Holm), "documents", "seeds", "words": "X is ahead of Y" or NOT_TOLD_APART, "reason"}]
      ranking: {"tokens": [...], "time": [...]}, best first: {"architecture", "bits_per_byte", "low", "high" (its own interval),
        "seeds", "tokens", "seconds", "better_than_markov": bool | None, "ahead_of": [names], "behind": [names]}
      time: the moment of equal time in seconds, or None; when: {"tokens", "time"}: the beginning of each basis' sentences
    """
    architectures = results.get("architectures") or {}
    called = {name: subject(text) for name, text in labels(architectures).items()}
    markov = scores(next((m.get("documents") for m in results.get("markov") or () if m.get("order") == MARKOV_ORDER), None))
    trained = {name: runs(entry) for name, entry in architectures.items()}
    final, stopped = at_equal_tokens(trained)
    moment, first, then, absent = at_equal_time(trained, final)
    lossy = (results.get("data") or {}).get("lossy")
    unranked = [sentence(UNRANKED.format(lossy))] if lossy else []
    if unranked:
        final, then = {}, {}
    tokens = max((standing.tokens or 0 for standing in final.values()), default=0)
    when_tokens = "At equal tokens" + (f" ({count(tokens)})" if tokens else "")
    when_time = f"At equal time ({duration(moment)} of training, when {called[first]} finished)" if first else "At equal time"
    by_tokens = Judgement(final, markov, called, when_tokens)
    by_time = Judgement(then, markov, called, when_time)
    out = {
        "seeds": seeds_sentence(trained),
        "busy": busy_words(results),
        "equal_tokens": (unranked or by_tokens.sentences()) + [stop_sentence(called[name], *stopped[name]) for name in stopped],
        "equal_time": by_time.sentences() + [sentence(f"{called[name]} has no evaluation at that time") for name in absent],
        "markov": by_tokens.against_markov(),
        "pairs": by_tokens.pairs_json("tokens") + by_time.pairs_json("time"),
        "ranking": {"tokens": by_tokens.ranking(), "time": by_time.ranking()},
        "time": moment,
        "when": {"tokens": when_tokens, "time": when_time},
        "missing": missing(architectures, called),
    }
    found = costs.verdicts(architectures, called)
    found["headlines"] = {"tokens": by_tokens.headline(), "time": by_time.headline(), **found["headlines"]}
    return out | found


def busy_words(results: Mapping[str, Any]) -> str:
    """A warning about times measured while other programs ran; "" if they used less than BUSY."""
    shares = results.get("other_programs") or {}
    title, share = max(shares.items(), key=lambda item: item[1], default=("", 0.0))
    if share < BUSY:
        return ""
    return (
        f"The machine was busy: other programs took up to {100 * share:.0f} % of its processors ({title}). Times are those of "
        "a busy machine; bits per byte, sizes and memory are not affected."
    )


def missing(architectures: Mapping[str, Any], called: Mapping[str, str]) -> list[str]:
    """The architectures that were not run to the end, and why."""
    statuses = {name: str(entry.get("status") or "partial") for name, entry in architectures.items()}
    partial = [called[name] for name, status in statuses.items() if status == "partial"]
    out = [sentence(f"{called[name]} {status}") for name, status in statuses.items() if status not in ("done", "partial")]
    if len(partial) == len(architectures) > 1:
        return ["All architectures were only partly run: measurements that this page lacks were not made."]
    if partial:
        out.insert(0, sentence(f"{listing(partial)} {'was' if len(partial) == 1 else 'were'} only partly run"))
    return out


def seeds_sentence(trained: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """How often each architecture was trained; the first line of the report."""
    fewest, most = count_seeds(trained.values())
    if not most:
        return ""
    if most == 1:
        return (
            "One seed: each architecture was trained once. Intervals are over documents only and do not cover other seeds. "
            f"Seeds alone differ by up to {SEED_SPREAD} bits per byte, so smaller differences are {NOT_TOLD_APART}."
        )
    each = f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"
    few = " With fewer than three seeds intervals are very wide." if fewest < 3 else ""
    return f"{each} of each architecture: numbers are means over them, intervals are over documents and seeds.{few}"


def last_tokens(run: Mapping[str, Any]) -> float | None:
    """Number of tokens that the model was trained on."""
    points = [finite(point.get("tokens")) for key in ("curve", "evaluations") for point in run.get(key) or ()]
    return max((tokens for tokens in points if tokens is not None), default=None)


class Moment(NamedTuple):
    """The state of one run at one moment."""

    bits_per_byte: float
    scores: Scores
    tokens: float | None
    seconds: float | None


def mean(moments: Mapping[int, Moment]) -> Standing:
    """The mean over an architecture's runs at one moment, given by seed."""

    def average(values: Sequence[float | None]) -> float | None:
        return None if None in values else statistics.fmean(values)

    each = list(moments.values())
    return Standing(
        statistics.fmean(moment.bits_per_byte for moment in each),
        {seed: moment.scores for seed, moment in moments.items()},
        average([moment.tokens for moment in each]),
        average([moment.seconds for moment in each]),
    )


def last_moment(run: Mapping[str, Any]) -> Moment | None:
    """The state of a run at its end."""
    validation = run.get("validation") or {}
    value = finite(validation.get("bits_per_byte"))
    if value is None:
        return None
    return Moment(value, scores(validation.get("documents")), last_tokens(run), finite(run.get("train_seconds")))


def at_equal_tokens(
    trained: Mapping[str, Sequence[Mapping[str, Any]]],
) -> tuple[dict[str, Standing], dict[str, tuple[float, float]]]:
    """The final validations, and the architectures that stopped early: name -> (tokens, tokens of the others)."""
    final = {}
    for name, mine in trained.items():
        found = {run["seed"]: moment for run in mine if (moment := last_moment(run))}
        if found:
            final[name] = mean(found)
    most = max((standing.tokens or 0 for standing in final.values()), default=0)
    early = [name for name, standing in final.items() if standing.tokens is not None and standing.tokens < WHOLE * most]
    stopped = {name: (final.pop(name).tokens, most) for name in early}
    return final, stopped


def stop_sentence(who: str, tokens: float, most: float) -> str:
    return sentence(f"{who} stopped at {count(tokens)} of {count(most)} tokens and is left out")


def at_equal_time(
    trained: Mapping[str, Sequence[Mapping[str, Any]]], final: Mapping[str, Standing]
) -> tuple[float | None, str | None, dict[str, Standing], list[str]]:
    """(the moment in seconds, the architecture that finished then, all standings then, those without an evaluation then).

    All seeds of an architecture do the same work, so their times differ only by noise; each gets the mean time.
    """
    done = {name: standing.seconds for name, standing in final.items() if standing.seconds is not None}
    if not done:
        return None, None, {}, []
    first = min(done, key=done.__getitem__)
    moment = done[first]
    then, absent = {}, []
    for name, mine in trained.items():
        found = {run["seed"]: at for run in mine if (at := at_moment(run, moment, name in final, done.get(name)))}
        if found:
            then[name] = mean(found)
        elif name in final:
            absent.append(name)
    return moment, first, then, absent


def at_moment(run: Mapping[str, Any], moment: float, whole: bool, seconds: float | None) -> Moment | None:
    """The run at `moment`, with times scaled so that the run takes `seconds`. `whole`: it was trained on all tokens."""
    final = last_moment(run) if whole else None
    points = evaluations(run, final)
    if final is not None and final.seconds and seconds:
        points = [point._replace(seconds=point.seconds * (seconds / final.seconds)) for point in points[:-1]]
        points.append(final._replace(seconds=seconds))
    return interpolate(points, moment, final is not None)


def evaluations(run: Mapping[str, Any], final: Moment | None) -> list[Moment]:
    """The validations during the run in order of time, the final one last."""
    points = []
    for point in run.get("evaluations") or ():
        value, seconds = finite(point.get("bits_per_byte")), finite(point.get("seconds"))
        if value is not None and seconds is not None:
            points.append(Moment(value, scores(point.get("documents")), finite(point.get("tokens")), seconds))
    points.sort(key=lambda point: point.seconds)
    if final is not None and final.seconds is not None:
        points = [p for p in points if p.seconds < final.seconds and (p.tokens is None or p.tokens != final.tokens)]
        points.append(final)
    return points


def interpolate(points: Sequence[Moment], moment: float, finished: bool) -> Moment | None:
    """The model at `moment`, interpolated linearly between the evaluations before and after it.

    Document scores are interpolated over the documents that both evaluations scored. If they share none, the earlier
    evaluation is returned whole, so that a difference and its interval belong to the same documents and moment.
    """
    before = [point for point in points if point.seconds <= moment]
    after = [point for point in points if point.seconds > moment]
    if not before or not (after or finished or before[-1].seconds == moment):
        return None
    left = before[-1]
    if not after or left.seconds == moment:
        return left
    right = after[0]
    weight = (moment - left.seconds) / (right.seconds - left.seconds)
    tokens = None if left.tokens is None or right.tokens is None else left.tokens + weight * (right.tokens - left.tokens)
    if left.scores and not left.scores.keys() & right.scores.keys():
        return left
    shared = left.scores.keys() & right.scores.keys()
    between = {key: (1 - weight) * left.scores[key] + weight * right.scores[key] for key in shared}
    return Moment((1 - weight) * left.bits_per_byte + weight * right.bits_per_byte, between, tokens, moment)
