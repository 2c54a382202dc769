"""Wording for the report, without markup: numbers with units, names of architectures, lists."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

REFERENCE = "transformer"  # the others are compared with it if it was run: the question is what should replace it
MINUS = "\u2212"


def finite(value: Any) -> float | None:
    """`value` as a float; None if it is missing, not a number, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    value = float(value)
    return value if math.isfinite(value) else None


def labels(architectures: Mapping[str, Any]) -> dict[str, str]:
    """Name -> label: the text before the colon in the first line of the experiment card, or else the name.

    Architectures that would get the same label keep their names.
    """
    found = {}
    for name, entry in architectures.items():
        title = str(entry.get("title") or "").partition(":")[0].strip()
        found[name] = title if 0 < len(title) <= 24 and "\n" not in title else name
    count = Counter(found.values())
    return {name: text if count[text] == 1 else name for name, text in found.items()}


def subject(label: str) -> str:
    """The label inside a sentence: "the Transformer", "Mamba"."""
    return f"the {label}" if label.lower().endswith("transformer") else label


def sentence(text: str) -> str:
    """The text with a capital first letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", ":", "!", "?")) else ".")


def listing(items: Sequence[str]) -> str:
    """ "A", "A and B", "A, B and C"."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def decimal(value: float, places: int) -> str:
    """A number with fixed places, a Unicode minus sign and no negative zero."""
    text = f"{value:,.{places}f}"
    return (MINUS if text.startswith("-") and float(text.replace(",", "")) != 0 else "") + text.lstrip("-")


def significant(value: float, digits: int = 3) -> str:
    """Three significant digits without an exponent: 0.0123, 1.23, 12.3, 123, 1,230,000."""
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return decimal(round(value, places), max(0, min(places, 12)))


def count(value: float) -> str:
    """A whole number: 250,000."""
    return decimal(value, 0)


def short_count(value: float) -> str:
    """For ticks: 500, 8k, 1.5k, 2M."""
    for unit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}"


def short_length(value: float) -> str:
    """For ticks of lengths, which are powers of two: 128, 1k, 32k; others as they are."""
    if value >= 1024 and value % 1024 == 0:
        return f"{value / 1024:.0f}k"
    return f"{value:g}"


def size(n_bytes: float) -> str:
    """Bytes in binary units: 512 B, 1.5 KiB, 64 MiB."""
    for unit, suffix in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n_bytes >= unit:
            return f"{_trim(n_bytes / unit)} {suffix}"
    return f"{n_bytes:.0f} B"


def duration(seconds: float) -> str:
    """12 µs, 1.23 ms, 41 s, 3 min 20 s, 2 h 5 min."""
    if seconds >= 3600:
        hours, rest = divmod(round(seconds / 60), 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    if seconds >= 120:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    for unit, suffix in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= unit:
            return f"{_trim(seconds / unit)} {suffix}"
    return f"{_trim(seconds * 1e9)} ns"


def energy(joules: float) -> str:
    """12 µJ, 1.23 mJ, 41 J."""
    for unit, suffix in ((1, "J"), (1e-3, "mJ")):
        if joules >= unit:
            return f"{_trim(joules / unit)} {suffix}"
    return f"{_trim(joules * 1e6)} µJ"


def times(ratio: float) -> str:
    """A factor of at least 1: "1.25", "9.3", "512"."""
    return decimal(ratio, 2 if ratio < 1.995 else 1 if ratio < 9.95 else 0).removesuffix(".0")


def bits(value: float, *others: float) -> str:
    """Bits per byte, with enough places that no number shown rounds to zero."""
    return decimal(value, places(value, *others))


def places(*values: float) -> int:
    """The number of decimal places, 2 to 5, at which the smallest nonzero value still shows a digit."""
    smallest = min((abs(value) for value in values if value), default=1.0)
    return 2 if smallest >= 0.005 else min(5, math.ceil(-math.log10(smallest)))


def visible(text: Any) -> str:
    """Text that is valid in any page: control characters become their Unicode pictures, lone surrogates \ufffd."""
    text = str(text).replace("\r\n", "\n").encode("utf-8", "replace").decode()
    text = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda match: chr(0x2400 + ord(match[0])), text)
    return re.sub(r"[\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]", "\ufffd", text)


def _trim(value: float) -> str:
    text = f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"
    return f"{int(text):,}" if text.isdigit() else text
