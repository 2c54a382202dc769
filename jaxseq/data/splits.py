"""Determines the split of a file from the words in its path, with the spellings of the `datasets` library."""

import re
from collections.abc import Iterable
from pathlib import PurePath

from jaxseq.errors import UserError

# Held-out splits come first: a name with words of two splits belongs to the first one listed.
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
    """ "train", "validation", "test" or None, from the words in the folders of a path, else in the file's name.

    Words are separated by "-", ".", "_", spaces and digits: "data/val-00000-of-00001.parquet" contains `val`; "value.txt" and
    "latest.txt" contain no split.
    """
    folders = [found for part in path.parts[:-1] if (found := _named(part))]
    return min(folders, key=list(KEYWORDS).index) if folders else _named(path.name)


def grouped(root: str | PurePath, paths: Iterable[PurePath]) -> dict[str, list[PurePath]]:
    """{"train", "validation", "test", "unnamed"}: the paths, relative to `root`, of each split.

    A file without a split word is training data, unless other files are named "train"; then it goes to "unnamed" and is left
    out, as in `datasets`. If a folder has files of only one split, they are the training data.

    Raises:
        UserError: there are validation and test files but no training files.
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
