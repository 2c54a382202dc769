"""Ways to make a model from a trained one in one call, other than by training a config: {name: function}.

A function takes (the workdir of the base's run, the lever's argument, the new workdir, progress, the user's config fields
data.…), writes the new workdir, and returns the number of tokens that it trained on. It raises UserError for an argument that
cannot be applied.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxseq import compress

Say = Callable[[str], None]


def compressed(base: Path, recipe: str, out: Path, say: Say, fields: Mapping[str, Any]) -> int:
    """By a recipe of `jaxseq compress`, which reads a few tokens but trains on none."""
    compress.apply(base, recipe, out, overrides=dict(fields), say=say)
    return 0


WAYS: dict[str, Callable[[Path, str, Path, Say, Mapping[str, Any]], int]] = {"compress": compressed}
