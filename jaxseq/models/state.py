"""States of language models as data: take and replace rows, join batches, save, load and rewind.

state = concatenate([state_a, state_b])              # two batches as one
state = put_rows(state, other, [3, 0])               # row 0 of `other` becomes row 3, row 1 becomes row 0
save("prompt.safetensors", model, rows(state, [0]))  # a long prompt is read once
state = rewind(model, params, before, after, tokens, kept)  # speculative decoding: only `kept` tokens were accepted
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import linen as nn

from jaxseq.errors import UserError
from jaxseq.models.lm import LM, LMState
from jaxseq.ops._time import PAD, expand

SCHEMA = 2  # 1: full attention's slots came before its heads


def _by_axis(function, state: LMState, *others: LMState) -> LMState:
    """`function(leaf, *leaves, axis)`, with the batch axis of each leaf: 1 in the stacks of layers, 0 in `next_pos_B`."""
    segments = jax.tree.map(lambda *x: function(*x, 1), state.segments, *(other.segments for other in others))
    return LMState(segments, function(state.next_pos_B, *(other.next_pos_B for other in others), 0))


def batch(state: LMState) -> int:
    """Number of rows."""
    return state.next_pos_B.shape[0]


def rows(state: LMState, index: Sequence[int] | jax.Array) -> LMState:
    """The rows at `index`, in this order; a row may be taken more than once (for beams)."""
    index_N = jnp.asarray(index, jnp.int32)
    return _by_axis(lambda x, axis: jnp.take(x, index_N, axis=axis), state)


def put_rows(state: LMState, other: LMState, index: Sequence[int] | jax.Array) -> LMState:
    """`state` with row index[n] replaced by row n of `other`. Raises UserError if their slots for tokens differ in number."""
    index_N = jnp.asarray(index, jnp.int32)
    _check_alike([state, other])
    put = lambda x, new, axis: x.at[(slice(None),) * axis + (index_N,)].set(new)  # noqa: E731
    return _by_axis(put, state, other)


def concatenate(states: Sequence[LMState]) -> LMState:
    """The rows of all states in one batch. Raises UserError if their slots for tokens differ in number."""
    _check_alike(states)
    return _by_axis(lambda *x: jnp.concatenate(x[:-1], axis=x[-1]), *states)


def _check_alike(states: Sequence[LMState]) -> None:
    def shapes(state: LMState) -> list[tuple[int, ...]]:
        return [(x.shape[0], *x.shape[2:]) for x in jax.tree.leaves(state.segments)]

    if any(shapes(state) != shapes(states[0]) for state in states):
        raise UserError("the states are of different models or contexts; make all of them with init_state(batch, context=N)")


def rewind(
    model: LM, params: Any, before: LMState, after: LMState, tokens_BT: jax.Array, kept_B: jax.Array,
    pos_BT: jax.Array | None = None, form: Any = "auto",
) -> LMState:  # fmt: skip
    """The state after the first kept_B tokens of each row, from the states before and after all tokens.

    `after` may have read the dropped tokens as padding. If every mixer with a state is full attention, only its count of tokens
    is lowered: the slots of the dropped tokens become invisible. Otherwise all states are recomputed from `before` with the
    dropped tokens as padding, so no state per token is stored. Rows without dropped tokens take `after` itself, and if there are
    no others, nothing is recomputed. With `pos_BT`, which may begin documents, all rows are recomputed.
    """
    time = tokens_BT.shape[1]
    kept_B = jnp.clip(kept_B, 0, time)
    if pos_BT is None and _all_full_attention(model, before):
        counted = lambda new, old: new._replace(count_B=old.count_B + kept_B) if new != () else new  # noqa: E731
        segments = tuple(tuple(map(counted, *pair)) for pair in zip(after.segments, before.segments, strict=True))
        return LMState(segments, before.next_pos_B + kept_B)

    def recomputed(pos_BT: jax.Array) -> LMState:
        pos_BT = jnp.where(jnp.arange(time) < kept_B[:, None], pos_BT, PAD)
        return model.apply({"params": params}, tokens_BT, before, pos_BT, form=form, method="hidden")[1]

    if pos_BT is not None:
        return recomputed(pos_BT)
    whole_B = before.next_pos_B + kept_B >= after.next_pos_B
    pos_BT = before.next_pos_B[:, None] + jnp.arange(time)
    state = jax.lax.cond(jnp.all(whole_B), lambda pos_BT: after, recomputed, pos_BT)
    return _by_axis(lambda x, new, axis: jnp.where(expand(whole_B[(None,) * axis], x), x, new), after, state)


def _all_full_attention(model: LM, state: LMState) -> bool:
    """Whether every mixer with a state limits the number of tokens, as full attention does, and counts them."""
    pairs = (
        (m, s)
        for block, segment in zip(model.blocks, state.segments, strict=True)
        for m, s in zip(block.mixers, segment, strict=True)
    )
    return all(s == () or (hasattr(s, "count_B") and m.remaining_capacity(s) is not None) for m, s in pairs)


def fingerprint(model: LM) -> str:
    """A hash of all fields of the model, its blocks and its mixers, without the parameters."""

    def plain(value: Any) -> Any:
        if isinstance(value, nn.Module):
            fields = {
                f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in ("parent", "name")
            }
            return [type(value).__name__, fields]
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return value if isinstance(value, bool | int | float | str | None) else jnp.dtype(value).name

    fields = plain(model)
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=16).hexdigest()


def save(path: str | os.PathLike, model: LM, state: LMState) -> None:
    """Writes the state as safetensors, with the model's fingerprint. Other processes can load it; it contains no parameters."""
    leaves = {str(i): np.ascontiguousarray(x) for i, x in enumerate(jax.device_get(jax.tree.leaves(state)))}
    metadata = {"schema": str(SCHEMA), "model": fingerprint(model)}
    draft = Path(f"{path}.part")
    safetensors.numpy.save_file(leaves, draft, metadata)
    draft.replace(path)


def load(path: str | os.PathLike, model: LM) -> LMState:
    """Reads a state that `save` wrote. Raises UserError if it is damaged or of another model."""
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            leaves = [file.get_tensor(str(i)) for i in range(len(file.keys()))]
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} holds no state of a model: {' '.join(str(error).split())}") from None
    if metadata.get("schema") != str(SCHEMA) or metadata.get("model") != fingerprint(model):
        raise UserError(f"{path} is the state of another model, or of another version; read the prompt again")
    structure = jax.tree.structure(jax.eval_shape(lambda: model.init_state(1, 1)))
    if structure.num_leaves != len(leaves):
        raise UserError(f"{path} has {len(leaves)} arrays where this model's state has {structure.num_leaves}; it is damaged")
    return jax.tree.unflatten(structure, map(jnp.asarray, leaves))


__all__ = ["batch", "concatenate", "fingerprint", "load", "put_rows", "rewind", "rows", "save"]
