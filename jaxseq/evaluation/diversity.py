"""How far apart a network keeps its tokens, layer by layer (Wang et al. 2023, arXiv:2312.17276, §3).

Where attention makes all tokens alike the features collapse; PanGu-pi's parts are there to prevent it. Any language model can
be asked, and any model made of blocks.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseq.blocks._block import Block
from jaxseq.models.lm import LM


class Diversity(NamedTuple):
    """One number a layer; the first is the embedding's, in front of all layers, where the model has one."""

    diversity: np.ndarray  # relative_diversity, the mean over rows
    dimension: np.ndarray  # effective_dimension of all tokens together


def relative_diversity(h_BTD: jax.Array) -> jax.Array:
    """[B]: ||(I - 1 1^T / T) H||_F / ||H||_F, in [0, 1]: 0 when all tokens of a row are the same (§3.1, d_M).

    The numerator is the distance to the nearest matrix 1 x^T; dividing makes layers of different size comparable.
    """
    apart_BTD = h_BTD - jnp.mean(h_BTD, axis=1, keepdims=True)
    size_B = jnp.linalg.norm(h_BTD, axis=(1, 2))
    return jnp.linalg.norm(apart_BTD, axis=(1, 2)) / jnp.where(size_B > 0, size_B, 1)


def effective_dimension(h_ND: jax.Array, share: float = 0.8) -> jax.Array:
    """The fewest principal components that carry `share` of the variance of N vectors (§3.1, d(0.8)); 0 of no variance."""
    singular = jnp.linalg.svd(h_ND - jnp.mean(h_ND, axis=0), compute_uv=False)
    carried = jnp.cumsum(jnp.square(singular))
    total, rounding = carried[-1], 8 * jnp.finfo(h_ND.dtype).eps
    spread = total > rounding**2 * jnp.sum(jnp.square(h_ND))  # what is left of equal vectors is the mean's rounding
    return jnp.where(spread, jnp.sum(carried < share * total) + 1, 0)


def hidden_states(model: nn.Module, params: Any, *inputs: jax.Array, **options: Any) -> jax.Array:
    """[L, B, T, D]: what the embedding of a language model and each block give on, the first layer first.

    model.apply({"params": params}, *inputs, **options) is run once; blocks are found wherever they stand.
    """

    def seen(module: nn.Module, method: str) -> bool:
        return isinstance(module, Block) and method == "__call__" or isinstance(module, LM) and method == "embed"

    _, captured = model.apply({"params": params}, *inputs, capture_intermediates=seen, mutable=["intermediates"], **options)
    tree = captured["intermediates"]
    first = [x[None] for x, _ in tree.pop("embed", ())]
    blocks = _outputs(tree)
    return jnp.concatenate([*first, *(x.reshape(-1, *x.shape[-3:]) for x in blocks)])


def _outputs(tree: Any) -> list:
    """The residual streams of all blocks in a tree of what was captured, blocks_2 in front of blocks_10."""
    if "__call__" in tree:
        return [result[0] for result in tree["__call__"]]
    number = lambda name: (int(name.rpartition("_")[2]) if name.rpartition("_")[2].isdigit() else -1, name)  # noqa: E731
    return [x for name in sorted(tree, key=number) for x in _outputs(tree[name])]


def diversity(
    model: nn.Module, params: Any, tokens: jax.Array, share: float = 0.8, skip: int = 1, form: str = "chunkwise"
) -> Diversity:
    """Of a language model on tokens [B, T], a document a row and no padding.

    skip: first tokens of a row that do not count for the dimension; they are outliers that would carry most of the variance.
    """

    @jax.jit
    def measure(params, tokens):
        h_LBTD = hidden_states(model, params, tokens, form=form)
        h_LBTD = h_LBTD.astype(jnp.promote_types(h_LBTD.dtype, jnp.float32))
        rest_LND = h_LBTD[:, :, skip:].reshape(h_LBTD.shape[0], -1, h_LBTD.shape[-1])
        dimension_L = jax.lax.map(lambda h_ND: effective_dimension(h_ND, share), rest_LND)
        return jnp.mean(jax.vmap(relative_diversity)(h_LBTD), axis=1), dimension_L

    return Diversity(*map(np.asarray, measure(params, jnp.asarray(tokens, jnp.int32))))
