"""Mixtures of corpora, each with a weight per epoch, described by a JSON file.

    {"books": {"path": "books.txt", "weight": 2}, "web": {"path": "web/", "weight": 0.5, "field": "content"}}

Paths are relative to the file. weight (default 1): how often each training document of a corpus occurs in an epoch; a fraction
selects that share of the documents, always the same ones. Validation documents count once. A part may also set `source` and
`field`.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxseq.data import files
from jaxseq.data.sources import Source, source
from jaxseq.errors import UserError

KEYS = {"path": str, "weight": int | float, "source": str, "field": str}
LARGEST_WEIGHT = 1000


def open(config: ConfigDict, boundary: int | None) -> Source:
    path = files.existing(config.path)
    described, parts = _parts(path), {}
    for name, part in described.items():
        own = config.copy_and_resolve_references()
        with own.unlocked():
            own.path = str(path.parent / Path(part["path"]).expanduser())
            own.source, own.field = part.get("source", "sotu"), part.get("field", config.field)
        parts[name] = source(own, boundary)
    weights = {name: float(part["weight"]) for name, part in described.items()}
    held_out = {name: part.validation for name, part in parts.items() if part.validation}
    validation = _joined(f"{path} (validation)", held_out)._replace(plain=False) if held_out else None
    stamp = [[name, *part.stamp] for name, part in parts.items()]
    return _joined(str(path), parts)._replace(stamp=stamp, weights=weights, parts=parts, validation=validation)


def _joined(name: str, parts: dict[str, Source]) -> Source:
    """The documents of all parts, one part after another; their ids begin with the name of the part."""

    def read() -> Iterator:
        for part, opened in parts.items():
            for document in opened.read():
                yield document._replace(id=f"{part}/{document.id}")

    size, stamp = sum(part.size for part in parts.values()), [part.stamp for part in parts.values()]
    damage = tuple(one for part in parts.values() for one in part.damage)
    return Source(name, read, size, all(part.plain for part in parts.values()), stamp, damage=damage)


def _parts(path: Path) -> dict[str, dict]:
    """{name: the part's entry in the file}, checked. Raises UserError."""
    try:
        with files.opened(path) as stream:
            found = json.loads(stream.read(1 << 20))
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is no JSON ({error}); write {{NAME: {{"path": PATH, "weight": NUMBER}}}}') from error
    if not isinstance(found, dict) or not found or not all(isinstance(part, dict) for part in found.values()):
        raise UserError(f'{path} is no mixture; write {{NAME: {{"path": PATH, "weight": NUMBER}}}}')
    for name, part in found.items():
        if "/" in name or "path" not in part:
            raise UserError(f"{path}: {name!r} has {'no path' if '/' not in name else 'a / in its name'}; mend it")
        for key, value in part.items():
            if key not in KEYS or not isinstance(value, KEYS[key]) or isinstance(value, bool):
                raise UserError(f"{path}: {name}.{key}={value!r} is not known or of the wrong type; a part has {', '.join(KEYS)}")
        if part.get("source") == "mixture":
            raise UserError(f"{path}: {name}.source='mixture' is a mixture again; name its parts here")
        weight = part.setdefault("weight", 1)
        if not 0 < weight <= LARGEST_WEIGHT:
            raise UserError(f"{path}: {name}.weight={weight} must be above 0 and at most {LARGEST_WEIGHT}; set it so")
    return found


def repeats(weights: dict[str, float], ids: list[str]) -> np.ndarray:
    """[documents] int64: how often each occurs in an epoch. ids: of the documents; they begin with the names of the parts."""
    weight = np.asarray([weights[name.partition("/")[0]] for name in ids])
    chosen = np.random.default_rng(0).random(len(ids)) < weight % 1
    return np.asarray([math.floor(value) for value in weight], np.int64) + chosen
