"""The schema of config.json in workdirs and checkpoints, and the migration from each schema to the next.

A change to the name, place or meaning of a field, or to a default in a built-in config, increments SCHEMA and adds a function
to STEPS, so that runs of every older version stay usable. A file without a schema number has schema 0 (version 0.1.0).
"""

import re
from collections.abc import Mapping
from typing import Any

from jaxseq.errors import UserError

SCHEMA = 1
BEGUN = "begun"  # in a workdir's config.json: the schema of the version that started the run

# Fields of `model` added after schema 0, by section, with the values that reproduce version 0.1.0.
_NEW_IN_1: dict[str, dict[str, Any]] = {
    "": {"embedding_gain": 1.0, "embedding_init": "normal", "head_init": "normal", "scaled_embedding": False},
    **{label: {"initial": "gpt2"} for label in ("attention", "geglu", "mlp", "moe", "series_swiglu", "swiglu")},
    "h3": {"initial": "llama", "init_std": None},
    "hyena": {"initial": "gpt2", "init_std": None, "filter_std": None},
    "hyena_modal": {"initial": "gpt2", "init_std": None},
    "rwkv_channel": {"key_gain": 1.0, "mix_power": None},
}

_RATE = ("train.lr", "train.lr_source", "train.lr_width")  # belong together: the rate was found at this width

# Fields whose defaults in built-in configs changed, by the schema before the change.
_CHANGED_DEFAULTS: dict[int, tuple[str, ...]] = {
    0: (
        *(f"model.{name}" for name in _NEW_IN_1[""]), "model.embedding_scale", "model.embedding_std", "model.head_scale",
        "model.max_positions", "model.tied",
        *(f"model.{label}.{name}" for label, fields in _NEW_IN_1.items() if label for name in fields),
        "train.eps", *_RATE, "train.weight_decay",
    ),
}  # fmt: skip


def _from_0(data: dict) -> dict:
    """Sets later fields of a language model to the values that reproduce version 0.1.0, independent of their defaults."""
    model = data.get("model")
    if not isinstance(model, Mapping) or model.get("kind", "lm") != "lm" or "stack" not in model:
        return data
    model = _NEW_IN_1[""] | dict(model)
    for label, fields in model.items():
        if isinstance(fields, Mapping):
            model[label] = _NEW_IN_1.get(label.partition(":")[0], {}) | dict(fields)
    return data | {"model": model}


STEPS = (_from_0,)  # STEPS[n] migrates a config of schema n to schema n + 1


def schema_of(data: Mapping[str, Any]) -> int:
    """The schema number of a config. Raises UserError for a number that no version up to this one has written."""
    found = data.get("schema", 0)
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        raise UserError(f"config.json has the schema {found!r}, which is not a schema number; is it a jaxseq config?")
    if found > SCHEMA:
        raise UserError(
            f"config.json was written by a newer jaxseq (schema {found}, this one reads up to {SCHEMA}); "
            "install that version: pip install -U jaxseq"
        )
    return found


def migrate(data: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a config of any schema, migrated to the current one; `data` is not changed."""
    first = schema_of(data)
    found = {name: section for name, section in data.items() if name not in ("schema", BEGUN)}
    for step in STEPS[first:]:
        found = step(found)
    return found


def begun(data: Mapping[str, Any]) -> int:
    """The schema of the version that started the run with this config.json."""
    written = schema_of(data)
    found = data.get(BEGUN, written)
    return found if isinstance(found, int) and 0 <= found <= written else written


def own_defaults(run: Mapping[str, Any], today: Mapping[str, Any], since: int) -> dict[str, Any]:
    """{dotted field: value in `run`} for fields whose defaults in built-in configs have changed since schema `since`, and in
    which a run started with that schema differs from a config of today."""
    changed = {field for schema, fields in _CHANGED_DEFAULTS.items() if schema >= since for field in fields}
    differing = {field for field in today if field in run and run[field] != today[field]}
    if differing & set(_RATE):
        differing |= set(_RATE) & set(run)
    return {field: run[field] for field in today if field in differing and re.sub(r":[^.]*", "", field) in changed}
