"""DeepSeek Sparse Attention (DeepSeek-AI 2025, DeepSeek-V3.2, arXiv:2512.02556, §2.1): an indexer chooses the tokens."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import LayerNorm, Linear
from jaxseq.mixers import _init
from jaxseq.mixers.attention import Attention, slots
from jaxseq.ops import _indexer, _time, attention


class DeepSeekSparseState(NamedTuple):
    ring: attention.AttentionState
    index_BSK: jax.Array  # the indexer's keys, in the slots of the ring


class DeepSeekSparseAttention(Attention):
    """y_t = sum_s softmax_s(q_t . k_s / sqrt(K)) v_s W_O over the `selected` tokens of the document with the largest

        I_ts = sum_i w_ti relu(q'_ti . k'_s)    (eq. 1)

    q', k' (normed by LayerNorm, rotated) and w are maps of the layer's input: `index_heads` queries and one key of `index_size`
    channels, and a weight per head, times 1 / sqrt(index_heads index_size) as in the released code. All heads attend to the same
    tokens. With at least T tokens selected it is `attention`.

    The indexer is trained by `index_loss` times the mean over tokens of KL(p_t || softmax(I_t)) over the selected tokens, where p
    is the mean of the heads' probabilities (eq. 4): sown into 'losses'. Its gradient reaches the indexer alone, and no other
    gradient does; to begin with all tokens selected is the paper's warm-up (eq. 3).

    In the paper the attention is `mla` in the space of its latent vectors; here it is `attention` with its q, k and v. Fields as
    there, without window, alibi, sinks and `cap`. The chosen tokens [B, T, A] are sown into 'intermediates' as 'choice'.
    """

    in_place: ClassVar[bool] = False
    selected: int = 2048
    index_heads: int = 4
    index_size: int = 32
    index_loss: float = 1.0

    @nn.nowrap
    def _sizes(self) -> tuple[int, int]:
        if self.alibi or self.sink or self.cap is not None or self.window is not None:
            raise UserError("DeepSeek sparse attention has no window, alibi, sinks or cap; leave them out")
        for name in ("selected", "index_heads", "index_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} of DeepSeek sparse attention is {getattr(self, name)}; set it to at least 1")
        return super()._sizes()

    @nn.nowrap
    def why_no_ring(self) -> str:
        return "chosen keys are read where they are stored, in the model's dtype"

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> DeepSeekSparseState:
        ring = attention.init_state(batch, slots(context), *self._state_sizes(), self.dtype)
        return DeepSeekSparseState(ring, jnp.zeros((batch, slots(context), self.index_size), self.dtype))

    @nn.nowrap
    def remaining_capacity(self, state: DeepSeekSparseState) -> jax.Array:
        return state.ring.k_BGSK.shape[-2] - state.ring.count_B

    def _indexer(self, x_BTD: jax.Array, call: Call) -> tuple[_indexer.Indexer, jax.Array]:
        """(the indexer, computed from an input without gradient (§2.1.1); its keys for the state, whose gradient is complete)."""

        def linear(shape, name, dtype=self.dtype):
            axes = ("embed", None, None)[: 1 + len(shape)]
            return Linear(shape, axes, init_fn=_init.inward(self), dtype=dtype, name=f"index_{name}")

        key, norm = linear((self.index_size,), "k"), LayerNorm(dtype=self.dtype, name="index_norm")
        keys = lambda x_BTD: self._rotated(norm(key(x_BTD))[:, :, None], call)[:, :, 0]  # noqa: E731
        stopped_BTD = jax.lax.stop_gradient(x_BTD)
        q_BTIK = self._rotated(linear((self.index_heads, self.index_size), "q")(stopped_BTD), call)
        weight_BTI = linear((self.index_heads,), "weight", _time.accumulation_dtype(x_BTD))(stopped_BTD)
        weight_BTI *= (self.index_heads * self.index_size) ** -0.5
        return _indexer.Indexer(q_BTIK, keys(stopped_BTD), weight_BTI), keys(x_BTD)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        q_BTHK, k_BTGK, v_BTGK = self._projected(x_BTD)
        (q_BTHK, k_BTGK), scale = (self._rotated(x, call) for x in (q_BTHK, k_BTGK)), self._scale()
        (indexer, k_BTK), pos_BT = self._indexer(x_BTD, call), call.pos_BT
        main, stored = (None, None) if state is None else (state.ring, _indexer.ring(state.index_BSK, state.ring.count_B))
        index_BTA = _indexer.select(indexer, self.selected, state=stored, pos=pos_BT)
        if not self.is_initializing():  # init must create parameters only
            self.sow("intermediates", "choice", index_BTA)
        if self.index_loss and not self.is_initializing() and self.is_mutable_collection("losses"):
            states = {"state": stored, "main": main}
            loss_BT = _indexer.divergence(indexer, index_BTA, q_BTHK, k_BTGK, scale=scale, pos=pos_BT, **states)
            tokens = jnp.maximum(jnp.sum(_time.valid(pos_BT)), 1)
            self.sow("losses", "indexer", self.index_loss * jnp.sum(loss_BT) / tokens)
        op = call.op("block_sparse_attention")
        y_BTHK, ring = op(q_BTHK, k_BTGK, v_BTGK, index_BTA[:, :, None], state=main, block=1, scale=scale)
        state = DeepSeekSparseState(ring, self._next_keys(k_BTK, state, pos_BT))
        return Mixed(self._output(y_BTHK), state)

    def _next_keys(self, k_BTK: jax.Array, state: DeepSeekSparseState | None, pos_BT: jax.Array) -> jax.Array:
        batch, time = pos_BT.shape
        before = self.init_state(batch, time) if state is None else state
        return _indexer.next_keys(before.index_BSK, before.ring.count_B, k_BTK, pos_BT) if time else before.index_BSK
