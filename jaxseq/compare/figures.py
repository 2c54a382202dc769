"""The report's charts: axes, captions, legends and tables of the plotted numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxseq.compare import costs, plots
from jaxseq.compare.markup import Markup, folded, join, table, tag
from jaxseq.compare.runs import runs
from jaxseq.compare.words import (
    REFERENCE,
    decimal,
    duration,
    energy,
    finite,
    labels,
    sentence,
    short_count,
    short_length,
    significant,
    size,
    subject,
)

BINS = 60  # points of a training curve after averaging neighbours
START = 0.04  # share of the training whose high loss may be cut off at the top of the chart


class Spec(NamedTuple):
    """A chart of one measurement over lengths."""

    metric: costs.Metric
    title: str
    x: str
    y: plots.Axis
    say: Callable[[float], str]  # a value in the legend and in the table
    caption: str


RATE = plots.Axis("tokens per second", short_count, log=10)
MEMORY = plots.Axis("memory", size, log=2)
STATE = plots.Axis("size", size, log=2)
SECONDS = plots.Axis("time", duration, log=10)
JOULES = plots.Axis("energy", energy, log=10)
TRAINING = (
    Spec(costs.TRAIN_SPEED, "Training speed", "tokens in a row", RATE, significant, "Measured training steps. Higher is better."),
    Spec(
        costs.TRAIN_MEMORY,
        "Training memory",
        "tokens in a row",
        MEMORY,
        size,
        "Memory that the compiler plans for one training step on one row. Lower is better.",
    ),
)
DECODING = Spec(
    costs.DECODE,
    "Decoding time per token",
    "context in tokens",
    SECONDS,
    duration,
    "One token after a context of this length, one sequence. Lower is better.",
)
SIZE = Spec(
    costs.STATE, "Size of the state", "context in tokens", STATE, size, "Kept from one token to the next, for one sequence."
)
ENERGY = Spec(
    costs.ENERGY, "Energy per decoded token", "context in tokens", JOULES, energy,
    "Energy of the processor or GPU while it decodes one sequence, idle power included. Lower is better.",
)  # fmt: skip
READING = Spec(
    costs.PREFILL, "Reading a prompt", "tokens in the prompt", SECONDS, duration, "Measured, one sequence. Lower is better."
)
INFERENCE = (DECODING, SIZE, READING)
HIGHER_IS_BETTER = (costs.TRAIN_SPEED,)


class Figures:
    """Charts of one results.json and its verdicts `found`."""

    def __init__(self, results: Mapping[str, Any], found: Mapping[str, Any]):
        self.results, self.found = results, found
        self.architectures = results.get("architectures") or {}
        self.labels = labels(self.architectures)
        # The reference has the same style in every report; the others get the next styles in order.
        others = [name for name in self.architectures if name != REFERENCE]
        self.styles = {REFERENCE: plots.Style(0)} | {name: plots.Style(i + 1) for i, name in enumerate(others)}

    def quality(self) -> Markup:
        return join(filter(None, [self.differences(), self.validation(), self.loss("tokens"), self.loss("seconds")]))

    def training(self) -> Markup:
        return join(filter(None, [*map(self.lengths, TRAINING), *map(self.tradeoff, TRAINING)]))

    def inference(self) -> Markup:
        return join([*filter(None, map(self.lengths, INFERENCE)), self.tradeoffs()])

    def tradeoffs(self) -> Markup:
        """Final validation against each cost of keeping and running a model."""
        found = [self.against_bytes(), self.tradeoff(SIZE), self.tradeoff(DECODING), self.tradeoff(ENERGY)]
        return join(filter(None, found))

    def name(self, name: str) -> Markup:
        """The architecture's marker and label, which may break after a plus."""
        label = join(self.labels[name].split("+"), "+<wbr>")
        return tag("span", Markup(self.styles[name].glyph()), tag("span", label), class_="name")

    def line(self, name: str, x: Sequence[float], y: Sequence[float]) -> plots.Line:
        return plots.Line(self.labels[name], self.styles[name], x, y)

    def lengths(self, spec: Spec) -> Markup | None:
        """A measurement over lengths, with a table of its numbers."""
        series = {name: costs.series(entry, spec.metric) for name, entry in self.architectures.items()}
        series = {name: values for name, values in series.items() if values}
        if not series:
            return None
        lines = [self.line(name, list(values), list(values.values())) for name, values in series.items()]
        last = {name: (max(values), values[max(values)]) for name, values in series.items()}
        said = [f"{self.labels[n]} {spec.say(v)} at {short_length(x)}" for n, (x, v) in last.items()]
        svg = plots.chart(
            f"c-{spec.metric.part.replace('_', '-')}",
            lines,
            plots.Axis(spec.x, short_length, log=2),
            spec.y,
            sentence(f"{spec.title}: {', '.join(said)}"),
        )
        longest = max(x for x, _ in last.values())
        legend = [
            (name, spec.say(value) + ("" if x == longest else f" at {short_length(x)}"))
            for name, (x, value) in sorted(last.items(), key=lambda item: -item[1][1])
        ]
        lengths = sorted({x for values in series.values() for x in values})
        rows = [[self.labels[n], *(spec.say(v[x]) if x in v else "–" for x in lengths)] for n, v in series.items()]
        numbers = folded("Numbers", table(f"{spec.title} by {spec.x}", ["", *map(short_length, lengths)], rows))
        return self.figure(spec.title, spec.caption, svg, legend, f"at {short_length(longest)}", numbers)

    def loss(self, by: str) -> Markup | None:
        """Training loss in nats per token against tokens or seconds; neighbouring points are averaged."""
        curves = {}
        for name, entry in self.architectures.items():
            points = [(finite(p.get(by)), finite(p.get("loss"))) for p in entry.get("curve") or ()]
            points = [point for point in points if None not in point]
            if points:
                curves[name] = averaged(np.array(points, np.float64))
        if not curves:
            return None
        x = time_axis(max(c[-1, 0] for c in curves.values())) if by == "seconds" else plots.Axis("tokens", short_count)
        lines = [self.line(name, curve[:, 0].tolist(), curve[:, 1].tolist()) for name, curve in curves.items()]
        y = plots.Axis("training loss, nats per token", plain, top=ceiling(lines))
        last = sorted(((name, float(curve[-1, 1])) for name, curve in curves.items()), key=lambda item: -item[1])
        title = f"Training loss against {'time' if by == 'seconds' else 'tokens'}"
        said = ", ".join(f"{self.labels[name]} ends at {decimal(value, 2)}" for name, value in last)
        svg = plots.chart(f"c-loss-{by}", lines, x, y, sentence(f"{title}: {said}"))
        caption = "The first seed's run, neighbouring steps averaged; the first steps are cut off at the top."
        caption += " Compilation is not counted." if by == "seconds" else ""
        return self.figure(title, caption, svg, [(name, decimal(value, 2)) for name, value in last], "at the end")

    def validation(self) -> Markup | None:
        """Validation bits per byte during the run (means over seeds), with the Markov models as horizontal lines."""
        lines, last = [], []
        for name, entry in self.architectures.items():
            points = mean_points(runs(entry))
            if points:
                lines.append(self.line(name, *map(list, zip(*points, strict=True))))
                last.append((name, points[-1][1]))
        if not lines:
            return None
        markov = [(m.get("order"), finite(m.get("bits_per_byte"))) for m in self.results.get("markov") or ()]
        levels = [plots.Level(f"Markov {order}", value) for order, value in markov if value is not None]
        top = max([ceiling(lines, 0.2), *(1.04 * level.y for level in levels)])
        last.sort(key=lambda item: -item[1])
        said = [f"{self.labels[name]} ends at {decimal(value, 2)}" for name, value in last]
        said += [f"{level.label}: {decimal(level.y, 2)}" for level in levels]
        title = "Validation during the run"
        svg = plots.chart(
            "c-validation",
            lines,
            plots.Axis("training tokens", short_count),
            plots.Axis("bits per byte", plain, top=top),
            sentence(f"{title}: {', '.join(said)}"),
            levels,
        )
        caption = "Held-out documents, means over seeds. Markov models were counted on the same training text."
        return self.figure(title, caption, svg, [(name, decimal(value, 2)) for name, value in last], "at the end")

    def differences(self) -> Markup | None:
        """Differences from the reference with intervals, at equal tokens and at equal time."""
        ranked = [row["architecture"] for row in self.found["ranking"]["tokens"]]
        if len(ranked) < 2:
            return None
        anchor = REFERENCE if REFERENCE in ranked else ranked[0]
        gaps: dict[str, dict[str, tuple]] = {name: {} for name in ranked if name != anchor}
        for pair in self.found["pairs"]:
            other = pair["b"] if pair["a"] == anchor else pair["a"]
            if anchor in (pair["a"], pair["b"]) and other in gaps:
                sign = 1 if pair["b"] == anchor else -1
                gaps[other][pair["basis"]] = tuple(
                    v if v is None else sign * v for v in (pair["difference"], pair["low"], pair["high"])
                )
        bases = ("tokens", "time") if any("time" in found for found in gaps.values()) else ("tokens",)
        rows = [
            plots.Bar(self.labels[name], self.styles[name], [found.get(basis) for basis in bases]) for name, found in gaps.items()
        ]
        who = self.labels[anchor]
        said = [f"{self.labels[name]} {decimal(found['tokens'][0], 2)}" for name, found in gaps.items() if "tokens" in found]
        title = f"Ahead of or behind {subject(who)}"
        svg = plots.intervals(
            "c-differences",
            rows,
            plots.Axis(f"bits per byte minus {costs.possessive(subject(who))}", plain),
            sentence(f"{title} at equal tokens, in bits per byte: {', '.join(said)}"),
            "\u2190 better \u00b7 worse \u2192",
        )
        key = "Filled: at equal tokens. Hollow: at equal time. " if len(bases) > 1 else "At equal tokens. "
        return self.figure(title, key + "Bars are 95 % intervals; if one crosses 0, the two are not told apart.", svg)

    def tradeoff(self, spec: Spec) -> Markup | None:
        """Final validation against a measurement at the longest length."""
        series = {name: costs.series(entry, spec.metric) for name, entry in self.architectures.items()}
        longest = max((max(values) for values in series.values() if values), default=None)
        values = {name: found[longest] for name, found in series.items() if longest in found}
        if longest is None:
            return None
        axis = spec.y._replace(label=f"{spec.y.label} at {short_length(longest)}")
        return self.against(spec.title, spec.metric.part, values, axis, spec.say, spec.metric in HIGHER_IS_BETTER)

    def against_bytes(self) -> Markup | None:
        """Final validation against the bytes of the weights on disk."""
        stored = {name: finite(entry.get("disk_bytes")) for name, entry in self.architectures.items()}
        values = {name: value for name, value in stored.items() if value}
        return self.against("Size on disk", "disk_bytes", values, plots.Axis("weights on disk", size, log=2), size)

    def against(
        self, what: str, key: str, values: Mapping[str, float], x: plots.Axis, say: Callable[[float], str], higher: bool = False
    ) -> Markup | None:
        """Final validation against a cost of each model, with the Pareto front. higher: larger costs are better."""
        ranked = {row["architecture"]: row["bits_per_byte"] for row in self.found["ranking"]["tokens"]}
        points = {name: (values[name], ranked[name]) for name in ranked if name in values}
        if len(points) < 2:
            return None
        best = front(points, higher)
        order = sorted(points, key=lambda name: -points[name][1])
        said = [f"{self.labels[n]} {decimal(points[n][1], 2)} bits per byte, {say(points[n][0])}" for n in order]
        title = f"Quality against {what[0].lower()}{what[1:]}"
        svg = plots.chart(
            f"c-quality-{key.replace('_', '-')}",
            [self.line(name, [points[name][0]], [points[name][1]]) for name in order],
            x,
            plots.Axis("bits per byte", plain),
            sentence(f"{title}: {', '.join(said)}; on the Pareto front: {', '.join(self.labels[name] for name in best)}"),
            front=[points[name] for name in best],
        )
        legend = [(name, decimal(points[name][1], 2) + (" \u00b7 on the front" if name in best else "")) for name in order]
        caption = "Final validation; lower is better. The line (the Pareto front) joins those that no other one beats in both."
        return self.figure(title, caption, svg, legend, "bits per byte")

    def figure(
        self, title: str, caption: str, svg: str, legend: Sequence[tuple[str, str]] = (), when: str = "", extra: Markup | str = ""
    ) -> Markup:
        """Title, chart, legend (in the order of the lines' right ends, with their values), caption, table of numbers."""
        chips = [tag("li", self.name(name), " ", tag("span", value, class_="value")) for name, value in legend]
        listed = tag("ul", *chips, class_="legend", aria_label=f"Legend, {when}") if chips else ""
        head = tag("div", tag("h3", title), tag("p", caption), class_="head")
        return tag("figure", tag("figcaption", head), Markup(svg), listed, extra)


def front(points: Mapping[str, tuple[float, float]], higher: bool) -> list[str]:
    """The Pareto front of (cost, bits per byte), from left to right: no other point is as good in both and better in one.

    higher: larger costs are better, as of a speed.
    """
    sign = -1 if higher else 1
    cost = {name: (sign * x, y) for name, (x, y) in points.items()}
    beaten = lambda a, b: b != a and b[0] <= a[0] and b[1] <= a[1]  # noqa: E731
    kept = [name for name, own in cost.items() if not any(beaten(own, other) for other in cost.values())]
    return sorted(kept, key=lambda name: points[name][0])


def mean_points(trained: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(tokens, mean bits per byte) of the evaluations that every run has."""
    found = []
    for run in trained:
        points = [(finite(p.get("tokens")), finite(p.get("bits_per_byte"))) for p in run.get("evaluations") or ()]
        found.append({tokens: value for tokens, value in points if tokens is not None and value is not None})
    found = [points for points in found if points]
    shared = sorted(set.intersection(*map(set, found))) if found else []
    return [(tokens, sum(points[tokens] for points in found) / len(found)) for tokens in shared]


def averaged(points: np.ndarray) -> np.ndarray:
    """[N, 2] -> at most [BINS, 2], means of neighbours."""
    if len(points) <= BINS:
        return points
    return np.array([block.mean(0) for block in np.array_split(points[np.argsort(points[:, 0])], BINS)])


def ceiling(lines: Sequence[plots.Line], start: float = START) -> float:
    """The highest value after the first share `start` of the x range, with a margin."""
    first = start * max(line.x[-1] for line in lines)
    late = [value for line in lines for at, value in zip(line.x, line.y, strict=True) if at >= first]
    return max(late) + 0.05 * (max(late) - min(late))


def time_axis(seconds: float) -> plots.Axis:
    """Training time in the unit that suits its length."""
    for unit, name in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds > 3 * unit:
            return plots.Axis(f"training time, {name}", lambda value, unit=unit: plain(value / unit), unit=unit)
    return plots.Axis("training time, seconds", plain)


def plain(value: float) -> str:
    """A tick of a linear axis, without trailing zeros."""
    return f"{round(value, 6):,g}".replace("-", "\u2212")
