"""The Mamba block (Gu & Dao 2023, arXiv:2312.00752, §3.4 and the released code's initialisation)."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import Initializer, Linear, Mixer, RMSNorm, Units, param, rms_normalize, uniform
from jaxseq.ops import selective_scan, short_conv


class MambaState(NamedTuple):
    conv: short_conv.ShortConvState  # the last taps - 1 inputs of the convolution
    scan: selective_scan.SelectiveScanState


def dt_bias_init(low: float, high: float, floor: float) -> Initializer:
    """softplus^-1(dt) with dt log-uniform in [low, high] and at least `floor`."""

    def init(key, shape, dtype):
        log_dt = jax.random.uniform(key, shape, dtype, math.log(low), math.log(high))
        dt = jnp.maximum(jnp.exp(log_dt), floor)
        return dt + jnp.log(-jnp.expm1(-dt))

    return init


def a_log_init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """log(1 .. N) in every channel: the real part of S4D's initialisation."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[1] + 1, dtype=dtype)), shape)


def fan_in_uniform(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """U(-1/sqrt(inputs), 1/sqrt(inputs)): torch's default for linear layers, as in the released code."""
    return uniform(shape[0] ** -0.5)(key, shape, dtype)


class Mamba(Mixer):
    """y = (selective_scan(silu(conv(u))) * silu(z)) W_out with (u, z) = x W_in.

    dt = softplus(dt_r W_dt + b_dt), (dt_r, B, C) = u W_x. A = -exp(A_log) and D are float32 without weight decay. Initial values:
    b_dt is the inverse softplus of a log-uniform step; W_out is divided by sqrt(residuals * layers).

    selected_norm applies an RMS norm to each of dt_r, B and C: "plain" without a scale (Falcon Mamba, Zuo et al. 2024,
    arXiv:2410.05355, §2.2), "scaled" with one (Jamba, Lieber et al. 2024, arXiv:2403.19887, §6.4).
    """

    expand: int = 2  # inner width = expand * width
    inner: int | None = None  # the inner width itself
    state_size: int = 16
    taps: int = 4
    dt_rank: int | None = None  # default: ceil(width / 16)
    dt_min: float = 0.001
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    residuals: int = 1  # residual additions per block; 2 if an MLP follows each Mamba
    selected_norm: str = "none"  # none, plain, scaled
    selected_eps: float = 1e-6

    @property
    def features(self) -> int:
        """The inner width."""
        return self.inner or self.expand * self.width

    @nn.nowrap
    def units(self, kind: str) -> Units | str:
        return Units(self.features, ("mlp",), lambda n: {"inner": n}) if kind == "channels" else super().units(kind)

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> MambaState:
        inner = self.features
        conv = short_conv.init_state(batch, self.taps, inner, self.dtype)
        return MambaState(conv, selective_scan.init_state(batch, inner, self.state_size, self.dtype))

    def _normed(self, x, name: str):
        if self.selected_norm == "none":
            return x
        if self.selected_norm == "scaled":
            return RMSNorm(self.selected_eps, self.dtype, name=f"{name}_norm")(x)
        if self.selected_norm == "plain":
            return rms_normalize(x, self.selected_eps).astype(self.dtype)
        raise UserError(f"there is no selected_norm {self.selected_norm!r}; choose one of: none, plain, scaled")

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        inner, rank = self.features, self.dt_rank or -(-self.width // 16)
        conv_state, scan_state = (None, None) if state is None else state

        def linear(x, features, axes, name, init=fan_in_uniform):
            return Linear((features,), axes, init_fn=init, dtype=self.dtype, name=name)(x)

        u_BTD, z_BTD = jnp.split(linear(x_BTD, 2 * inner, ("embed", "mlp"), "in"), 2, axis=-1)
        bound = self.taps**-0.5  # torch's default for a depthwise convolution
        w_WD = param(self, "conv_kernel", uniform(bound), (self.taps, inner), (None, "mlp"))
        bias_D = param(self, "conv_bias", uniform(bound), (inner,), ("mlp",), decay=False)
        conv = call.op("short_conv")
        u_BTD, conv_state = conv(u_BTD, w_WD=w_WD, bias_D=bias_D, state=conv_state)
        u_BTD = nn.silu(u_BTD)

        selected = linear(u_BTD, rank + 2 * self.state_size, ("mlp", None), "x")
        parts = jnp.split(selected, [rank, rank + self.state_size], axis=-1)
        dt_BTR, b_BTN, c_BTN = (self._normed(x, name) for x, name in zip(parts, ("dt", "b", "c"), strict=True))
        dt_bias_D = param(self, "dt_bias", dt_bias_init(self.dt_min, self.dt_max, self.dt_floor), (inner,), ("mlp",), decay=False)
        dt_BTD = linear(dt_BTR, inner, (None, "mlp"), "dt", uniform(rank**-0.5))
        dt_BTD = nn.softplus(dt_BTD.astype(dt_bias_D.dtype) + dt_bias_D)
        a_log_DN = param(self, "A_log", a_log_init, (inner, self.state_size), ("mlp", None), decay=False)
        d_D = param(self, "D", jax.nn.initializers.ones, (inner,), ("mlp",), decay=False)
        scan = call.op("selective_scan")
        y_BTD, scan_state = scan(u_BTD, dt_BTD, b_BTN, c_BTN, a_DN=-jnp.exp(a_log_DN), d_D=d_D, state=scan_state)

        shrink = (self.residuals * self.layers) ** -0.5
        init = lambda key, shape, dtype: shrink * fan_in_uniform(key, shape, dtype)  # noqa: E731
        y_BTD = linear(y_BTD * nn.silu(z_BTD), self.width, ("mlp", "embed"), "out", init)
        return Mixed(y_BTD, MambaState(conv_state, scan_state))
