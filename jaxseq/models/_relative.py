"""T5's relative positions: a learned bias per head and bucket of distances (Raffel et al. 2020, arXiv:1910.10683, §2.1)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseq.layers import normal, param


@functools.cache
def bucket_of_distance(buckets: int, longest: int) -> np.ndarray:
    """[longest + 1] int32: bucket of each distance d. The first b/2 buckets hold one distance each, the others are log-spaced.

    For d >= b/2: floor(b/2 + b/2 log(d / (b/2)) / log(longest / (b/2))), at most b - 1, in float32, as in the released code.
    """
    exact, distance = buckets // 2, np.arange(longest + 1)
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(np.log(longest / exact))
    far = exact + (ratio * np.float32(buckets - exact)).astype(np.int32)
    return np.where(distance < exact, distance, np.minimum(far, buckets - 1)).astype(np.int32)


def bucket(query_BT: jax.Array, key_BS: jax.Array, buckets: int, longest: int, both_sides: bool) -> jax.Array:
    """Buckets [B, T, S] int32 from positions. With `both_sides` the second half of the buckets is for keys after the query;
    otherwise those keys are in bucket 0."""
    ahead_BTS = key_BS[:, None, :] - query_BT[:, :, None]
    side = buckets // 2 if both_sides else buckets
    distance_BTS = jnp.abs(ahead_BTS) if both_sides else jnp.maximum(-ahead_BTS, 0)
    found_BTS = jnp.asarray(bucket_of_distance(side, longest))[jnp.minimum(distance_BTS, longest)]
    return found_BTS + jnp.where(ahead_BTS > 0, side, 0) if both_sides else found_BTS


class RelativeBias(nn.Module):
    """bias_BHTS = table[bucket(key - query)], to be added to the scores of every layer of a stack."""

    heads: int
    buckets: int
    longest: int
    both_sides: bool
    std: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, query_BT: jax.Array, key_BS: jax.Array) -> jax.Array:
        table_NH = param(self, "table", normal(self.std), (self.buckets, self.heads), (None, "heads"), decay=False)
        found_BTS = bucket(query_BT, key_BS, self.buckets, self.longest, self.both_sides)
        return jnp.moveaxis(table_NH[found_BTS], 3, 1)
