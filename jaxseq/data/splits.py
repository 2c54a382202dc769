"""Which split a file of a folder belongs to, by the words of its path: the spellings of the `datasets` library."""

import re
from collections.abc import Iterable
from pathlib import PurePath

from jaxseq.errors import UserError

# What is held out comes first: a name with words of two splits belongs to the first of them.
KEYWORDS = {
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
    "train": ("train", "training"),
}
_WORDS = re.compile(r"[-._ 0-9]+")


def _named(text: str) -> str | None:
    words = set(_WORDS.split(text.lower()))
    return next((split for split, keywords in KEYWORDS.items() if words & set(keywords)), None)


def split_of(path: PurePath) -> str | None:
    """ "train", "validation", "test" or None, by the words of the folders of a path, else of the file's name.

    Words are what stands between "-", ".", "_", spaces and digits: `val` in "data/val-00000-of-00001.parquet" is one,
    "value.txt" and "latest.txt" have none.
    """
    folders = [found for part in path.parts[:-1] if (found := _named(part))]
    return min(folders, key=list(KEYWORDS).index) if folders else _named(path.name)


def grouped(root, paths: Iterable[PurePath]) -> dict[str, list[PurePath]]:
    """{"train", "validation", "test", "unnamed"}: the paths, relative to `root`, of each split.

    What no word claims is training data unless other files are called "train"; then it stays under "unnamed", and is left
    out as `datasets` leaves it out. A folder of one split alone is read as what it holds: its files are the training data.

    Raises:
        UserError: validation and test files, and none to train on.
    """
    groups: dict[str, list[PurePath]] = {"train": [], "validation": [], "test": [], "unnamed": []}
    for path in paths:
        groups[split_of(path) or "unnamed"].append(path)
    if not groups["train"]:
        groups["train"], groups["unnamed"] = groups["unnamed"], []
    if not groups["train"]:
        held_out = [name for name in ("validation", "test") if groups[name]]
        if len(held_out) > 1:
            raise UserError(f"data.path={root} holds validation and test files and none of train; name one file or its folder")
        for name in held_out:
            groups["train"], groups[name] = groups[name], []
    return groups
