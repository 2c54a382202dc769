"""Checks that weights compute the same function under a new config as under their own; equal shapes are not enough.

Both models are traced and their computations compared. So two ways to write the same setting are equal, such as a head size
that is given and one that follows from the width.
"""

import logging
import os
import re
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import jaxseq
from jaxseq.config import finish, to_dict
from jaxseq.convert import abstract
from jaxseq.errors import UserError
from jaxseq.train.workdirs import differing, flat, saved_config

# Fields of the model that fine-tuning may change: how it is run and regularised, and heads that may be added or removed.
FREE = (
    "model.remat", "model.dtype", "model.residual_dtype", "model.dropout", "model.drop_path", "model.classes", "model.pooler",
    "model.masked_head",
)  # fmt: skip
log = logging.getLogger(__name__)


def check(source: str | os.PathLike, config: ConfigDict) -> None:
    """Raises UserError with each field of `config.model` that changes what the weights of the workdir `source` compute, unless
    train.init_allow names it. Different shapes are reported when the weights are restored."""
    saved = saved_config(source)
    if saved is None or saved.model.kind != config.model.kind:
        return
    if config.train.init_layers:
        saved = _with(saved, {"model.stack": config.model.stack})
    changed = differences(saved, config)
    if not changed:
        return
    allowed = {name.strip() for name in config.train.init_allow.split(",")}
    told = {name: f"{name} is {old!r} there and {new!r} here" for name, (old, new) in changed.items()}
    for name in sorted(allowed & told.keys()):
        log.warning("%s: %s, as train.init_allow says", source, told.pop(name))
    if told:
        raise UserError(
            f"the weights in {source} were trained to compute something else: {'; '.join(told.values())}; "
            f"take --config={source}, give its values, or allow the change with --config.train.init_allow={','.join(told)}"
        )


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """{field: (value of `old`, value of `new`)} for the fields of `model` that change the computation; empty if the shapes of
    the parameters differ."""
    before, after = flat(to_dict(old)), flat(to_dict(new))
    names = [name for name in differing(to_dict(old), to_dict(new)) if name.startswith("model.")]
    moved = {name: after[name] for name in names if name in FREE and name in before and name in after}
    names = [name for name in names if name not in FREE]
    if not names:
        return {}
    old = _with(old, moved)
    wanted, length = computed(old, new.train.length), new.train.length
    if wanted is None or _shapes(old) != _shapes(new) or computed(new, length) == wanted:
        return {}
    if len(names) == 1:
        return {names[0]: (before.get(names[0]), after.get(names[0]))}
    found = {
        name: (before.get(name), after.get(name))
        for name in names
        if name in before and name in after and computed(_with(old, {name: after[name]}), length) != wanted
    }
    return found or {name: (before.get(name), after.get(name)) for name in names}  # only their combination changes it


def _with(config, values: dict[str, Any]):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for name, value in values.items():
            *path, last = name.split(".")
            section = config
            for part in path:
                section = section[part]
            section[last] = value
    return finish(config)


def _shapes(config) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, abstract(jaxseq.build(config)))


def computed(config: ConfigDict, length: int) -> str | None:
    """The computation of a config's model as text; None if it cannot take `length` tokens, or if the config is invalid."""
    try:
        model = jaxseq.build(config)
        found = abstract(model)
        variables = found if "params" in found else {"params": found}
        inputs = [_longer(array, length) for array in model.example() if array is not None]
        traced = jax.make_jaxpr(model.apply)(variables, *inputs)
    except (ValueError, TypeError):
        return None
    constants = [np.asarray(value) for value in traced.consts]
    text = re.sub(r"0x[0-9a-f]+", "", str(traced.jaxpr))  # memory addresses of functions
    return f"{text}\n{[(value.dtype.str, value.shape, value.tobytes()) for value in constants]}"


def _longer(array, length: int) -> jax.ShapeDtypeStruct:
    """A row of `length` tokens instead of the two of an example."""
    tokens = array.ndim == 2 and np.issubdtype(array.dtype, np.integer)
    return jax.ShapeDtypeStruct((1, length) if tokens else array.shape, array.dtype)
