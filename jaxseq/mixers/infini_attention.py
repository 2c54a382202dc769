"""Attention to segments, with a memory of fixed size for all earlier ones (Infini-attention, Munkhdalai et al. 2024,
arXiv:2404.07143)."""

from typing import Any, ClassVar

import jax
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import param
from jaxseq.mixers.attention import Attention
from jaxseq.ops import infini_attention


class InfiniAttention(Attention):
    """y = infini_attention(q, k, v, r, w) W_O with q, k and v as in `attention`, and r and w the queries and keys before their
    rotation: the memory does not depend on positions (§2.1). The gate between memory and segment is a number per head, initially
    sigmoid(0) = 1/2, without weight decay.

    The state has the last `segment` tokens at most, and K (V + 1) numbers twice for each key head, whatever the length of the
    document. Fields as in `attention`, without window, alibi, sinks and `cap`.
    """

    in_place: ClassVar[bool] = False
    segment: int = 2048
    delta: bool = True  # what the memory already holds for a key is subtracted from its value (eq. 8)

    @nn.nowrap
    def _sizes(self) -> tuple[int, int]:
        if self.alibi or self.sink or self.cap is not None or self.window is not None:
            raise UserError("infini-attention has no window, alibi, sinks or cap; leave them out")
        if self.segment < 1:
            raise UserError(f"segment of infini-attention is {self.segment}; set it to a number of tokens of at least 1")
        return super()._sizes()

    @nn.nowrap
    def why_no_ring(self) -> str:
        return "the memory is written from the keys and values of its segment"

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> infini_attention.InfiniState:
        kv_heads, size = self._sizes()
        return infini_attention.init_state(batch, self.segment, kv_heads, size, size, dtype=self.dtype)

    @nn.nowrap
    def remaining_capacity(self, state: infini_attention.InfiniState) -> None:
        return None

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        q_BTHK, k_BTGK, v_BTGK = self._projected(x_BTD)
        gate_H = param(self, "gate", nn.initializers.zeros, (self.heads,), ("heads",), decay=False)
        turned = (self._rotated(x, call) for x in (q_BTHK, k_BTGK))
        options = {"gate_H": gate_H, "segment": self.segment, "delta": self.delta, "scale": self._scale()}
        y_BTHK, state = call.op("infini_attention")(*turned, v_BTGK, q_BTHK, k_BTGK, state=state, **options)
        return Mixed(self._output(y_BTHK), state)
