"""How different the features of a network's tokens are, layer by layer (Wang et al. 2023, arXiv:2312.17276, §3).

If attention makes all tokens alike, the features collapse; PanGu-pi is designed to prevent this. The measures work for any
language model and for any model made of blocks.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseq.blocks._block import Block
from jaxseq.models.lm import LM


class Diversity(NamedTuple):
    """One number per layer. If the model has an embedding, the first number is for its output."""

    diversity: np.ndarray  # relative_diversity, averaged over rows
    dimension: np.ndarray  # effective_dimension of all tokens together


def relative_diversity(h_BTD: jax.Array) -> jax.Array:
    """[B]: ||(I - 1 1^T / T) H||_F / ||H||_F, in [0, 1]: 0 when all tokens of a row are the same (§3.1, d_M).

    The numerator is the distance to the nearest matrix 1 x^T; the division makes layers of different scale comparable.
    """
    apart_BTD = h_BTD - jnp.mean(h_BTD, axis=1, keepdims=True)
    size_B = jnp.linalg.norm(h_BTD, axis=(1, 2))
    return jnp.linalg.norm(apart_BTD, axis=(1, 2)) / jnp.where(size_B > 0, size_B, 1)


def effective_dimension(h_ND: jax.Array, share: float = 0.8) -> jax.Array:
    """The fewest principal components with `share` of the variance of N vectors (§3.1, d(0.8)); 0 if there is no variance."""
    singular = jnp.linalg.svd(h_ND - jnp.mean(h_ND, axis=0), compute_uv=False)
    carried = jnp.cumsum(jnp.square(singular))
    total, rounding = carried[-1], 8 * jnp.finfo(h_ND.dtype).eps
    spread = total > rounding**2 * jnp.sum(jnp.square(h_ND))  # equal vectors leave only the rounding error of the mean
    return jnp.where(spread, jnp.sum(carried < share * total) + 1, 0)


def hidden_states(model: nn.Module, params: Any, *inputs: jax.Array, **options: Any) -> jax.Array:
    """[L, B, T, D]: the outputs of a language model's embedding and of each block, in order.

    model.apply({"params": params}, *inputs, **options) is run once; blocks are found at any depth of the model.
    """

    def seen(module: nn.Module, method: str) -> bool:
        return isinstance(module, Block) and method == "__call__" or isinstance(module, LM) and method == "embed"

    _, captured = model.apply({"params": params}, *inputs, capture_intermediates=seen, mutable=["intermediates"], **options)
    tree = captured["intermediates"]
    first = [x[None] for x in tree.pop("embed", ())]
    blocks = _outputs(tree)
    return jnp.concatenate([*first, *(x.reshape(-1, *x.shape[-3:]) for x in blocks)])


def _outputs(tree: Any) -> list:
    """The residual streams of all blocks in the tree of captured outputs, with blocks_2 before blocks_10."""
    if "__call__" in tree:
        return [result[0] for result in tree["__call__"]]
    number = lambda name: (int(name.rpartition("_")[2]) if name.rpartition("_")[2].isdigit() else -1, name)  # noqa: E731
    return [x for name in sorted(tree, key=number) for x in _outputs(tree[name])]


def diversity(
    model: nn.Module, params: Any, tokens: jax.Array, share: float = 0.8, skip: int = 1, form: str = "chunkwise"
) -> Diversity:
    """The diversity of a language model on tokens [B, T], one document per row, without padding.

    skip: number of first tokens per row that the dimension leaves out: they are outliers with most of the variance.
    """

    @jax.jit
    def measure(params, tokens):
        h_LBTD = hidden_states(model, params, tokens, form=form)
        h_LBTD = h_LBTD.astype(jnp.promote_types(h_LBTD.dtype, jnp.float32))
        rest_LND = h_LBTD[:, :, skip:].reshape(h_LBTD.shape[0], -1, h_LBTD.shape[-1])
        dimension_L = jax.lax.map(lambda h_ND: effective_dimension(h_ND, share), rest_LND)
        return jnp.mean(jax.vmap(relative_diversity)(h_LBTD), axis=1), dimension_L

    return Diversity(*map(np.asarray, measure(params, jnp.asarray(tokens, jnp.int32))))
