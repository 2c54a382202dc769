"""Charts as inline SVG, drawn by matplotlib and coloured by the page's CSS variables, for light and dark mode.

Matplotlib draws in placeholder colours (#a0c0NN), which are replaced by var(--…) in the SVG. Text stays text in the page's
font. Every id gets the chart's prefix. Legends and captions are HTML (jaxseq.compare.figures), so nothing covers the data.
"""

import html
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

HUES = 7  # --s0 is for the reference, --s1 … --s7 for the others
MARKERS = "os^DvPX<>phd8"  # 13 is coprime with the number of hues: 91 architectures get different styles
DASHES = ((0, ()), (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)))
WIDTH, HEIGHT, FONT = 400, 270, 10.5  # points; the font stays legible when a phone shrinks the chart to 85 %
PHONE = 12.5 / FONT  # factor by which the page enlarges the font on a phone, in chart units
LETTER = 0.62  # letter width of a wide sans serif, in units of the font size
LONGEST = 24  # most letters of an architecture's name in an interval chart
ROW = 16  # minimum height of a row of an interval chart, in points
TICKS = 6
MARGIN = 0.05  # share of an axis left free at either end
INK, MUTED, GRID, CARD = "#a0c090", "#a0c091", "#a0c092", "#a0c093"
VARIABLES = {"90": "--ink", "91": "--muted", "92": "--grid", "93": "--card"}
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxseq",
    "text.parse_math": False,
    "font.size": FONT,
    "axes.edgecolor": MUTED,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "path.simplify": False,
    "axes.unicode_minus": True,
}


class Style(NamedTuple):
    """The colour, marker and dash pattern of one architecture in every chart."""

    index: int

    @property
    def hue(self) -> int:
        return 0 if self.index == 0 else 1 + (self.index - 1) % HUES

    @property
    def color(self) -> str:
        return f"#a0c0{self.hue:02d}"

    @property
    def marker(self) -> str:
        return MARKERS[self.index % len(MARKERS)]

    @property
    def dash(self) -> tuple:
        return DASHES[max(self.index - 1, 0) // HUES % len(DASHES)]

    def glyph(self) -> str:
        """A line with the marker on it, as a small SVG for legends and tables."""
        marker = MarkerStyle(self.marker)
        path = marker.get_path().transformed(marker.get_transform())
        d = ""
        for points, code in path.iter_segments(curves=False, simplify=False):
            d += "Z" if code == path.CLOSEPOLY else f"{'M' if code == path.MOVETO else 'L'}{points[0]:.2f} {-points[1]:.2f}"
        dash = " ".join(f"{x:g}" for x in self.dash[1])
        line = f'<path d="M1 6H25" fill="none" stroke="var(--s{self.hue})" stroke-width="1.8" stroke-dasharray="{dash}"/>'
        paint = f'fill="var(--s{self.hue})" stroke="var(--card)" stroke-width=".12"'
        body = f'<path transform="translate(13 6) scale(7.5)" d="{d}" {paint}/>'
        return f'<svg class="glyph" viewBox="0 0 26 12" aria-hidden="true" focusable="false">{line}{body}</svg>'


class Line(NamedTuple):
    label: str
    style: Style
    x: Sequence[float]
    y: Sequence[float]


class Level(NamedTuple):
    """A horizontal reference line."""

    label: str
    y: float


class Bar(NamedTuple):
    """A row of an interval chart: for each basis, the value and its interval (None: no interval)."""

    label: str
    style: Style
    values: Sequence[tuple[float, float | None, float | None] | None]


class Axis(NamedTuple):
    label: str
    say: Callable[[float], str]  # a tick's text
    log: int = 0  # base of a logarithmic axis, 0: linear
    top: float | None = None  # values above are cut off
    unit: float = 1.0  # ticks of a linear axis fall on round multiples of it


def chart(
    name: str, lines: Sequence[Line], x: Axis, y: Axis, description: str, levels: Sequence[Level] = (),
    front: Sequence[tuple[float, float]] = (),
) -> str:  # fmt: skip
    """Lines over x. `name` prefixes the ids; `description` is for screen readers; a thin line joins the points of `front`."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        axes = figure.add_axes((0, 0.155, 1, 0.745))
        axes.plot([at for at, _ in front], [value for _, value in front], color=MUTED, linewidth=1, zorder=1)
        for line in lines:
            points = len(line.x)
            every = None if points <= 12 else (line.style.index % 5, max(1, points // 7))
            axes.plot(
                line.x,
                line.y,
                color=line.style.color,
                linestyle=line.style.dash,
                linewidth=1.7,
                marker=line.style.marker,
                markersize=5.5 if points > 1 else 9,
                markeredgecolor=CARD,
                markeredgewidth=0.7,
                markevery=every,
                solid_capstyle="round",
                clip_on=y.top is not None,
            )
        _scale(axes.xaxis, x, [value for line in lines for value in line.x])
        _scale(axes.yaxis, y, [value for line in lines for value in line.y] + [level.y for level in levels])
        right = text_width(max((level.label for level in levels), key=len)) + 6 if levels else 8
        left = _place(axes, right)
        _levels(axes, levels)
        _frame(axes, x, y, left)
        return _inline(figure, name, y.label + " against " + x.label, description)


def intervals(name: str, rows: Sequence[Bar], x: Axis, description: str, zero: str) -> str:
    """One row per architecture: a value with its interval for each basis, around a line at 0."""
    with matplotlib.rc_context(SETTINGS):
        height = max(HEIGHT, 62 + ROW * len(rows))
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        labels = [row.label if len(row.label) <= LONGEST else row.label[: LONGEST - 1] + "…" for row in rows]
        axes = figure.add_axes((0, 34 / height, 1, 1 - 62 / height))
        axes.axvline(0, color=MUTED, linewidth=1)
        for at, row in enumerate(rows):
            for basis, value in enumerate(row.values):
                if value is None:
                    continue
                y = at + (0.17 if basis else -0.17) * (len(row.values) > 1)
                middle, low, high = value
                if low is not None and high is not None:
                    axes.plot([low, high], [y, y], color=row.style.color, linewidth=2, solid_capstyle="butt")
                face = CARD if basis else row.style.color
                axes.plot(
                    [middle],
                    [y],
                    row.style.marker,
                    color=row.style.color,
                    markerfacecolor=face,
                    markersize=5.5,
                    markeredgewidth=1.2,
                )
        values = [v for row in rows for value in row.values if value for v in value if v is not None]
        _scale(axes.xaxis, x, [*values, 0.0])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), labels)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.tick_params(axis="x", length=3)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="x", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.set_title(zero, loc="left", fontsize=FONT - 0.5, color=MUTED, pad=8, x=_place(axes, 8))
        axes.set_xlabel(x.label, fontsize=FONT - 0.5, color=MUTED, loc="right", labelpad=3)
        return _inline(figure, name, x.label, description)


def text_width(text: str) -> float:
    """Upper bound for the width of a text in the page's font, in points, including on a phone."""
    return LETTER * FONT * PHONE * len(text)


def _place(axes: Axes, right: float) -> float:
    """Sets the width of the axes, leaving space for tick labels and `right` points; returns the figure's left edge, for titles.

    The first and last labels of x are centred on their ticks, so they may extend beyond the axes.
    """
    left = 8 + max(text_width(label) for label in axes.yaxis.get_major_formatter().format_ticks(axes.get_yticks()))
    for _ in range(2):  # the second pass uses the width from the first
        for at, label in zip(axes.get_xticks(), axes.xaxis.get_major_formatter().format_ticks(axes.get_xticks()), strict=True):
            share = axes.transAxes.inverted().transform(axes.transData.transform((at, axes.get_ylim()[0])))[0]
            width, half = WIDTH - left - right, text_width(label) / 2
            left, right = max(left, half - share * width), max(right, half - (1 - share) * width)
    box = axes.get_position()
    axes.set_position((left / WIDTH, box.y0, 1 - (left + right) / WIDTH, box.height))
    return (3 - left) / (WIDTH - left - right)


def _frame(axes: Axes, x: Axis, y: Axis, left: float) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=3)
    axes.set_title(y.label, loc="left", fontsize=FONT - 0.5, color=MUTED, pad=11, x=left)
    axes.set_xlabel(x.label, fontsize=FONT - 0.5, color=MUTED, loc="right", labelpad=2)


def _levels(axes: Axes, levels: Sequence[Level]) -> None:
    """Dashed lines with their names to the right of the axes; names that would overlap are moved apart."""
    bottom, top = axes.get_ylim()
    gap = 0.06 * (top - bottom)
    lowest = -math.inf
    for level in sorted(levels, key=lambda level: level.y):
        if not bottom <= level.y <= top:
            continue
        axes.axhline(level.y, color=MUTED, linewidth=1, linestyle=(0, (3, 2.5)), zorder=1)
        lowest = max(level.y, lowest + gap)
        axes.annotate(
            level.label,
            (1, lowest),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=FONT - 1,
            color=MUTED,
        )


def _scale(axis: matplotlib.axis.Axis, spec: Axis, values: Sequence[float]) -> None:
    """Sets limits and ticks that fit the values."""
    low, high = min(values), max(values)
    if spec.top is not None:
        high = min(high, spec.top)
    if spec.log:
        pad = (high / low) ** MARGIN if high > low else 1.5
        low, high = low / pad, high * pad
        ticks = log_ticks(low, high, spec.log)
    else:
        pad = MARGIN * (high - low) or MARGIN * abs(high) or 1.0
        low, high = max(low - pad, 0.0) if low >= 0 else low - pad, high + pad
        steps = MaxNLocator(TICKS, steps=[1, 2, 2.5, 5, 10]).tick_values(low / spec.unit, high / spec.unit)
        ticks = [step * spec.unit for step in steps if low <= step * spec.unit <= high]
    if spec.log:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.axes.set(**{f"{axis.axis_name}lim": (low, high)})
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([spec.say(tick) for tick in ticks]))
    axis.set_minor_locator(NullLocator())


def log_ticks(low: float, high: float, base: int) -> list[float]:
    """At most TICKS ticks: powers of the base at an even stride; on a short axis of base 10, also 1-2-5 multiples."""
    first, last = math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9)
    if base == 10 and last - first < 2:
        fine = [m * 10.0**k for k in range(first - 1, last + 1) for m in (1, 2, 5)]
        ticks = [tick for tick in fine if low <= tick <= high]
        if len(ticks) >= 2:
            return ticks
        return [t for t in MaxNLocator(TICKS - 2).tick_values(low, high) if low <= t <= high]
    if last - first < 1:
        return [t for t in MaxNLocator(TICKS - 2).tick_values(low, high) if low <= t <= high]
    stride = math.ceil((last - first + 1) / TICKS)
    return [float(base) ** k for k in range(last, first - 1, -stride)][::-1]


def _inline(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an <svg> element for HTML: no prolog, no namespaces, prefixed ids, colours as CSS variables."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.S)
    body = body.replace("xlink:href=", "href=")
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(url\(|href=")#', rf"\1#{name}-", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r' (?:d|x|y|transform)="[^"]*"', _shorten, body)
    body = re.sub(r"#a0c0(\d\d)", lambda m: f"var({VARIABLES.get(m[1]) or f'--s{int(m[1])}'})", body)
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-desc">{html.escape(description)}</desc>\n{body}\n</svg>'
    )


def _shorten(match: re.Match) -> str:
    """Rounds coordinates to a hundredth of a point and puts paths on one line."""
    text = re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), match[0])
    return re.sub(r" transform=\"rotate\(-?0 [^)]*\)\"", "", re.sub(r"\s*\n\s*", " ", text))
