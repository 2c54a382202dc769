"""Sequences of decreasing length and the attention between them, for the Funnel Transformer (Dai et al. 2020, arXiv:2006.03236,
§2.2 and appendix A.2.1)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq import compat
from jaxseq.layers import Initializer, LayerNorm, Linear, constrain, param
from jaxseq.models import _transformer
from jaxseq.ops import _time
from jaxseq.ops._attend import Keys, Score, attend

POOLS = ("mean", "max")


class Resolution(NamedTuple):
    """What attention knows of the T tokens of one resolution, besides their values."""

    document_BT: jax.Array  # number 1, 2, … of the document; 0: padding
    key_BT: jax.Array  # the document that may attend to it; 0: none
    types_BT: jax.Array  # segment types
    stride: int = 1  # tokens of the input between two neighbours

    def position_T(self) -> jax.Array:
        """Position of the first of the `stride` tokens of the input that each one stands for; for the row's first token as if it
        stood for as many, up to position 0."""
        return 1 - self.stride + self.stride * jnp.arange(self.document_BT.shape[1])


def pairs(x_BT: jax.Array) -> jax.Array:
    """[B, T, …] -> [B, ceil(T / 2), 2, …]: the first token twice, then the others two by two. The last token is dropped, so that
    even lengths are halved. For an odd T the last pair is one token twice."""
    doubled = jnp.concatenate([x_BT[:, :1], x_BT[:, :-1]], axis=1)
    if doubled.shape[1] % 2:
        doubled = jnp.concatenate([doubled, doubled[:, -1:]], axis=1)
    return doubled.reshape(x_BT.shape[0], -1, 2, *x_BT.shape[2:])


def pool(x_BTD: jax.Array, level: Resolution, kind: str) -> tuple[jax.Array, Resolution]:
    """(the mean or the largest value of the tokens of each pair, their level).

    Only the tokens of one document are pooled, that of the first token which is not padding. A pair with a token of another
    document, or with padding, is not attended to.
    """
    document_BTI, key_BTI, x_BTID = pairs(level.document_BT), pairs(level.key_BT), pairs(x_BTD)
    own_BT1 = jnp.where(document_BTI[:, :, :1] > 0, document_BTI[:, :, :1], document_BTI[:, :, 1:])
    same_BTI = document_BTI == own_BT1
    if kind == "mean":
        count_BT1 = jnp.sum(same_BTI, axis=2)[..., None].astype(x_BTD.dtype)
        x_BTD = jnp.sum(_time.select(same_BTI, x_BTID), axis=2) / count_BT1
    else:
        x_BTD = jnp.max(_time.select(same_BTI, x_BTID, -jnp.inf), axis=2)
    own_BT = own_BT1[:, :, 0]
    key_BT = jnp.where(jnp.all(key_BTI == own_BT1, axis=2), own_BT, 0)
    return x_BTD, Resolution(own_BT, key_BT, pairs(level.types_BT)[:, :, 0], 2 * level.stride)


def unpool(x_BSD: jax.Array, document_BS: jax.Array, document_BT: jax.Array, stride: int) -> jax.Array:
    """The value [B, T, D] of the pooled token of each token; zero if there is none or if it is of another document."""
    time = document_BT.shape[1]
    slot_T = (jnp.arange(time) + stride - 1) // stride
    there_T, slot_T = slot_T < x_BSD.shape[1], jnp.minimum(slot_T, x_BSD.shape[1] - 1)
    return _time.select(there_T & (document_BS[:, slot_T] == document_BT), x_BSD[:, slot_T])


class RelativeAttention(nn.Module):
    """y = softmax(score) v W_O + b_O over the tokens of the query's document, with

        sqrt(K) score_ij = (q_i + r_w) . k_j + [i, j > 0] ((q_i + r_r) . W_R e(p_i - p_j) + (q_i + r_s) . t_ij)

    for positions p and e(d) = (sin(d w), cos(d w)), w = 10000^(-2 n / D) (appendix A.2.1). t_ij is one of two vectors: for tokens
    of the same segment type and for others. The first token of a row has neither positions nor types.
    """

    width: int
    heads: int
    head_size: int
    relative_init: Initializer  # of the parameters in the equation with r, W_R and t
    init_fn: Initializer | None = None
    dropout: float = 0.0  # of the attention weights
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BTD: jax.Array, source_BSD: jax.Array, query: Resolution, key: Resolution, train: bool) -> jax.Array:
        shape, axes = (self.heads, self.head_size), ("embed", "heads", None)

        def project(x, name, bias):
            return Linear(shape, axes, 1, bias, self.init_fn, self.dtype, name=name)(x)

        q_BTHK, k_BSHK, v_BSHK = project(x_BTD, "q", False), project(source_BSD, "k", True), project(source_BSD, "v", True)
        acc, scale = _time.accumulation_dtype(x_BTD), self.head_size**-0.5
        own = functools.partial(param, self, init=self.relative_init, shape=shape, axes=("heads", None), decay=False)
        r_w, r_r, r_s = own("r_w"), own("r_r"), own("r_s")
        position_BHTS = self._position_scores((q_BTHK + r_r).astype(self.dtype), query, key, acc)
        type_BHTS = self._type_scores((q_BTHK + r_s).astype(self.dtype), query, key, acc)
        apart_TS = (jnp.arange(x_BTD.shape[1]) > 0)[:, None] & (jnp.arange(source_BSD.shape[1]) > 0)
        bias_BHTS = jnp.where(apart_TS, (position_BHTS + type_BHTS) * scale, 0)
        drop = nn.Dropout(self.dropout, deterministic=not train) if self.dropout else None
        sight = _transformer.same_document(query.document_BT, key.key_BT)
        keys = Keys(jnp.swapaxes(k_BSHK, 1, 2), jnp.swapaxes(v_BSHK, 1, 2), sight.number_BS)
        q_BTHK = (q_BTHK + r_w).astype(self.dtype)
        y_BTHK, _ = attend(q_BTHK, keys, sight.span, Score(scale, None, bias_BHTS, drop))
        out = Linear((self.width,), ("heads", None, "embed"), 2, True, self.init_fn, self.dtype, name="o")
        return out(y_BTHK.astype(self.dtype))

    def _position_scores(self, q_BTHK, query: Resolution, key: Resolution, acc) -> jax.Array:
        """[B, H, T, S]. Scores with all N distances between a query and a key, from which each pair takes its own."""
        far_TS = query.position_T()[:, None] - key.position_T()
        least, step = far_TS[0, -1], key.stride  # the strides of both are multiples of that of the keys
        count = (query.document_BT.shape[1] - 1) * (query.stride // key.stride) + key.document_BT.shape[1]
        distance_N1 = (least + step * jnp.arange(count))[:, None].astype(acc)
        half = self.width // 2
        angle_NF = distance_N1 / 10000 ** (jnp.arange(half, dtype=acc) / half)
        wave_ND = jnp.concatenate([jnp.sin(angle_NF), jnp.cos(angle_NF)], axis=1)
        shape, axes = (self.width, self.heads, self.head_size), ("embed", "heads", None)
        kernel_DHK = param(self, "r_kernel", self.relative_init, shape, axes)
        r_NHK = jnp.einsum("nd,dhk->nhk", wave_ND, kernel_DHK.astype(acc)).astype(self.dtype)
        scores_BHTN = compat.einsum("bthk,nhk->bhtn", q_BTHK, r_NHK, dtype=acc)
        return jnp.take_along_axis(scores_BHTN, ((far_TS - least) // step)[None, None], axis=3)

    def _type_scores(self, q_BTHK, query: Resolution, key: Resolution, acc) -> jax.Array:
        """[B, H, T, S]. Type 2, of [CLS], is the same as every type."""
        shape = (2, self.heads, self.head_size)
        other_HK, same_HK = param(self, "r_types", self.relative_init, shape, (None, "heads", None), decay=False)
        score = lambda r_HK: compat.einsum("bthk,hk->bht", q_BTHK, r_HK.astype(self.dtype), dtype=acc)[..., None]  # noqa: E731
        query_BT1, key_B1S = query.types_BT[:, :, None], key.types_BT[:, None]
        same_BTS = (query_BT1 == key_B1S) | (query_BT1 == 2) | (key_B1S == 2)
        return jnp.where(same_BTS[:, None], score(same_HK), score(other_HK))


class FunnelLayer(nn.Module):
    """x <- norm(x + attention(x, source)), x <- norm(x + mlp(x))."""

    width: int
    heads: int
    head_size: int
    hidden: int
    norm_eps: float
    activation: str
    relative_init: Initializer
    init_fn: Initializer
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BTD: jax.Array, source_BSD: jax.Array, query: Resolution, key: Resolution, train: bool) -> jax.Array:
        norms = {name: LayerNorm(self.norm_eps, self.dtype, name=f"norm_{name}") for name in ("attention", "mlp")}
        drop = nn.Dropout(self.dropout, deterministic=not train)
        sizes = self.width, self.heads, self.head_size
        attention = RelativeAttention(*sizes, self.relative_init, self.init_fn, self.dropout, self.dtype, name="attention")
        y_BTD = drop(attention(x_BTD, source_BSD, query, key, train))
        x_BTD = norms["attention"](constrain(x_BTD + y_BTD, ("batch", "time", None)))
        mlp = _transformer.FeedForward(
            self.width, self.hidden, self.activation, bias=True, init_fn=self.init_fn, dtype=self.dtype, name="mlp"
        )
        return norms["mlp"](constrain(x_BTD + drop(mlp(x_BTD, train)), ("batch", "time", None)))
