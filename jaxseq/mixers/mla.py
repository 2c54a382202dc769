"""Multi-head latent attention: keys and values of all heads from one latent vector (DeepSeek-AI 2024, arXiv:2405.04434, §2.1)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq import weights
from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import Linear, Mixer, RMSNorm, on_matrix, param, rotate
from jaxseq.mixers import _init, _rotary
from jaxseq.mixers.attention import slots
from jaxseq.ops import attention


class MLAState(NamedTuple):
    """A ring buffer as in `attention`, with one vector per token for all heads."""

    latent_BSK: jax.Array  # c, then the rotated key r that all heads share
    count_B: jax.Array  # int32: tokens of the document so far


class LatentAttention(Mixer):
    """softmax attention of head h with keys (c W_k^h, r) and values c W_v^h, where (c, r) = x W_down, c normed, r rotated.

    Scores are computed in the space of c, q . (c W_k) = (q W_k^T) . c, and W_v is applied to the weighted sum of c. So the state
    has kv_rank + rotary_size numbers per token, whatever the number of heads, and all forms use it directly. With `query_rank`,
    queries are computed from a normed latent vector too. `rotary=False` gives the variant without positions of Kimi Linear
    (arXiv:2510.26692, §4). Initial values: normal with the same standard deviation for all kernels (transformers,
    DeepseekV3PreTrainedModel: initializer_range).
    """

    heads: int = 4
    kv_rank: int = 32  # of c
    query_rank: int | None = None  # default: queries come from x itself
    head_size: int = 16  # of the keys computed from c
    rotary_size: int = 8  # of the shared key r
    value_size: int | None = None  # default: head_size
    rotary: bool = True
    interleaved: bool = True  # pairs are (2i, 2i + 1)
    theta: float = 10000.0
    rope_scaling: str = "none"  # of the frequencies, for long contexts; it and the rest as in `attention`
    rope_factor: float = 1.0
    rope_context: int = 8192
    rope_slow: float = 1.0
    rope_fast: float = 4.0
    scale: float | None = None  # of the scores; default: 1 / sqrt(head_size + rotary_size)
    eps: float = 1e-6  # of the norms of c and of the queries' latent vector
    initial: str = "llama"  # initial values, see _init.RECIPES
    init_std: float | None = None  # for gpt2 and llama; default: 1 / sqrt(inputs)

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> MLAState:
        if self.rotary_size % 2:
            raise UserError(f"rotary positions rotate pairs of channels: make rotary_size {self.rotary_size} even")
        latent = jnp.zeros((batch, slots(context), self.kv_rank + self.rotary_size), self.dtype)
        return MLAState(latent, jnp.zeros((batch,), jnp.int32))

    @nn.nowrap
    def remaining_capacity(self, state: MLAState) -> jax.Array | None:
        return state.latent_BSK.shape[-2] - state.count_B

    def _up(self, name: str, size: int):
        """The kernel W_k or W_v, [kv_rank, heads, size]."""
        shape, axes = (self.kv_rank, self.heads, size), (None, "heads", None)
        return weights.dense(param(self, name, on_matrix(_init.inward(self), 1), shape, axes, contracts=(-3,)), self.dtype)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        rank, value_size = self.kv_rank, self.value_size or self.head_size
        init, size = _init.inward(self), self.head_size + self.rotary_size
        queries = x_BTD
        if self.query_rank:
            queries = Linear((self.query_rank,), ("embed", None), init_fn=init, dtype=self.dtype, name="q_down")(x_BTD)
            queries = RMSNorm(self.eps, self.dtype, name="q_norm")(queries)
        axes = (None if self.query_rank else "embed", "heads", None)
        q_BTHK = Linear((self.heads, size), axes, init_fn=init, dtype=self.dtype, name="q")(queries)
        down = Linear((rank + self.rotary_size,), ("embed", None), init_fn=init, dtype=self.dtype, name="kv_down")(x_BTD)
        c_BTR = RMSNorm(self.eps, self.dtype, name="kv_norm")(down[..., :rank])
        own_BTHK, turned_BTHK = q_BTHK[..., : self.head_size], q_BTHK[..., self.head_size :]
        shared_BT1K = down[:, :, None, rank:]
        if self.rotary:
            frequency_F = _rotary.frequencies(self, self.rotary_size)
            turned_BTHK, shared_BT1K = (rotate(x, call.pos_BT, frequency_F, self.interleaved) for x in (turned_BTHK, shared_BT1K))

        own_BTHR = jnp.einsum("bthk,rhk->bthr", own_BTHK, self._up("k_up", self.head_size))
        q_BTHR = jnp.concatenate([own_BTHR, turned_BTHK], axis=-1)
        latent_BT1K = jnp.concatenate([c_BTR[:, :, None], shared_BT1K], axis=-1)
        if state is not None:
            latent_B1SK = state.latent_BSK[:, None]
            state = attention.AttentionState(latent_B1SK, latent_B1SK[..., :rank], state.count_B)
        op = call.op("attention")
        scale = size**-0.5 if self.scale is None else self.scale
        y_BTHR, state = op(q_BTHR, latent_BT1K, c_BTR[:, :, None], state=state, window=None, scale=scale)
        y_BTHV = jnp.einsum("bthr,rhv->bthv", y_BTHR, self._up("v_up", value_size))
        out = Linear((self.width,), ("heads", None, "embed"), 2, init_fn=_init.outward(self), dtype=self.dtype, name="o")
        return Mixed(out(y_BTHV), MLAState(state.k_BGSK[:, 0], state.count_B))
