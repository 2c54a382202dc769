"""Base of the delta-rule mixers: short convolutions, unit-length keys, decays from a step size, a gated norm."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call
from jaxseq.errors import UserError
from jaxseq.layers import Linear, Mixer, fan_in, param, recomputed, rms_normalize
from jaxseq.mixers import _init
from jaxseq.mixers.mamba import dt_bias_init
from jaxseq.mixers.mamba2 import a_log_init
from jaxseq.ops import _delta, _time, short_conv

GATES = {"silu": nn.silu, "sigmoid": jax.nn.sigmoid}


class DeltaMixerState(NamedTuple):
    conv: short_conv.ShortConvState  # the last taps - 1 inputs of q, k and v, concatenated
    delta: _delta.DeltaState  # one [key_size, value_size] matrix per head


def unit(x: jax.Array) -> jax.Array:
    """x / sqrt(|x|^2 + 1e-6) over the last axis, in the accumulation dtype, as in flash-linear-attention."""
    x = x.astype(_time.accumulation_dtype(x))
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


class DeltaMixer(Mixer):
    """Base of gdn and kda: common fields and submodules."""

    heads: int = 4  # of queries and keys
    value_heads: int | None = None  # default: heads; a multiple of them
    head_size: int | None = None  # of queries and keys; default: width / heads
    value_size: int | None = None  # of a value head; default: head_size
    taps: int = 4
    negative: bool = False  # beta in (0, 2): eigenvalues of the state down to -1 (Grazzi et al. 2024, arXiv:2411.12537)
    gate: str = "silu"  # output gate: silu or sigmoid
    eps: float = 1e-5
    dt_min: float = 0.001
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    initial: str = "llama"  # initial values of the kernels, see _init.RECIPES
    init_std: float | None = None  # for gpt2 and llama; default: 1 / sqrt(inputs)

    @nn.nowrap
    def sizes(self) -> tuple[int, int, int]:
        """(value heads, key size, value size). Raises UserError if they do not fit each other."""
        value_heads = self.value_heads or self.heads
        if value_heads % self.heads:
            raise UserError(f"{value_heads} value heads cannot share {self.heads} query heads; make value_heads a multiple")
        if not self.head_size and self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of {self.heads} heads; change one, or set head_size")
        if self.gate not in GATES:
            raise UserError(f"there is no gate {self.gate!r}; choose one of: {', '.join(GATES)}")
        key_size = self.head_size or self.width // self.heads
        return value_heads, key_size, self.value_size or key_size

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> DeltaMixerState:
        value_heads, key_size, value_size = self.sizes()
        conv = short_conv.init_state(batch, self.taps, 2 * self.heads * key_size + value_heads * value_size, self.dtype)
        return DeltaMixerState(conv, _delta.init_state(batch, value_heads, key_size, value_size, self.dtype))

    def project(
        self, x_BTD: jax.Array, shape: tuple[int, ...], name: str, axes: tuple[str | None, ...] = ("heads", None)
    ) -> jax.Array:
        init = _init.inward(self)
        return Linear(shape, ("embed", *axes[: len(shape)]), init_fn=init, dtype=self.dtype, name=name)(x_BTD)

    def low_rank(self, x_BTD: jax.Array, rank: int, shape: tuple[int, int], name: str) -> jax.Array:
        inner = self.project(x_BTD, (rank,), f"{name}_a", axes=(None,))
        return Linear(shape, (None, "heads", None), init_fn=_init.inward(self), dtype=self.dtype, name=f"{name}_b")(inner)

    def convolved(self, x_BTD: jax.Array, state: Any, call: Call) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
        """(q, k, v, state of the convolution): q and k have unit length, then q is divided by sqrt(K)."""
        value_heads, key_size, value_size = self.sizes()
        shapes = {"q": (self.heads, key_size), "k": (self.heads, key_size), "v": (value_heads, value_size)}
        flat = [jax.lax.collapse(self.project(x_BTD, shape, name), 2) for name, shape in shapes.items()]  # T may be 0
        u_BTD = jnp.concatenate(flat, axis=-1)
        w_WD = param(self, "conv_kernel", fan_in(), (self.taps, u_BTD.shape[-1]), (None, "heads"))
        u_BTD, state = call.op("short_conv")(u_BTD, w_WD=w_WD, state=state)
        cuts = [self.heads * key_size, 2 * self.heads * key_size]
        parts = jnp.split(nn.silu(u_BTD), cuts, axis=-1)
        q, k, v = (x.reshape(*x.shape[:2], *shape) for x, shape in zip(parts, shapes.values(), strict=True))
        return (unit(q) * key_size**-0.5).astype(self.dtype), unit(k).astype(self.dtype), v, state

    def rate(self, x_BTD: jax.Array) -> jax.Array:
        """beta [B, T, H] in the accumulation dtype."""
        rate_BTH = jax.nn.sigmoid(self.project(x_BTD, (self.sizes()[0],), "beta").astype(_time.accumulation_dtype(x_BTD)))
        return 2 * rate_BTH if self.negative else rate_BTH

    def log_decay(self, step: jax.Array, low: float, high: float) -> jax.Array:
        """-A softplus(step + bias), one A per head, stored as its logarithm. Initial: A ~ U(low, high), steps log-uniform."""
        a_log_H = param(self, "A_log", a_log_init(low, high), step.shape[2:3], ("heads",), decay=False)
        bias_init = dt_bias_init(self.dt_min, self.dt_max, self.dt_floor)
        axes = ("heads", None)[: step.ndim - 2]
        bias = param(self, "dt_bias", bias_init, step.shape[2:], axes, decay=False)
        return -jnp.exp(a_log_H).reshape(-1, *[1] * (step.ndim - 3)) * nn.softplus(step.astype(bias.dtype) + bias)

    def out(self, y_BTHV: jax.Array, gate_BTHV: jax.Array) -> jax.Array:
        scale_V = param(self, "norm_scale", jax.nn.initializers.ones, y_BTHV.shape[-1:], (None,), decay=False)
        acc = _time.accumulation_dtype(y_BTHV)

        def gated(y, gate, scale_V):
            return (rms_normalize(y, self.eps) * scale_V * GATES[self.gate](gate.astype(acc))).astype(self.dtype)

        y_BTHV = recomputed(gated)(y_BTHV, gate_BTHV, scale_V)
        axes = ("heads", None, "embed")
        return Linear((self.width,), axes, 2, init_fn=_init.outward(self), dtype=self.dtype, name="o")(y_BTHV)
