"""The mixer of Native Sparse Attention (Yuan et al. 2025, arXiv:2502.11089, §3)."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import recomputed
from jaxseq.mixers.attention import Attention, slots
from jaxseq.ops import _time, attention, compressed_attention


class NativeSparseState(NamedTuple):
    ring: attention.AttentionState  # of both the selected blocks and the window
    compressed: compressed_attention.CompressedAttentionState


class NativeSparseAttention(Attention):
    """y = (sum_c sigmoid(x w_c) y_c) W_O over three branches (eq. 5), with a gate per head and branch:

    - compressed: attention to the means of the document's complete blocks of `block` tokens
    - selected: attention to the tokens of `selected` blocks, the same for the query heads that share a key head: the query's own,
      the first, the one before its own, and those to which the compressed branch gives the largest probability
    - window: attention to the last `window` tokens

    q, k and v and their rotation are those of `attention`; all branches use them, as in flash-linear-attention. In the paper each
    branch has keys and values of its own, the compression is a learned map, and its blocks may overlap. Fields as in
    `attention`, without alibi, sinks and `cap`. The chosen blocks [G, B, T, A] are sown into 'intermediates' as 'choice'.
    """

    in_place: ClassVar[bool] = False
    quantizes: ClassVar[bool] = False
    window: int | None = 512
    block: int = 64
    selected: int = 16
    initial: str = "llama"

    @nn.nowrap
    def _sizes(self) -> tuple[int, int]:
        if self.alibi or self.sink or self.cap is not None:
            raise UserError("native sparse attention has no alibi, sinks or cap; leave them out")
        for name in ("window", "block", "selected"):
            if not getattr(self, name) or getattr(self, name) < 1:
                raise UserError(f"{name} of native sparse attention is {getattr(self, name)}; set it to a number of at least 1")
        return super()._sizes()

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> NativeSparseState:
        kv_heads, size = self._sizes()
        context, sizes = slots(context), (kv_heads, size, size)
        ring = attention.init_state(batch, context, *sizes, self.dtype)
        return NativeSparseState(ring, compressed_attention.init_state(batch, context, *sizes, self.block, self.dtype))

    @nn.nowrap
    def remaining_capacity(self, state: NativeSparseState) -> jax.Array:
        return state.ring.k_BGSK.shape[-2] - state.ring.count_B

    def _branches(self, q_BTHK, k_BTGK, v_BTGK, state: Any, call: Call):
        """(outputs of the three branches, the next state)."""
        ring, compressed = (None, None) if state is None else state
        scale = q_BTHK.shape[3] ** -0.5 if self.scale is None else self.scale
        blocks = {"block": self.block, "scale": scale}
        pos_BT = call.pos_BT
        index_BTGA = compressed_attention.select(q_BTHK, k_BTGK, self.selected, state=compressed, pos=pos_BT, **blocks)
        if not self.is_initializing():  # init must create parameters only
            self.sow("intermediates", "choice", jnp.moveaxis(index_BTGA, 2, 0))
        mean, compressed = call.op("compressed_attention")(q_BTHK, k_BTGK, v_BTGK, state=compressed, **blocks)
        near, _ = call.op("attention")(q_BTHK, k_BTGK, v_BTGK, state=ring, window=self.window, scale=scale)
        chosen, ring = call.op("block_sparse_attention")(q_BTHK, k_BTGK, v_BTGK, index_BTGA, state=ring, **blocks)
        return (mean, chosen, near), NativeSparseState(ring, compressed)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        q_BTHK, k_BTGK, v_BTGK = self._projected(x_BTD)
        q_BTHK, k_BTGK = (self._rotated(x, call) for x in (q_BTHK, k_BTGK))
        branches, state = self._branches(q_BTHK, k_BTGK, v_BTGK, state, call)

        def gated(gate_BTH3, mean, chosen, near):
            gate_BTH3 = jax.nn.sigmoid(gate_BTH3.astype(_time.accumulation_dtype(gate_BTH3)))
            a, b, c = jnp.split(gate_BTH3, 3, axis=-1)
            return (a * mean + b * chosen + c * near).astype(self.dtype)

        y_BTHK = recomputed(gated)(self._project(x_BTD, (self.heads, 3), "heads", "gates"), *branches)
        return Mixed(self._output(y_BTHK), state)
