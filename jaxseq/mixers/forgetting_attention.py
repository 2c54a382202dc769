"""The mixer of the Forgetting Transformer, FoX (Lin et al. 2025, arXiv:2503.02130, §3)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import Linear, Mixer, RMSNorm, Units, param, recomputed, rms_normalize
from jaxseq.mixers import _init
from jaxseq.mixers.attention import slots
from jaxseq.ops import _time, forgetting_attention, token_shift


class ForgettingMixerState(NamedTuple):
    attention: forgetting_attention.ForgettingAttentionState
    shift: Any  # with `kv_shift`: the last token's projected key and value of every head, concatenated; else ()


class ForgettingAttention(Mixer):
    """y = forgetting_attention(x W_Q, x W_K, x W_V, log sigmoid(x w_f + b_f)) W_O, without positions.

    The defaults are FoX (LLaMA). FoX (Pro) has all four options:

    - `qk_norm`: RMSNorm over each head of q and k; all heads share the scales, as in the released checkpoints
    - `output_norm`: RMSNorm over each head of the output, with a scale for every channel of every head
    - `output_gate`: the output (after its norm) times sigmoid(x W_G)
    - `kv_shift`: each key is a k_{t-1} + (1 - a) k_t with a = sigmoid(x w_a) for each key head; values likewise, with their own a

    Initial values: normal with the same standard deviation for all kernels, b_f zero (released code: initializer_range). The
    released code has neither grouped keys and values nor a window.
    """

    heads: int = 4
    kv_heads: int | None = None  # default: heads
    head_size: int | None = None  # default: width / heads
    window: int | None = None  # number of visible tokens, including the query's own; default: all
    qk_norm: bool = False
    output_norm: bool = False
    output_gate: bool = False
    kv_shift: bool = False
    eps: float = 1e-6  # of the norms
    initial: str = "llama"  # initial values, see _init.RECIPES
    init_std: float | None = None  # for gpt2 and llama; default: 1 / sqrt(inputs)

    @nn.nowrap
    def _sizes(self) -> tuple[int, int]:
        kv_heads = self.kv_heads or self.heads
        if self.heads % kv_heads:
            raise UserError(f"{self.heads} query heads cannot share {kv_heads} key/value heads; make kv_heads a divisor")
        if not self.head_size and self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of {self.heads} heads; change one, or set head_size")
        return kv_heads, self.head_size or self.width // self.heads

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> ForgettingMixerState:
        kv_heads, size = self._sizes()
        shift = token_shift.init_state(batch, 2 * kv_heads * size, self.dtype) if self.kv_shift else ()
        sizes = self.window or slots(context), self.heads, kv_heads, size, size
        return ForgettingMixerState(forgetting_attention.init_state(batch, *sizes, self.dtype), shift)

    @nn.nowrap
    def remaining_capacity(self, state: ForgettingMixerState) -> jax.Array | None:
        ring = state.attention.ring
        return None if self.window else ring.k_BGSK.shape[-2] - ring.count_B

    @nn.nowrap
    def units(self, kind: str) -> Units | str:
        if kind != "heads":
            return super().units(kind)
        kv_heads, size = self._sizes()
        queries = self.heads // kv_heads
        return Units(kv_heads, ("heads", "kv_heads"), lambda n: {"heads": n * queries, "kv_heads": n, "head_size": size})

    def _project(self, x_BTD: jax.Array, shape: tuple[int, ...], axis: str, name: str, bias: bool = False) -> jax.Array:
        axes = ("embed", axis, None)[: 1 + len(shape)]
        return Linear(shape, axes, bias=bias, init_fn=_init.inward(self), dtype=self.dtype, name=name)(x_BTD)

    def _shifted(self, x_BTD, k_BTGK, v_BTGK, state: Any, call: Call):
        """(k, v, state): a mixture of each token's key and value with those of the token before it."""
        kv_BTPGK = jnp.stack([k_BTGK, v_BTGK], axis=2)
        last_BTD, state = call.op("token_shift")(jax.lax.collapse(kv_BTPGK, 2), state=state)
        a_BTPG = jnp.stack([self._project(x_BTD, k_BTGK.shape[2:3], "kv_heads", f"{name}_shift") for name in "kv"], axis=2)

        def mix(kv, last, a):
            a = jax.nn.sigmoid(a.astype(_time.accumulation_dtype(a)))[..., None]
            return (a * last + (1 - a) * kv).astype(kv.dtype)

        kv_BTPGK = recomputed(mix)(kv_BTPGK, last_BTD.reshape(kv_BTPGK.shape), a_BTPG)
        return kv_BTPGK[:, :, 0], kv_BTPGK[:, :, 1], state

    def _output(self, x_BTD, y_BTHK) -> jax.Array:
        """The heads' output, normed and gated as the options say."""
        scale_HK, gate_BTHK, shape = None, None, y_BTHK.shape[2:]
        if self.output_norm:
            scale_HK = param(self, "norm_scale", nn.initializers.ones, shape, ("heads", None), decay=False)
        if self.output_gate:
            gate_BTHK = self._project(x_BTD, shape, "heads", "g")

        def normed_and_gated(y, scale_HK, gate):
            y = y if scale_HK is None else rms_normalize(y, self.eps) * scale_HK
            return (y if gate is None else y * jax.nn.sigmoid(gate)).astype(self.dtype)

        return recomputed(normed_and_gated)(y_BTHK, scale_HK, gate_BTHK)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        kv_heads, size = self._sizes()
        state, shift = (None, None) if state is None else state
        q_BTHK = self._project(x_BTD, (self.heads, size), "heads", "q")
        k_BTGK, v_BTGK = (self._project(x_BTD, (kv_heads, size), "kv_heads", name) for name in "kv")
        if self.kv_shift:
            k_BTGK, v_BTGK, shift = self._shifted(x_BTD, k_BTGK, v_BTGK, shift, call)
        if self.qk_norm:
            q_BTHK, k_BTGK = (RMSNorm(self.eps, self.dtype, name=f"{n}_norm")(x) for n, x in (("q", q_BTHK), ("k", k_BTGK)))
        f_BTH = self._project(x_BTD, (self.heads,), "heads", "f", bias=True)
        log_f_BTH = jax.nn.log_sigmoid(f_BTH.astype(_time.accumulation_dtype(f_BTH)))
        op = call.op("forgetting_attention")
        y_BTHK, state = op(q_BTHK, k_BTGK, v_BTGK, log_f_BTH, state=state, window=self.window)
        y_BTHK = self._output(x_BTD, y_BTHK) if self.output_norm or self.output_gate else y_BTHK
        out = Linear((self.width,), ("heads", None, "embed"), 2, init_fn=_init.outward(self), dtype=self.dtype, name="o")
        return Mixed(out(y_BTHK), ForgettingMixerState(state, shift if self.kv_shift else ()))
