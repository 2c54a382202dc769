"""Which model is ahead of which on one basis, and the sentences about it; jaxseq.compare.verdicts states the rules."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxseq.compare.intervals import EXACT, SEED_SPREAD, Estimate, Scores, Seeds, estimate, holm
from jaxseq.compare.words import REFERENCE, bits, decimal, listing, places, plural, sentence

NOT_TOLD_APART = "not told apart"
MARKOV_ORDER = 2
ALL_PAIRS = 4  # with more architectures, only pairs with the reference or the best one get a sentence
MANY = 3  # a headline gives the number of names instead of the names if there are more than this


class Standing(NamedTuple):
    """A model at one moment of its training; numbers are means over its seeds."""

    bits_per_byte: float
    scores: Seeds
    tokens: float | None
    seconds: float | None


class Pair(NamedTuple):
    a: str
    b: str
    difference: Estimate  # a - b, bits per byte
    adjusted: float | None  # the p-value after Holm's correction for all pairs
    reason: str  # why neither is ahead; empty if one is

    @property
    def winner(self) -> str | None:
        return None if self.reason else self.a if self.difference.value < 0 else self.b

    @property
    def loser(self) -> str | None:
        return None if self.reason else self.b if self.difference.value < 0 else self.a


class Judgement:
    """All pairs of models on one basis, and the sentences about them. `called`: name -> the name to use in a sentence."""

    def __init__(self, standings: Mapping[str, Standing], markov: Scores, called: Mapping[str, str], when: str):
        self.standings, self.called, self.when = standings, called, when
        own = {name: standing.scores for name, standing in standings.items()}
        self.own = {name: estimate(scores) for name, scores in own.items()}
        self.markov = {name: estimate(scores, dict.fromkeys(scores, markov)) for name, scores in own.items()}
        self.adjusted_markov = corrected(self.markov)
        self.order = sorted(standings, key=lambda name: standings[name].bits_per_byte)
        found = {(a, b): estimate(own[a], own[b]) for a, b in itertools.combinations(standings, 2)}
        adjusted = corrected(found)
        self.comparisons = sum(p is not None for p in adjusted.values())
        self.pairs = {(a, b): self.judge(a, b, found[a, b], adjusted[a, b]) for a, b in found}

    def better_than_markov(self, name: str) -> bool | None:
        """None if there are too few documents to tell."""
        found = self.markov[name]
        if found is None or found.p is None:
            return None
        return found.value < 0 and found.told(self.adjusted_markov[name])

    def judge(self, a: str, b: str, found: Estimate | None, adjusted: float | None) -> Pair:
        return Pair(a, b, found or self.without_documents(a, b), adjusted, self.reason(a, b, found, adjusted))

    def without_documents(self, a: str, b: str) -> Estimate:
        value = self.standings[a].bits_per_byte - self.standings[b].bits_per_byte
        return Estimate(value, None, None, None, 0, 0)

    def reason(self, a: str, b: str, found: Estimate | None, adjusted: float | None) -> str:
        """Why neither is ahead; empty if one is."""
        if found is None:
            return "no scores of the same documents and seeds at this point, so no interval"
        if found.p is None:
            return "one document, so no interval"
        if not found.told():
            spans = found.low <= EXACT and found.high >= -EXACT
            return "the interval spans 0" if spans else f"one seed, and seeds alone differ by up to {SEED_SPREAD}"
        if not found.told(adjusted):
            return f"not clear enough for one of {self.comparisons} comparisons"
        worse = [self.called[name] for name in (a, b) if self.better_than_markov(name) is False]
        unknown = [name for name in (a, b) if self.better_than_markov(name) is None]
        if worse:
            verb = "is" if len(worse) == 1 else "are"
            return f"{listing(worse)} {verb} no better than an order-{MARKOV_ORDER} Markov model"
        return f"there is no order-{MARKOV_ORDER} Markov model to compare them with" if unknown else ""

    def pair(self, a: str, b: str) -> Pair:
        return self.pairs[a, b] if (a, b) in self.pairs else self.pairs[b, a]

    def numbers(self, pair: Pair, ahead: bool) -> str:
        """ "0.12 bits per byte (95 % interval 0.10 to 0.14, 12 documents, 3 seeds)"; the winner's lead is positive."""
        found = pair.difference
        sign = -1 if ahead and found.value < 0 else 1
        shown = [sign * x for x in (found.value, found.low, found.high) if x is not None]
        digits = places(*(x for x in shown if abs(x) > EXACT))
        value, *interval = (decimal(x, digits) for x in [shown[0], *sorted(shown[1:])])
        among = f"{plural(found.documents, 'document')}, {plural(found.seeds, 'seed')}"
        inside = f"95 % interval {interval[0]} to {interval[1]}, {among}" if interval else pair.reason
        return f"{value} bits per byte ({inside})"

    def sentence(self, pair: Pair) -> str:
        a, b = self.called[pair.a], self.called[pair.b]
        if pair.winner:
            winner, loser = self.called[pair.winner], self.called[pair.loser]
            return sentence(f"{self.when}, {winner} is ahead of {loser} by {self.numbers(pair, True)}")
        reason = f": {pair.reason}" if pair.difference.low is not None and "spans" not in pair.reason else ""
        return sentence(f"{self.when}, {a} and {b} are {NOT_TOLD_APART}{reason}; {a} minus {b} is {self.numbers(pair, False)}")

    def sentences(self) -> list[str]:
        """One sentence per pair. With many architectures: only pairs with the reference or the best one, with one sentence for
        all that are too close."""
        if len(self.standings) < 2:
            return [sentence(f"{self.when}, there are no two architectures to compare")]
        if len(self.standings) <= ALL_PAIRS:
            return [self.sentence(pair) for pair in self.pairs.values()]
        best = self.order[0]
        anchors = [best, REFERENCE] if REFERENCE in self.standings and best != REFERENCE else [best]
        told, out = set(), [self.headline()]
        for anchor in reversed(anchors):
            pairs = [self.pair(anchor, name) for name in self.order if name != anchor]
            pairs = [pair for pair in pairs if (pair.a, pair.b) not in told]
            told |= {(pair.a, pair.b) for pair in pairs}
            out += [self.sentence(pair) for pair in pairs if pair.winner]
            close = [self.called[pair.b if pair.a == anchor else pair.a] for pair in pairs if not pair.winner]
            if close:
                out.append(sentence(f"{self.when}, {listing(close)} against {self.called[anchor]}: {NOT_TOLD_APART}"))
        return out

    def headline(self) -> str | None:
        """The best model, and whether it is significantly ahead of the others."""
        if len(self.order) < 2:
            return None
        best, *rest = self.order
        who, value = self.called[best], bits(self.standings[best].bits_per_byte)
        close = [name for name in rest if self.pair(best, name).winner != best]
        if not close:
            others = self.called[rest[0]] if len(rest) == 1 else "both others" if len(rest) == 2 else f"all {len(rest)} others"
            return sentence(f"{who} is ahead of {others}, at {value} bits per byte")
        if all(self.better_than_markov(name) is False for name in self.order):
            return sentence(f"{NOT_TOLD_APART}: no model is better than an order-{MARKOV_ORDER} Markov model")
        if len(close) == len(rest):
            return sentence(f"{NOT_TOLD_APART}: {who} is the lowest at {value} bits per byte, but ahead of none")
        behind = [name for name in rest if name not in close]
        ahead = plural(len(behind), "other") if len(behind) > MANY else listing([self.called[name] for name in behind])
        near = f"{len(close)} more" if len(close) > MANY else listing([self.called[name] for name in close])
        return sentence(f"{who} is the lowest at {value} bits per byte and ahead of {ahead}; against {near}, {NOT_TOLD_APART}")

    def against_markov(self) -> list[str]:
        """Which models are better than the Markov model."""
        groups: dict[bool | None, list[str]] = {True: [], False: [], None: []}
        for name in self.order:
            groups[self.better_than_markov(name)].append(self.called[name])
        model = f"an order-{MARKOV_ORDER} Markov model of the training text"
        rest = f"no better than {model}, and so {NOT_TOLD_APART}"
        out = [(groups[True], f"better than {model}"), (groups[False], rest), (groups[None], f"not compared with {model}")]
        return [sentence(f"{listing(who)} {'is' if len(who) == 1 else 'are'} {what}") for who, what in out if who]

    def pairs_json(self, basis: str) -> list[dict[str, Any]]:
        out = []
        for (a, b), pair in self.pairs.items():
            words = f"{self.called[pair.winner]} is ahead of {self.called[pair.loser]}" if pair.winner else NOT_TOLD_APART
            found = pair.difference
            out.append({
                "a": a, "b": b, "basis": basis, "difference": found.value, "low": found.low, "high": found.high, "p": found.p,
                "p_adjusted": pair.adjusted, "documents": found.documents, "seeds": found.seeds,
                "words": sentence(words)[:-1] if pair.winner else words, "reason": pair.reason,
            })  # fmt: skip
        return out

    def ranking(self) -> list[dict[str, Any]]:
        out = []
        for name in self.order:
            standing, own = self.standings[name], self.own[name]
            mine = [self.pair(name, other) for other in self.order if other != name]
            out.append({
                "architecture": name, "bits_per_byte": standing.bits_per_byte,
                "low": own.low if own else None, "high": own.high if own else None, "seeds": len(standing.scores),
                "tokens": standing.tokens, "seconds": standing.seconds,
                "better_than_markov": self.better_than_markov(name),
                "ahead_of": [pair.loser for pair in mine if pair.winner == name],
                "behind": [pair.winner for pair in mine if pair.loser == name],
            })  # fmt: skip
        return out


def corrected(found: Mapping[Any, Estimate | None]) -> dict[Any, float | None]:
    """Holm's adjusted p-values of a family of estimates."""
    return dict(zip(found, holm([None if one is None else one.p for one in found.values()]), strict=True))
