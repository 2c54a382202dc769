"""Parser of `model.stack`, the line that defines an architecture: "12*(rglru swiglu attention:local swiglu) + (rglru swiglu)"."""

import re
from typing import NamedTuple

from jaxseq.errors import UserError

_SEGMENT = re.compile(r"\s*(?:(\d{1,5})\s*\*\s*)?\(([^()]*)\)\s*")
_LABEL = re.compile(r"[a-z][a-z0-9_]*(:[a-z0-9_]+)?")


class Segment(NamedTuple):
    """A segment of a stack: `repeats` copies of a block with these mixers."""

    repeats: int
    labels: tuple[str, ...]  # mixer names, each with an optional ":label"
    fixed: bool = False  # written without a number: it occurs once and is not scaled with the depth


def parse(stack: str) -> tuple[Segment, ...]:
    """Segments of a stack. Raises UserError for anything that is not `N*(name name:label …) + …`."""
    segments = []
    for part in stack.split("+"):
        match = _SEGMENT.fullmatch(part)
        labels = tuple(match[2].split()) if match else ()
        if not match or not labels or not all(_LABEL.fullmatch(label) for label in labels) or match[1] == "0":
            raise UserError(f"cannot read {part.strip()!r} in model.stack; write it like 4*(attention swiglu) + (mamba)")
        segments.append(Segment(int(match[1] or 1), labels, fixed=match[1] is None))
    return tuple(segments)


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
