"""Position embeddings added to the token embedding: a learned table, or sines and cosines."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxseq.layers import Initializer, constrain, param

KINDS = ("none", "learned", "sinusoidal")


def table(module: nn.Module, kind: str, rows: int, width: int, init_fn: Initializer) -> jax.Array | None:
    """The parameter "position" [rows, width] if `kind` is learned, else None."""
    return param(module, "position", init_fn, (rows, width), (None, "embed"), decay=False) if kind == "learned" else None


def add(x_BTD: jax.Array, pos_BT: jax.Array, kind: str, table_SD: jax.Array | None) -> jax.Array:
    """x plus its position embeddings. Padding (-1) reads the first row, which has no effect.

    A position beyond the end of the table gives NaN instead of the last row, because inside jit it cannot be checked.
    """
    if kind == "learned":
        table_SD = constrain(table_SD, (None, None))
        return x_BTD + jnp.take(table_SD, jnp.maximum(pos_BT, 0), axis=0, mode="fill", fill_value=jnp.nan)
    return x_BTD + sinusoids(pos_BT, x_BTD.shape[-1], x_BTD.dtype) if kind == "sinusoidal" else x_BTD


def sinusoids(pos_BT: jax.Array, width: int, dtype: DTypeLike) -> jax.Array:
    """[B, T, D]: sin(pos / 10000^(2i/D)) and cos(…), interleaved (Vaswani et al. 2017, arXiv:1706.03762, §3.5)."""
    angle_BTF = pos_BT[..., None] * 10000.0 ** (-jnp.arange(0, width, 2, dtype) / width)
    pairs_BTFC = jnp.stack([jnp.sin(angle_BTF), jnp.cos(angle_BTF)], axis=-1)
    return pairs_BTFC.reshape(*pos_BT.shape, 2 * angle_BTF.shape[-1])[..., :width].astype(dtype)
