"""What the figures of a comparison say, in words that are computed and never set by hand.

Quality is judged twice. At equal tokens: the final validations. At equal time: when the first architecture had finished
training, the others as they stood then, their evaluations before and after that moment interpolated linearly. A model
is ahead of another if the 95 % interval of their difference (jaxseq.compare.bootstrap) leaves out 0 and both are better
than an order-2 Markov model of the training text, each by an interval of its own. In every other case the words are
TOO_SHORT. The costs (speed, memory, decoding) are in jaxseq.compare.costs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxseq.compare import costs
from jaxseq.compare.bootstrap import scores
from jaxseq.compare.judgement import MARKOV_ORDER, Judgement, Standing
from jaxseq.compare.words import count, duration, finite, labels, sentence, subject

WHOLE = 0.99  # of the most tokens that any architecture trained on, to count as "equal tokens"


def verdicts(results: Mapping[str, Any]) -> dict[str, Any]:
    """The verdicts of a results.json (only its measurements are read).

    Returns (JSON-able):
      equal_tokens, equal_time, markov, speed, memory, decoding, missing: sentences
      headlines: {"tokens", "time", "decoding", "memory"}: one sentence each, or None
      pairs: [{"a", "b", "basis": "tokens" | "time", "difference": bits per byte a - b, "low", "high" (None: no interval),
        "documents", "words": "X is ahead of Y" or TOO_SHORT, "reason"}]
      ranking: {"tokens": [...], "time": [...]}, best first: {"architecture", "bits_per_byte", "low", "high" (of itself),
        "tokens", "seconds", "better_than_markov": bool | None, "ahead_of": [names], "behind": [names]}
      time: the moment of equal time in seconds, or None; when: {"tokens", "time"}: how the sentences of each basis begin
    """
    architectures = results.get("architectures") or {}
    called = {name: subject(text) for name, text in labels(architectures).items()}
    markov = scores(next((m.get("documents") for m in results.get("markov") or () if m.get("order") == MARKOV_ORDER), None))
    final, stopped = at_equal_tokens(architectures)
    moment, first, then, absent = at_equal_time(architectures, final)
    tokens = max((standing.tokens or 0 for standing in final.values()), default=0)
    when_tokens = "At equal tokens" + (f" ({count(tokens)})" if tokens else "")
    when_time = f"At equal time ({duration(moment)} of training, when {called[first]} was done)" if first else "At equal time"
    by_tokens = Judgement(final, markov, called, when_tokens)
    by_time = Judgement(then, markov, called, when_time)
    out = {
        "equal_tokens": by_tokens.sentences() + [stop_sentence(called[name], *stopped[name]) for name in stopped],
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


def missing(architectures: Mapping[str, Any], called: Mapping[str, str]) -> list[str]:
    """What was not run to its end, and why."""
    out = []
    for name, entry in architectures.items():
        status = str(entry.get("status") or "partial")
        if status != "done":
            out.append(sentence(f"{called[name]} was only partly run" if status == "partial" else f"{called[name]} {status}"))
    return out


def last_tokens(entry: Mapping[str, Any]) -> float | None:
    """Tokens that the architecture was trained on."""
    points = [finite(point.get("tokens")) for key in ("curve", "evaluations") for point in entry.get(key) or ()]
    return max((tokens for tokens in points if tokens is not None), default=None)


def at_equal_tokens(architectures: Mapping[str, Any]) -> tuple[dict[str, Standing], dict[str, tuple[float, float]]]:
    """Final validations; and those that stopped early: name -> (tokens, tokens of the others)."""
    final = {}
    for name, entry in architectures.items():
        validation = entry.get("validation") or {}
        value = finite(validation.get("bits_per_byte"))
        if value is not None:
            found = scores(validation.get("documents"))
            final[name] = Standing(value, found, last_tokens(entry), finite(entry.get("train_seconds")))
    most = max((standing.tokens or 0 for standing in final.values()), default=0)
    early = [name for name, standing in final.items() if standing.tokens is not None and standing.tokens < WHOLE * most]
    stopped = {name: (final.pop(name).tokens, most) for name in early}
    return final, stopped


def stop_sentence(who: str, tokens: float, most: float) -> str:
    return sentence(f"{who} stopped at {count(tokens)} of {count(most)} tokens and is left out")


def at_equal_time(
    architectures: Mapping[str, Any], final: Mapping[str, Standing]
) -> tuple[float | None, str | None, dict[str, Standing], list[str]]:
    """(the moment in seconds, who had finished, who stood where, who has no evaluation there)."""
    done = {name: standing.seconds for name, standing in final.items() if standing.seconds is not None}
    if not done:
        return None, None, {}, []
    first = min(done, key=done.__getitem__)
    moment = done[first]
    then, absent = {}, []
    for name, entry in architectures.items():
        standing = interpolate(evaluations(entry, final.get(name)), moment, name in final)
        if standing is not None:
            then[name] = standing
        elif name in final:
            absent.append(name)
    return moment, first, then, absent


def evaluations(entry: Mapping[str, Any], final: Standing | None) -> list[Standing]:
    """The validations along the run in order of time, the final one last."""
    points = []
    for point in entry.get("evaluations") or ():
        value, seconds = finite(point.get("bits_per_byte")), finite(point.get("seconds"))
        if value is not None and seconds is not None:
            points.append(Standing(value, scores(point.get("documents")), finite(point.get("tokens")), seconds))
    points.sort(key=lambda point: point.seconds)
    if final is not None and final.seconds is not None:
        points = [p for p in points if p.seconds < final.seconds and (p.tokens is None or p.tokens != final.tokens)]
        points.append(final)
    return points


def interpolate(points: Sequence[Standing], moment: float, finished: bool) -> Standing | None:
    """The model at `moment`, linearly between the evaluations before and after it.

    Documents are interpolated too where both evaluations scored them; otherwise those of the earlier one are taken,
    and the bits per byte with them: a difference and its interval are of the same documents at the same moment.
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
    return Standing((1 - weight) * left.bits_per_byte + weight * right.bits_per_byte, between, tokens, moment)
