"""Positions that are added to the embedding: a learned table, or sines and cosines."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.errors import UserError
from jaxseq.layers import Initializer, param

KINDS = ("none", "learned", "sinusoidal")


def table(module: nn.Module, kind: str, rows: int, width: int, init_fn: Initializer) -> jax.Array | None:
    """The module's parameter "position" [rows, width], where there is one."""
    return param(module, "position", init_fn, (rows, width), (None, "embed"), decay=False) if kind == "learned" else None


def add(x_BTD: jax.Array, pos_BT: jax.Array, kind: str, table_SD: jax.Array | None) -> jax.Array:
    """x and what the kind of positions adds to it; padding (-1) gets the first row, to no effect."""
    if kind == "learned":
        return x_BTD + table_SD[jnp.maximum(pos_BT, 0)]
    return x_BTD + sinusoids(pos_BT, x_BTD.shape[-1], x_BTD.dtype) if kind == "sinusoidal" else x_BTD


def sinusoids(pos_BT: jax.Array, width: int, dtype) -> jax.Array:
    """sin(pos / 10000^(2i/D)) and cos of it in turn [B, T, D] (Vaswani et al. 2017, arXiv:1706.03762, §3.5)."""
    angle_BTF = pos_BT[..., None] * 10000.0 ** (-jnp.arange(0, width, 2, dtype) / width)
    return jnp.stack([jnp.sin(angle_BTF), jnp.cos(angle_BTF)], axis=-1).reshape(*pos_BT.shape, -1)[..., :width].astype(dtype)


def check_length(kind: str, rows: int, tokens: int) -> None:
    """Raises UserError where a learned table has fewer rows than there are tokens."""
    if kind == "learned" and tokens > rows:
        raise UserError(
            f"this model has learned {rows} positions and cannot read {tokens} tokens; "
            "give it fewer, or raise model.max_positions and train"
        )
