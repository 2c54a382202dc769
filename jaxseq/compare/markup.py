"""HTML without injection: attributes are always escaped, and so is every child that is not Markup."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

from jaxseq.compare.words import visible


class Markup(str):
    """A string that is already HTML."""

    __slots__ = ()


def text(value: Any) -> Markup:
    """Any value as escaped text; Markup is returned unchanged."""
    return value if isinstance(value, Markup) else Markup(html.escape(visible(value)))


def join(children: Iterable[Any], between: str = "") -> Markup:
    return Markup(between.join(text(child) for child in children))


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """<name attributes>children</name>. `class_` becomes class, other underscores become hyphens; None and "" are left out."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value not in (None, ""))
    head = "".join(f' {key}="{html.escape(visible(value))}"' for key, value in pairs)
    return Markup(f"<{name}{head}>{join(children)}</{name}>")


def unordered(items: Iterable[Any], **attributes: Any) -> Markup:
    return tag("ul", *(tag("li", item) for item in items), **attributes)


def folded(summary: Any, *children: Any) -> Markup:
    """A collapsed block that opens on a click, without a script."""
    return tag("details", tag("summary", summary), *children)


def table(caption: str, head: Sequence[Any], rows: Iterable[Sequence[Any]], **attributes: Any) -> Markup:
    """A table in a box that scrolls sideways; the first cell of each row is its header."""
    columns = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = (tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows)
    whole = tag("table", tag("caption", tag("span", caption)), tag("thead", columns), tag("tbody", *body), **attributes)
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def definitions(pairs: Iterable[tuple[Any, Any]]) -> Markup:
    """A definition list; terms without a value are left out."""
    return tag("dl", *(tag("div", tag("dt", term), tag("dd", what)) for term, what in pairs if what not in (None, "")))
