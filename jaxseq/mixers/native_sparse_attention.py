"""The mixer of Native Sparse Attention (Yuan et al. 2025, arXiv:2502.11089, §3)."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import fan_in, param, recomputed
from jaxseq.mixers.attention import Attention, slots
from jaxseq.ops import _time, attention, compressed_attention


class NativeSparseState(NamedTuple):
    ring: attention.AttentionState  # of the selected blocks, and of the window unless the branches are `separate`
    compressed: compressed_attention.CompressedAttentionState
    window: Any  # with `separate`: the ring buffer of the window; else ()


class NativeSparseAttention(Attention):
    """y = (sum_c sigmoid(x w_c) y_c) W_O over three branches (eq. 5), with a gate per head and branch:

    - compressed: attention to the means of the document's complete blocks of `block` tokens
    - selected: attention to the tokens of `selected` blocks, the same for the query heads that share a key head: the query's own,
      the first, the one before its own, and those to which the compressed branch gives the largest probability
    - window: attention to the last `window` tokens

    q, k and v and their rotation are those of `attention`; by default all branches use them, as in flash-linear-attention. The
    paper has three options more:

    - `learned`: blocks are compressed by a perceptron of their tokens and places, see `compressed_attention` (eq. 7)
    - `compressed_block` and `stride`: blocks of so many tokens are compressed, one every `stride` tokens; blocks of `block`
      tokens are selected by the scores of those that they overlap (eq. 9). The paper has 32, 16 and 64
    - `separate`: each branch has keys and values of its own

    Fields as in `attention`, without alibi, sinks and `cap`. The chosen blocks [G, B, T, A] are sown into 'intermediates' as
    'choice'.
    """

    in_place: ClassVar[bool] = False
    window: int | None = 512
    block: int = 64
    selected: int = 16
    learned: bool = False
    hidden: int | None = None  # of the perceptron; default: head_size
    compressed_block: int | None = None  # default: block
    stride: int | None = None  # default: compressed_block
    separate: bool = False
    initial: str = "llama"

    @nn.nowrap
    def _sizes(self) -> tuple[int, int]:
        if self.alibi or self.sink or self.cap is not None:
            raise UserError("native sparse attention has no alibi, sinks or cap; leave them out")
        for name in ("window", "block", "selected"):
            if not getattr(self, name) or getattr(self, name) < 1:
                raise UserError(f"{name} of native sparse attention is {getattr(self, name)}; set it to a number of at least 1")
        block, stride = self._compressed()
        if not 1 <= stride <= block <= self.block or block % stride or self.block % stride:
            raise UserError(
                f"native sparse attention compresses blocks of compressed_block={block} tokens every stride={stride}: both must "
                f"be at most block={self.block}, and stride must divide both"
            )
        return super()._sizes()

    @nn.nowrap
    def _compressed(self) -> tuple[int, int]:
        """(tokens of a compressed block, tokens between the beginnings of two)."""
        block = self.compressed_block or self.block
        return block, self.stride or block

    @nn.nowrap
    def why_no_ring(self) -> str:
        return "the branches of native sparse attention read their rings themselves"

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> NativeSparseState:
        kv_heads, size = self._sizes()
        sizes, (block, stride) = (kv_heads, size, size), self._compressed()
        ring = attention.init_state(batch, slots(context), *sizes, self.dtype)
        window = attention.init_state(batch, self.window or 0, *sizes, self.dtype) if self.separate else ()
        compressed = compressed_attention.init_state(batch, slots(context), *sizes, block, self.dtype, stride)
        return NativeSparseState(ring, compressed, window)

    @nn.nowrap
    def remaining_capacity(self, state: NativeSparseState) -> jax.Array:
        return state.ring.k_BGSK.shape[-2] - state.ring.count_B

    def _compression(self, size: int) -> compressed_attention.Compression:
        block, _ = self._compressed()
        hidden = self.hidden or size

        def perceptron(name):
            place_JK = param(self, f"{name}_place", nn.initializers.zeros, (block, size), (None, None), decay=False)
            in_JKF = param(self, f"{name}_in", fan_in(), (block, size, hidden), (None, None, None))
            out_FK = param(self, f"{name}_out", fan_in(), (hidden, size), (None, None))
            return compressed_attention.Perceptron(place_JK, in_JKF, out_FK)

        return compressed_attention.Compression(perceptron("compress_k"), perceptron("compress_v"))

    def _keys_values(self, x_BTD: jax.Array, own: tuple[jax.Array, jax.Array], branch: str, call: Call) -> tuple[jax.Array, ...]:
        """k and v of a branch: `own`, those of the compressed one, or with `separate` maps of their own."""
        if not self.separate:
            return own
        shape = own[0].shape[2:]
        k_BTGK, v_BTGK = (self._project(x_BTD, shape, "kv_heads", f"{name}_{branch}", self.bias) for name in "kv")
        return self._rotated(k_BTGK, call), v_BTGK

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        q_BTHK, k_BTGK, v_BTGK = self._projected(x_BTD)
        q_BTHK, k_BTGK = (self._rotated(x, call) for x in (q_BTHK, k_BTGK))
        ring, compressed, window = (None, None, None) if state is None else state
        scale, own, (block, stride) = self._scale(), (k_BTGK, v_BTGK), self._compressed()
        blocks = {"block": block, "stride": stride, "scale": scale}
        blocks |= self._compression(k_BTGK.shape[3]).maps() if self.learned else {}
        options = blocks | {"state": compressed, "pos": call.pos_BT, "chosen": self.block}
        index_BTGA = compressed_attention.select(q_BTHK, k_BTGK, self.selected, **options)
        if not self.is_initializing():  # init must create parameters only
            self.sow("intermediates", "choice", jnp.moveaxis(index_BTGA, 2, 0))
        mean, compressed = call.op("compressed_attention")(q_BTHK, *own, state=compressed, **blocks)
        near_state, near_kv = window if self.separate else ring, self._keys_values(x_BTD, own, "window", call)
        near, window = call.op("attention")(q_BTHK, *near_kv, state=near_state, window=self.window, scale=scale)
        chosen_kv = self._keys_values(x_BTD, own, "selected", call)
        chosen, ring = call.op("block_sparse_attention")(
            q_BTHK, *chosen_kv, index_BTGA, state=ring, block=self.block, scale=scale
        )
        y_BTHK = self._gated_sum(x_BTD, mean, chosen, near)
        return Mixed(self._output(y_BTHK), NativeSparseState(ring, compressed, window if self.separate else ()))

    def _gated_sum(self, x_BTD: jax.Array, *branches: jax.Array) -> jax.Array:
        def gated(gate_BTH3, mean, chosen, near):
            gate_BTH3 = jax.nn.sigmoid(gate_BTH3.astype(_time.accumulation_dtype(gate_BTH3)))
            a, b, c = jnp.split(gate_BTH3, 3, axis=-1)
            return (a * mean + b * chosen + c * near).astype(self.dtype)

        return recomputed(gated)(self._project(x_BTD, (self.heads, 3), "heads", "gates"), *branches)
