"""The Mamba-2 block: state space duality with one decay per head (Dao & Gu 2024, arXiv:2405.21060, §7, and the released code)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import Initializer, Linear, Mixer, param, recomputed, rms_normalize, uniform
from jaxseq.mixers.mamba import dt_bias_init, fan_in_uniform
from jaxseq.ops import retention, short_conv


class Mamba2State(NamedTuple):
    conv: short_conv.ShortConvState  # the last taps - 1 inputs of the convolution
    ssd: Any  # of retention: one [state_size, head size] matrix per head


def a_log_init(low: float, high: float) -> Initializer:
    """Logarithm of values from U(low, high)."""
    return lambda key, shape, dtype: jnp.log(jax.random.uniform(key, shape, dtype, low, high))


def gated(y_BTHV: jax.Array, x_BTHV: jax.Array, d_H: jax.Array, z_BTD: jax.Array) -> jax.Array:
    """(y + D x) * silu(z) [B, T, D], in the dtype of z."""
    y_BTHV += (d_H[:, None] * x_BTHV).astype(z_BTD.dtype)
    return y_BTHV.reshape(z_BTD.shape) * nn.silu(z_BTD)


class Mamba2(Mixer):
    """y = rms_norm((ssd(x, dt, B, C) + D x) * silu(z)) W_out, (z, x, B, C, dt) = u W_in, with silu(conv(.)) on x, B and C.

    S_t = exp(dt_t A) S_{t-1} + B_t^T dt_t x_t, y_t = C_t S_t: the retention op with log a = dt A. dt = softplus(dt + b_dt),
    then clipped; A = -exp(A_log) and D are one number per head, float32, without weight decay. The heads of a group share B and
    C, and the norm is over the channels of each group. Initial values: A from U(1, 16), b_dt the inverse softplus of a
    log-uniform step, W_out divided by sqrt(residuals * layers).
    """

    expand: int = 2  # inner width = expand * width
    inner: int | None = None  # inner width, if it is not a multiple of the width
    heads: int = 4  # the released models have heads of 64 channels
    groups: int = 1  # of B and C
    state_size: int = 128
    taps: int = 4
    dt_min: float = 0.001
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    dt_low: float = 0.0  # dt itself is clipped to [dt_low, dt_high]
    dt_high: float | None = None  # default: no limit
    eps: float = 1e-5
    residuals: int = 1  # residual additions per block; 2 if an MLP follows each Mamba

    @property
    def inner_size(self) -> int:
        return self.inner or self.expand * self.width

    @nn.nowrap
    def _sizes(self) -> tuple[int, int, int]:
        """Inner width, channels of a head, and channels of B and C together."""
        inner = self.inner_size
        for name, parts, whole in (("heads", self.heads, inner), ("groups", self.groups, self.heads)):
            if whole % parts:
                raise UserError(f"{parts} {name} do not divide {whole}; change mamba2's {name}, or the width")
        return inner, inner // self.heads, 2 * self.groups * self.state_size

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> Mamba2State:
        inner, size, selected = self._sizes()
        conv = short_conv.init_state(batch, self.taps, inner + selected, self.dtype)
        return Mamba2State(conv, retention.init_state(batch, self.heads, self.state_size, size, self.dtype))

    def _conv(self, x_BTD, state, call):
        width, bound = x_BTD.shape[-1], self.taps**-0.5  # torch's default for a depthwise convolution
        w_WD = param(self, "conv_kernel", uniform(bound), (self.taps, width), (None, "mlp"))
        bias_D = param(self, "conv_bias", uniform(bound), (width,), ("mlp",), decay=False)
        conv = call.op("short_conv")
        y_BTD, state = conv(x_BTD, w_WD=w_WD, bias_D=bias_D, state=state)
        return nn.silu(y_BTD), state

    def _projected(self, all_BTD):
        """Hook for subclasses: z, x, B, C and dt, concatenated, before they are used."""
        return all_BTD

    def _ssd(self, x_BTD, c_BTGK, b_BTGK, v_BTHV, log_a_BTH, state: Any, call: Call):
        """Hook for subclasses: (y_BTHV, state) of the op. x: the mixer's input."""
        return call.op("retention")(c_BTGK, b_BTGK, v_BTHV, log_a_BTH, state=state)

    def _gated_norm(self, y_BTHV, x_BTHV, d_H, z_BTD):
        """rms_norm((y + D x) * silu(z)), the norm over the channels of each group."""
        scale_D = param(self, "norm_scale", jax.nn.initializers.ones, z_BTD.shape[-1:], ("mlp",), decay=False)

        def normed(y_BTHV, x_BTHV, d_H, z_BTD, scale_D):
            y_BTD = gated(y_BTHV, x_BTHV, d_H, z_BTD)
            parts = y_BTD.reshape(*y_BTD.shape[:2], self.groups, y_BTD.shape[2] // self.groups)
            return (rms_normalize(parts, self.eps).reshape(y_BTD.shape) * scale_D).astype(self.dtype)

        return recomputed(normed)(y_BTHV, x_BTHV, d_H, z_BTD, scale_D)

    def _head_param(self, name: str, init):
        return param(self, name, init, (self.heads,), ("heads",), decay=False)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        inner, size, selected = self._sizes()
        conv, ssd = (None, None) if state is None else state
        features = 2 * inner + selected + self.heads
        all_BTD = Linear((features,), ("embed", "mlp"), init_fn=fan_in_uniform, dtype=self.dtype, name="in")(x_BTD)
        z_BTD, u_BTD, dt_BTH = jnp.split(self._projected(all_BTD), [inner, 2 * inner + selected], axis=-1)
        u_BTD, conv = self._conv(u_BTD, conv, call)
        x_BTHV = u_BTD[..., :inner].reshape(*u_BTD.shape[:2], self.heads, size)
        b_BTGK, c_BTGK = (
            part.reshape(*part.shape[:2], self.groups, self.state_size) for part in jnp.split(u_BTD[..., inner:], 2, axis=-1)
        )

        bias_H = self._head_param("dt_bias", dt_bias_init(self.dt_min, self.dt_max, self.dt_floor))
        dt_BTH = jnp.clip(nn.softplus(dt_BTH.astype(bias_H.dtype) + bias_H), self.dt_low, self.dt_high)
        a_log_H, d_H = self._head_param("A_log", a_log_init(1, 16)), self._head_param("D", jax.nn.initializers.ones)
        v_BTHV = (x_BTHV.astype(dt_BTH.dtype) * dt_BTH[..., None]).astype(self.dtype)
        y_BTHV, ssd = self._ssd(x_BTD, c_BTGK, b_BTGK, v_BTHV, -jnp.exp(a_log_H) * dt_BTH, ssd, call)
        y_BTD = self._gated_norm(y_BTHV, x_BTHV, d_H, z_BTD)
        shrink = (self.residuals * self.layers) ** -0.5
        init = lambda key, shape, dtype: shrink * fan_in_uniform(key, shape, dtype)  # noqa: E731
        out = Linear((self.width,), ("mlp", "embed"), init_fn=init, dtype=self.dtype, name="out")
        return Mixed(out(y_BTD), Mamba2State(conv, ssd))
