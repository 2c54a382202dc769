"""Softmax attention with rotary or linear positions, grouped queries and an optional sliding window."""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import Linear, Mixer, Units, param, rotate
from jaxseq.mixers import _init, _quantized_ring, _rotary
from jaxseq.mixers._quantized_ring import QuantizedRing
from jaxseq.ops import _time, attention
from jaxseq.ops.attention import AttentionState

RINGS = ("", "int8")
DIGIT = 256  # a digit below it is exact in bfloat16, whose significand has 8 bits


def alibi_slopes(heads: int) -> list[float]:
    """Slopes 2^(-8 h / H) for h = 1 .. H (Press et al. 2022, arXiv:2108.12409, §3 and the released code).

    If H is not a power of two: the slopes for the largest power of two below H, then every other slope for twice that power.
    """
    below = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8 * h / below) for h in range(1, below + 1)]
    return slopes + [2.0 ** (-8 * h / (2 * below)) for h in range(1, 2 * (heads - below), 2)]


def add_alibi(q_BTHK: jax.Array, k_BTGK: jax.Array, pos_BT: jax.Array, scale: float) -> tuple[jax.Array, jax.Array]:
    """Append two channels to q and k whose product times `scale` is slope_h s, for a key at position s.

    In the softmax this equals the bias -slope_h (t - s), because the term slope_h t is constant over the keys. The two channels
    of a key are the base-256 digits of its position, so a bfloat16 cache represents positions below 65536 exactly. The slope
    may be rounded, by the same amount for both digits.
    """
    acc = _time.accumulation_dtype(q_BTHK)
    slope_H = jnp.asarray(alibi_slopes(q_BTHK.shape[2]), acc) / scale
    slope_HK = jnp.stack([DIGIT * slope_H, slope_H], axis=-1).astype(q_BTHK.dtype)
    digits_BTK = jnp.stack([pos_BT // DIGIT, pos_BT % DIGIT], axis=-1).astype(k_BTGK.dtype)
    more_q = jnp.broadcast_to(slope_HK, (*q_BTHK.shape[:3], 2))
    more_k = jnp.broadcast_to(digits_BTK[:, :, None], (*k_BTGK.shape[:3], 2))
    return jnp.concatenate([q_BTHK, more_q], axis=-1), jnp.concatenate([k_BTGK, more_k], axis=-1)


def slots(context: int | None) -> int:
    """The slots of a state that holds `context` tokens. Raises UserError if their number is not given."""
    if context is None:
        raise UserError("full attention stores every token: pass their maximum number, init_state(batch, context=N)")
    return context


class Attention(Mixer):
    """y = softmax(q k^T / sqrt(K)) v W_O with q, k, v = rotate(x W_Q), rotate(x W_K), x W_V.

    Rotary pairs are (i, i + K/2) with frequencies theta^(-2i/K) by default, as in Llama (Touvron et al. 2023, arXiv:2302.13971,
    §2.2; Su et al. 2021, arXiv:2104.09864). `rotary_fraction` rotates a part of each head, as in GPT-NeoX (Black et al. 2022,
    arXiv:2204.06745, §2.1.1); `interleaved` pairs adjacent channels, as in GPT-J. `alibi` adds -slope_h (t - s) to the scores
    instead (Press et al. 2022, arXiv:2108.12409), by two more channels of the keys. Initial values are GPT-2's by default: the
    output projection is divided by the square root of the number of residual additions (Radford et al. 2019, §2.3).
    """

    in_place: ClassVar[bool] = True
    quantizes: ClassVar[bool] = True  # `ring` may be set; see `why_no_ring`
    heads: int = 4
    kv_heads: int | None = None  # default: heads
    head_size: int | None = None  # default: width / heads
    window: int | None = None  # number of visible tokens, including the query's own; default: all
    rotary: bool = True
    rotary_fraction: float = 1.0  # fraction of a head's channels that are rotated, the first ones
    interleaved: bool = False  # pairs are (2i, 2i + 1)
    theta: float = 10000.0
    rope_scaling: str = "none"  # of the frequencies, for long contexts: none, linear, llama3, yarn, yarn_exact; see _rotary
    rope_factor: float = 1.0  # by which low frequencies are divided
    rope_context: int = 8192  # tokens of the contexts in training
    rope_slow: float = 1.0  # frequencies that turn at most this often in rope_context are divided
    rope_fast: float = 4.0  # frequencies that turn at least this often are unchanged
    scale: float | None = None  # of the scores; default: 1 / sqrt(K)
    cap: float | None = None  # scores are cap tanh(score / cap) (Gemma 2, arXiv:2408.00118, §2); default: not capped
    sink: bool = False  # one more score per head, learned, whose value is zero (gpt-oss, arXiv:2508.10925, §2)
    alibi: bool = False
    ring: str = ""  # int8: the state holds keys and values as 8-bit integers, see _quantized_ring; default: in the model's dtype
    bias: bool = False  # on q, k and v
    output_bias: bool | None = None  # default: bias
    initial: str = "gpt2"  # initial values, see _init.RECIPES
    init_std: float | None = None  # for gpt2 and llama; default: 1 / sqrt(inputs)
    output_std: float | None = None  # of the output projection; default: set by `initial`

    @nn.nowrap
    def _sizes(self) -> tuple[int, int]:
        kv_heads, size = self.kv_heads or self.heads, self.head_size or self.width // self.heads
        if self.heads % kv_heads:
            raise UserError(f"{self.heads} query heads cannot share {kv_heads} key/value heads; make kv_heads a divisor")
        if not self.head_size and self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of {self.heads} heads; change one, or set head_size")
        if self.ring not in RINGS:
            raise UserError(f"there is no ring {self.ring!r}; write int8, or nothing")
        if self.ring and (why := self.why_no_ring()):
            raise UserError(f"ring={self.ring} is not possible: {why}; leave it out")
        return kv_heads, size

    @nn.nowrap
    def why_no_ring(self) -> str:
        """Why `ring` cannot be set; empty if it can."""
        if not self.quantizes:
            return f"{type(self).__name__} stores keys and values as they are"
        return "the keys of alibi hold positions, which must be exact" if self.alibi else ""

    @nn.nowrap
    def _frequencies(self, size: int) -> jax.Array:
        turned = int(self.rotary_fraction * size)
        if not 0 < turned <= size or turned % 2:
            raise UserError(
                f"rotary positions rotate pairs of channels, but rotary_fraction {self.rotary_fraction} of {size} channels is "
                f"{turned}; make it even: change rotary_fraction, or width / heads"
            )
        return _rotary.frequencies(self, turned)

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> AttentionState | QuantizedRing:
        size, sizes = self.window or slots(context), self._state_sizes()
        if self.ring:
            return _quantized_ring.init_state(batch, size, *sizes)
        return attention.init_state(batch, size, *sizes, self.dtype)

    @nn.nowrap
    def _state_sizes(self) -> tuple[int, int, int]:
        """(heads, channels of a key, channels of a value) that the state stores."""
        kv_heads, size = self._sizes()
        return kv_heads, size + 2 if self.alibi else size, size

    @nn.nowrap
    def remaining_capacity(self, state: AttentionState | QuantizedRing) -> jax.Array | None:
        return None if self.window else state.k_BGSK.shape[-2] - state.count_B

    @nn.nowrap
    def units(self, kind: str) -> Units | str:
        if kind != "heads" or self.alibi:
            return "the slopes of alibi depend on the number of heads" if kind == "heads" else super().units(kind)
        kv_heads, size = self._sizes()
        queries = self.heads // kv_heads
        return Units(kv_heads, ("heads", "kv_heads"), lambda n: {"heads": n * queries, "kv_heads": n, "head_size": size})

    def _project(self, x_BTD: jax.Array, shape: tuple[int, ...], axis: str, name: str, bias: bool = False) -> jax.Array:
        """A map of the layer's input to heads: [B, T, *shape]."""
        axes, init, bias_init = ("embed", axis, None), _init.inward(self), _init.bias(self, self.width)
        return Linear(shape, axes, 1, bias, init, self.dtype, bias_init, name=name)(x_BTD)

    def _normed(self, q_BTHK, k_BTGK):
        """Queries and keys before their rotation."""
        return q_BTHK, k_BTGK

    def _projected(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """q, k and v, before the rotation of q and k."""
        kv_heads, size = self._sizes()
        q_BTHK = self._project(x_BTD, (self.heads, size), "heads", "q", self.bias)
        k_BTGK, v_BTGK = (self._project(x_BTD, (kv_heads, size), "kv_heads", name, self.bias) for name in "kv")
        return *self._normed(q_BTHK, k_BTGK), v_BTGK

    def _rotated(self, x_BTHK: jax.Array, call: Call) -> jax.Array:
        if not self.rotary:
            return x_BTHK
        return rotate(x_BTHK, call.pos_BT, self._frequencies(x_BTHK.shape[3]), self.interleaved)

    @nn.nowrap
    def _scale(self) -> float:
        """Of the scores."""
        return self._sizes()[1] ** -0.5 if self.scale is None else self.scale

    def _attend(self, q_BTHK, k_BTGK, v_BTGV, state, call, limits):
        """(the heads' output, the next state); limits: options of the op."""
        op = call.op("attention")
        if self.ring:
            return _quantized_ring.attend(op, call.pos_BT, q_BTHK, k_BTGK, v_BTGV, state, **limits)
        return op(q_BTHK, k_BTGK, v_BTGV, state=state, **limits)

    def _gated(self, y_BTHK, project):
        """The heads' output before its projection; `project(heads, axis, name)` maps the layer's input to heads."""
        return y_BTHK

    def _output(self, y_BTHK: jax.Array) -> jax.Array:
        bias = self.bias if self.output_bias is None else self.output_bias
        init, bias_init = _init.outward(self), _init.bias(self, y_BTHK.shape[2] * y_BTHK.shape[3])
        axes = ("heads", None, "embed")
        return Linear((self.width,), axes, 2, bias, init, self.dtype, bias_init, name="o")(y_BTHK)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        q_BTHK, k_BTGK, v_BTGK = self._projected(x_BTD)
        (q_BTHK, k_BTGK), scale = (self._rotated(x, call) for x in (q_BTHK, k_BTGK)), self._scale()
        if self.alibi:
            q_BTHK, k_BTGK = add_alibi(q_BTHK, k_BTGK, call.pos_BT, scale)
        zeros = nn.initializers.zeros
        sink_H = param(self, "sink", zeros, (self.heads,), ("heads",), decay=False) if self.sink else None
        limits = {"window": self.window, "scale": scale, "cap": self.cap, "sink_H": sink_H}
        size = v_BTGK.shape[3]
        y_BTHK, state = self._attend(q_BTHK, k_BTGK, v_BTGK, state, call, limits)
        y_BTHK = self._gated(y_BTHK, lambda heads, axis, name: self._project(x_BTD, (heads, size), axis, name, self.bias))
        return Mixed(self._output(y_BTHK), state)
