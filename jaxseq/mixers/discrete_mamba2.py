"""Discrete Mamba-2, the variant of Mamba-2 that takes the place of attention (Bick et al. 2024, arXiv:2408.10189, §4.3)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import Linear, Mixer, param, recomputed, uniform
from jaxseq.mixers.mamba import fan_in_uniform
from jaxseq.ops import _time, retention, short_conv


class DiscreteMamba2State(NamedTuple):
    conv: short_conv.ShortConvState  # the last taps - 1 inputs of the convolution
    ssd: Any  # of retention: one [state_size, head size] matrix per head


class DiscreteMamba2(Mixer):
    """y = ((ssd(x, B, C) + D x) * silu(z + b_z)) W_out, (z, x, B, C, a) = u W_in, with conv(.) on x, B and C.

    S_t = exp(-softplus(a_t + b_a)) S_{t-1} + B_t^T x_t, y_t = C_t S_t: the retention op. Unlike `mamba2` it has no step size that
    scales x, no activation after the convolution and no norm, so that each head is a linear map of x with the matrix C B^T times
    decays, as a head of attention is one with softmax(Q K^T). Every head has its own B and C. Biases and D, one number per head,
    are float32 without weight decay. Initial values: biases zero, D one, W_in and the convolution as torch's default, as in the
    released code (which has no b_a); W_out is divided by sqrt(residuals * layers) in addition.
    """

    inner: int | None = None  # inner width; default: the width
    heads: int = 4
    state_size: int = 64
    taps: int = 4
    residuals: int = 2  # residual additions per block

    @property
    def inner_size(self) -> int:
        return self.inner or self.width

    @nn.nowrap
    def _sizes(self) -> tuple[int, int, int]:
        """Inner width, channels of a head, and channels of the convolution."""
        inner = self.inner_size
        if inner % self.heads:
            raise UserError(f"{self.heads} heads do not divide {inner}; change discrete_mamba2's heads, or the width")
        return inner, inner // self.heads, inner + 2 * self.heads * self.state_size

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> DiscreteMamba2State:
        _, size, mixed = self._sizes()
        conv = short_conv.init_state(batch, self.taps, mixed, self.dtype)
        return DiscreteMamba2State(conv, retention.init_state(batch, self.heads, self.state_size, size, self.dtype))

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        inner, size, mixed = self._sizes()
        conv, ssd = (None, None) if state is None else state
        features, keys = inner + mixed + self.heads, self.heads * self.state_size
        all_BTD = Linear((features,), ("embed", "mlp"), init_fn=fan_in_uniform, dtype=self.dtype, name="in")(x_BTD)
        z_BTD, u_BTD, a_BTH = jnp.split(all_BTD, [inner, inner + mixed], axis=-1)
        w_WD = param(self, "conv_kernel", uniform(self.taps**-0.5), (self.taps, mixed), (None, "mlp"))
        bias_D = param(self, "conv_bias", jax.nn.initializers.zeros, (mixed,), ("mlp",), decay=False)
        u_BTD, conv = call.op("short_conv")(u_BTD, w_WD=w_WD, bias_D=bias_D, state=conv)

        split = jnp.split(u_BTD, [inner, inner + keys], axis=-1)
        sizes = size, self.state_size, self.state_size
        x_BTHV, b_BTHK, c_BTHK = (part.reshape(*part.shape[:2], self.heads, n) for part, n in zip(split, sizes, strict=True))
        log_a_BTH = -nn.softplus(a_BTH.astype(_time.accumulation_dtype(a_BTH)) + self._head("a_bias", jax.nn.initializers.zeros))
        y_BTHV, ssd = call.op("retention")(c_BTHK, b_BTHK, x_BTHV, log_a_BTH, state=ssd)
        z_bias_D = param(self, "z_bias", jax.nn.initializers.zeros, (inner,), ("mlp",), decay=False)

        def gated(y_BTHV, x_BTHV, d_H, z_BTD, z_bias_D):
            y_BTHV += (d_H[:, None] * x_BTHV).astype(y_BTHV.dtype)
            return (y_BTHV.reshape(z_BTD.shape) * nn.silu(z_BTD + z_bias_D.astype(z_BTD.dtype))).astype(self.dtype)

        y_BTD = recomputed(gated)(y_BTHV, x_BTHV, self._head("D", jax.nn.initializers.ones), z_BTD, z_bias_D)
        shrink = (self.residuals * self.layers) ** -0.5
        init = lambda key, shape, dtype: shrink * fan_in_uniform(key, shape, dtype)  # noqa: E731
        out = Linear((self.width,), ("mlp", "embed"), init_fn=init, dtype=self.dtype, name="out")
        return Mixed(out(y_BTD), DiscreteMamba2State(conv, ssd))

    def _head(self, name: str, init: Any) -> Any:
        return param(self, name, init, (self.heads,), ("heads",), decay=False)
