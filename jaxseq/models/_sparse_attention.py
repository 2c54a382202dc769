"""What the sparse attentions of encoders share: attention to chosen blocks of keys, and to or from some of the tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxseq import compat
from jaxseq.layers import recomputed
from jaxseq.models._transformer import same_document
from jaxseq.ops import _attend, _time
from jaxseq.ops._attend import Keys, Score

GROUPS = 16  # of query blocks that are computed one after another
CHUNK = 256  # tokens of a block where the number of tokens of a subset is not known when compiling: empty blocks are skipped


class Subset(NamedTuple):
    """Some tokens of each row, moved to its beginning: the tokens where `mask_BT` is true, at most N of them."""

    mask_BT: jax.Array
    index_BN: jax.Array  # of the tokens in the row, in order
    real_BN: jax.Array  # bool; the rest of the N are other tokens
    chunk: int | None  # see `jaxseq.ops._attend.attend`

    @classmethod
    def of(cls, mask_BT: jax.Array, most: int | None) -> "Subset":
        """most: the largest number of such tokens in a row; None: not known, and then only blocks that hold some are computed."""
        index_BN = jnp.argsort(~mask_BT, axis=1, stable=True)[:, :most]
        return cls(mask_BT, index_BN, take(mask_BT, index_BN), CHUNK if most is None else None)

    def take(self, x_BT: jax.Array) -> jax.Array:
        return take(x_BT, self.index_BN)

    def segments(self, segment_BT: jax.Array) -> jax.Array:
        """[B, N] the tokens' documents, 0 for other tokens."""
        return jnp.where(self.real_BN, self.take(segment_BT), 0)

    def put(self, x_BN: jax.Array, x_BT: jax.Array) -> jax.Array:
        """`x_BT` with `x_BN` at the tokens of this subset."""
        place_BT = jnp.cumsum(self.mask_BT, axis=1, dtype=jnp.int32) - 1
        return _time.select(self.mask_BT, take(x_BN, jnp.clip(place_BT, 0, x_BN.shape[1] - 1)), x_BT)


def take(x_BT: jax.Array, index_BN: jax.Array) -> jax.Array:
    """x [B, T, …] at these tokens of each row: [B, N, …]."""
    return jnp.take_along_axis(x_BT, _time.expand(index_BN, x_BT), axis=1, mode="clip")


def attend(
    q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHV: jax.Array, query_BT: jax.Array, key_BS: jax.Array, scale: float,
    chunk: int | None,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """`jaxseq.ops._attend.attend` of each query to all keys of its document; query_BT, key_BS: documents, 0 is none."""
    span, number_BS = same_document(query_BT, key_BS)
    keys = Keys(jnp.swapaxes(k_BSHK, 1, 2), jnp.swapaxes(v_BSHV, 1, 2), number_BS)
    return _attend.attend(q_BTHK, keys, span, Score(scale), chunk)


def to_blocks(x_BTHK: jax.Array, block: int) -> jax.Array:
    """[B, T, H, K] -> [B, H, Z, C, K], filled with zeros."""
    x_ZBCHK = _time.split_chunks(block, jnp.zeros(x_BTHK.shape[:2], jnp.int32), x_BTHK)[1]
    return x_ZBCHK.transpose(1, 3, 0, 2, 4)


def from_blocks(x_BHZCK: jax.Array, time: int) -> jax.Array:
    """Inverse of `to_blocks`; also of [B, H, Z, C]."""
    return _time.join_chunks(jnp.moveaxis(jnp.moveaxis(x_BHZCK, 1, 3), 1, 0), time)


def attend_blocks(
    q_BHZCK: jax.Array, k_BHUJK: jax.Array, v_BHUJV: jax.Array, index_BHZA: jax.Array, bias_BHZCS: jax.Array, scale: float
) -> tuple[jax.Array, jax.Array]:
    """(y [B, H, Z, C, V], lse [B, H, Z, C]) in the accumulation dtype: block z of queries attends to A chosen blocks of keys.

        y_c = sum_s exp(score_cs - lse_c) v_s,   score_cs = bias_cs + scale q_c . k_s,   lse_c = log sum_s exp(score_cs)

    S = A J keys, those of block index_a at a J to (a + 1) J - 1. A block that is chosen twice counts twice. bias: -inf where a
    key is not seen, or bool, whether it is seen; a query that sees no key has y = 0 and lse = -inf. The first two axes of `index`
    and `bias` may be 1, and the query axis of `bias`.

    All products are those of Z C S scores. GROUPS groups of query blocks follow one another, so a part of the chosen keys is
    copied at a time; the backward pass copies them again and stores Z C S weights.
    """
    blocks = index_BHZA.shape[2]

    def group(row):
        index, q, bias = (jnp.moveaxis(x, 1, 2) for x in row)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 2, 1), _attend_group(q, k_BHUJK, v_BHUJV, index, bias, scale))

    rows = (jnp.moveaxis(x, 2, 1) for x in (index_BHZA, q_BHZCK, bias_BHZCS))
    found = jax.lax.map(group, _time.split_chunks(-(-blocks // GROUPS), *rows))  # indices of added blocks are -1: clipped to 0
    y_BHZCV, lse_BHZC = (jnp.moveaxis(_time.join_chunks(x, blocks), 1, 2) for x in found)
    return y_BHZCV, lse_BHZC


def _attend_group(q_BHZCK, k_BHUJK, v_BHUJV, index_BHZA, bias_BHZCS, scale: float) -> tuple[jax.Array, jax.Array]:
    """`attend_blocks` at once."""
    acc = _time.accumulation_dtype(q_BHZCK, v_BHUJV)
    flat_BHN11 = jax.lax.collapse(index_BHZA, 2)[..., None, None]

    def chosen(x_BHUJK):
        x_BHNJK = jnp.take_along_axis(x_BHUJK, flat_BHN11, axis=2, mode="clip")
        return x_BHNJK.reshape(*x_BHUJK.shape[:2], index_BHZA.shape[2], -1, x_BHUJK.shape[4])

    def products(q_BHZCK, k_BHUJK):
        return compat.einsum("bhzck,bhzsk->bhzcs", q_BHZCK, chosen(k_BHUJK), dtype=acc)

    def sums(p_BHZCS, v_BHUJV):
        return compat.einsum("bhzcs,bhzsv->bhzcv", p_BHZCS.astype(v_BHUJV.dtype), chosen(v_BHUJV), dtype=acc)

    if bias_BHZCS.dtype == bool:
        bias_BHZCS = jnp.where(bias_BHZCS, 0.0, -jnp.inf)
    scores = recomputed(products)(q_BHZCK, k_BHUJK) * scale + bias_BHZCS
    top_BHZC = jax.lax.stop_gradient(jnp.max(scores, axis=-1))  # the result does not depend on it
    top_BHZC = jnp.where(jnp.isneginf(top_BHZC), 0, top_BHZC)
    p_BHZCS = jnp.exp(scores - top_BHZC[..., None])
    total_BHZC = jnp.sum(p_BHZCS, axis=-1)
    some_BHZC = total_BHZC > 0
    total_BHZC = jnp.where(some_BHZC, total_BHZC, 1)
    y_BHZCV = recomputed(sums)(p_BHZCS, v_BHUJV)
    return y_BHZCV / total_BHZC[..., None], jnp.where(some_BHZC, top_BHZC + jnp.log(total_BHZC), -jnp.inf)
