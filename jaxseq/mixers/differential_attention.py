"""Differential attention (Ye et al. 2024, arXiv:2410.05258): the difference of two softmax attentions."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call
from jaxseq.errors import UserError
from jaxseq.layers import Units, normal, param, rms_normalize
from jaxseq.mixers.attention import Attention
from jaxseq.ops import _time


class DifferentialAttention(Attention):
    """y = (1 - c) rms_norm((softmax(q1 k1^T / sqrt(K)) - lambda softmax(q2 k2^T / sqrt(K))) [v1, v2]) W_O

    with lambda = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + c and c = 0.8 - 0.6 exp(-0.3 l) in layer l = 0, 1, ….
    Both attentions see the same values, so noise that they share cancels. The norm is over a pair's 2 K channels, without a
    scale (§2.1, equations 1 to 3). Layers are the mixers with a state, of any kind.

    The H heads of q and the G heads of k and v are two halves, as in transformers' DiffLlama: head h forms a pair with
    h + H / 2. The paper has H / 2 heads in this count. Fields as in `attention`, without alibi and sinks. The initial values
    of the lambda vectors are normal with 0.1; the others are those of `attention`.
    """

    numbered: ClassVar[bool] = True

    eps: float = 1e-5  # of the norm
    lambda_std: float = 0.1

    @nn.nowrap
    def _sizes(self) -> tuple[int, int]:
        kv_heads, size = super()._sizes()
        if kv_heads % 2:
            raise UserError(f"differential attention pairs its heads: kv_heads {kv_heads} must be even")
        if self.alibi or self.sink:
            raise UserError("differential attention has neither alibi nor sinks; set both to false")
        return kv_heads, size

    @nn.nowrap
    def _state_sizes(self) -> tuple[int, int, int]:
        kv_heads, size = self._sizes()
        return kv_heads // 2, 2 * size, 2 * size

    @nn.nowrap
    def units(self, kind: str) -> Units | str:
        return "the heads of differential attention are pairs" if kind == "heads" else super().units(kind)

    def _attend(self, q_BTHK, k_BTGK, v_BTGV, state, call: Call, limits: dict[str, Any]):
        """One call of the op for both attentions: the keys of a pair are concatenated, and each query is zero at those of the
        other head. So the state stores every key and value once, as in `attention`."""
        first, second = jnp.split(q_BTHK, 2, axis=2)
        zeros = jnp.zeros_like(first)
        q_BTH2V = jnp.stack([jnp.concatenate([first, zeros], -1), jnp.concatenate([zeros, second], -1)], axis=3)
        k_BTGV, v_BTGV = (jnp.concatenate(jnp.split(x, 2, axis=2), axis=-1) for x in (k_BTGK, v_BTGV))
        q_BTHV = q_BTH2V.reshape(*q_BTHK.shape[:3], q_BTH2V.shape[-1])
        y_BTHV, state = super()._attend(q_BTHV, k_BTGV, v_BTGV, state, call, limits)
        y_BTH2V = y_BTHV.reshape(q_BTH2V.shape).astype(_time.accumulation_dtype(y_BTHV))
        c = 0.8 - 0.6 * jnp.exp(-0.3 * self.place(call)[0])
        y_BTHV = y_BTH2V[:, :, :, 0] - self._lambda(q_BTHK.shape[-1], c) * y_BTH2V[:, :, :, 1]
        return ((1 - c) * rms_normalize(y_BTHV, self.eps)).astype(q_BTHK.dtype).reshape(q_BTHK.shape), state

    def _lambda(self, size: int, c: jax.Array) -> jax.Array:
        def vector(name):
            return param(self, name, normal(self.lambda_std), (size,), (None,), decay=False)

        q1, k1, q2, k2 = (vector(f"lambda_{name}") for name in ("q1", "k1", "q2", "k2"))
        return jnp.exp(jnp.vdot(q1, k1)) - jnp.exp(jnp.vdot(q2, k2)) + c
