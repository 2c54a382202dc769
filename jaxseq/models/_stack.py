"""Parser of `model.stack`, the line that defines an architecture: "12*(rglru swiglu attention:local swiglu) + (rglru swiglu)".

"12/4*(attention mlp)" shares weights: 12 blocks of which 4 are distinct, each used three times in succession. "12/1*(…)" uses one
block 12 times, as the Universal Transformer (Dehghani et al. 2018, arXiv:1807.03819) and ALBERT (Lan et al. 2019,
arXiv:1909.11942, §3.1) do.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from jaxseq.errors import UserError

_SEGMENT = re.compile(r"\s*(?:(\d{1,5})\s*(?:/\s*(\d{1,5})\s*)?\*\s*)?\(([^()]*)\)\s*")
_LABEL = re.compile(r"[a-z][a-z0-9_]*(:[a-z0-9_]+)?")


class Segment(NamedTuple):
    """A segment of a stack: `repeats` copies of a block with these mixers."""

    repeats: int
    labels: tuple[str, ...]  # mixer names, each with an optional ":label"
    fixed: bool = False  # written without a number: it occurs once and is not scaled with the depth
    distinct: int | None = None  # blocks with weights of their own; None: all

    @property
    def own(self) -> int:
        """Number of blocks with weights of their own."""
        return self.distinct or self.repeats

    def repeated(self, repeats: int) -> "Segment":
        """The segment with about `repeats` repeats, a multiple of `distinct`. A segment without a number is unchanged."""
        times = self.distinct or 1
        return self if self.fixed else self._replace(repeats=times * max(1, round(repeats / times)))

    def __str__(self) -> str:
        share = f"/{self.distinct}" if self.distinct else ""
        return f"{'' if self.fixed else f'{self.repeats}{share}*'}({' '.join(self.labels)})"


def parse(stack: str) -> tuple[Segment, ...]:
    """Segments of a stack. Raises UserError for anything that is not `N*(name name:label …) + …`."""
    segments = []
    for part in stack.split("+"):
        match = _SEGMENT.fullmatch(part)
        labels = tuple(match[3].split()) if match else ()
        if not match or not labels or not all(_LABEL.fullmatch(label) for label in labels) or match[1] == "0":
            raise UserError(f"cannot read {part.strip()!r} in model.stack; write it like 4*(attention swiglu) + (mamba)")
        repeats, distinct = int(match[1] or 1), match[2] and int(match[2])
        if distinct is not None and (not distinct or repeats % distinct):
            raise UserError(f"{part.strip()!r} in model.stack: {distinct} must divide {repeats}")
        segments.append(Segment(repeats, labels, match[1] is None, distinct if distinct != repeats else None))
    return tuple(segments)


def text(segments: Iterable[Segment]) -> str:
    """The inverse of `parse`."""
    return " + ".join(map(str, segments))


def labels(stack: str) -> tuple[str, ...]:
    """The distinct labels in order: the sub-sections of `config.model`."""
    return tuple(dict.fromkeys(label for segment in parse(stack) for label in segment.labels))


def paths(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Parameter paths: the label, with the suffix _1, _2 … for repeated uses in a block (each use has its own parameters)."""
    seen: dict[str, int] = {}
    out = []
    for label in labels:
        n = seen[label] = seen.get(label, -1) + 1
        out.append(f"{label}_{n}" if n else label)
    return tuple(out)
