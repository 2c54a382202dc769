"""Griffin's recurrent block with the real-gated linear recurrent unit (De et al. 2024, arXiv:2402.19427, §2.3 and §2.4)."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import zeros

from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import Initializer, Linear, Mixer, fan_in, normal, param, recomputed
from jaxseq.mixers import _init
from jaxseq.ops import _time, rglru, short_conv

STEEPEST = 1000.0  # limit of the derivative of the multiplier


class RGLRUState(NamedTuple):
    conv: short_conv.ShortConvState  # the last taps - 1 inputs of the convolution
    scan: rglru.LinearState


@jax.custom_jvp
def bounded_sqrt(x: jax.Array) -> jax.Array:
    """sqrt(x), with its derivative 1 / (2 sqrt(x)) clipped to STEEPEST, as in the released code."""
    return jnp.sqrt(x)


@bounded_sqrt.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return jnp.sqrt(x), dx * jax.lax.rsqrt(jnp.maximum(4 * x, STEEPEST**-2))


def ring(low: float, high: float) -> Initializer:
    """Lambda such that e^{-softplus(Lambda)} is the radius of a uniform point in the ring between two radii."""

    def init(key, shape, dtype):
        square = jax.random.uniform(key, shape, dtype, low**2, high**2)
        return jnp.log(jnp.expm1(-0.5 * jnp.log(square)))

    return init


class RGLRU(Mixer):
    """y = (h * gelu(x W_y + b)) W_out + b, h = RG-LRU(conv(x W_x + b)).

    r, i = sigmoid(u W_a + b), sigmoid(u W_i + b) with a matrix per head; log a = -8 r softplus(Lambda);
    h_t = a h_{t-1} + sqrt(1 - a^2) i u_t. The multiplier sqrt(1 - a^2) is 1 at the first token of a document. Lambda has no
    weight decay. Initial values: Lambda such that e^{-softplus(Lambda)} lies in [0.9, 0.999]; variance 2 / residual blocks /
    inputs for W_out, and 1 / hidden for the kernels of the gates, because the released code counts the channels of all heads as
    inputs.
    """

    hidden_role: ClassVar[str] = "recurrence"

    heads: int = 4  # blocks of the gates; 16 in the paper
    hidden: int | None = None  # channels of the recurrence; default: width
    taps: int = 4
    power: float = 8.0
    low: float = 0.9
    high: float = 0.999

    @property
    def features(self) -> int:
        """F, the channels of the recurrence."""
        return self.hidden or self.width

    @nn.nowrap
    def _hidden(self) -> int:
        hidden = self.features
        if hidden % self.heads:
            raise UserError(f"{hidden} channels are not a multiple of {self.heads} heads; change one of them")
        return hidden

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> RGLRUState:
        conv = short_conv.init_state(batch, self.taps, self._hidden(), self.dtype)
        return RGLRUState(conv, rglru.init_state(batch, self._hidden(), self.dtype))

    def _gate(self, u_BTHK, name: str):
        """sigmoid(u W + b), a matrix per head, in the accumulation dtype."""
        heads, size = u_BTHK.shape[2:]
        w_HKV = param(self, f"{name}_kernel", normal((heads * size) ** -0.5), (heads, size, size), ("heads", None, None))
        b_HV = param(self, f"{name}_bias", zeros, (heads, size), ("heads", None), decay=False)
        gate_BTHV = jnp.einsum("bthk,hkv->bthv", u_BTHK, w_HKV.astype(self.dtype)).astype(b_HV.dtype) + b_HV
        return jax.nn.sigmoid(gate_BTHV).reshape(*u_BTHK.shape[:2], heads * size)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        hidden = self._hidden()
        conv_state, scan = (None, None) if state is None else state

        def linear(name):
            return Linear((hidden,), ("embed", "mlp"), bias=True, dtype=self.dtype, name=name)(x_BTD)

        gelu_BTD = recomputed(nn.gelu)(linear("y"))
        w_WD = param(self, "conv_kernel", normal((0.01 / self.taps) ** 0.5), (self.taps, hidden), (None, "mlp"))
        bias_D = param(self, "conv_bias", zeros, (hidden,), ("mlp",), decay=False)
        conv = call.op("short_conv")
        u_BTD, conv_state = conv(linear("x"), w_WD=w_WD, bias_D=bias_D, state=conv_state)

        u_BTHK = u_BTD.reshape(*u_BTD.shape[:2], self.heads, hidden // self.heads)
        lambda_D = param(self, "Lambda", ring(self.low, self.high), (hidden,), ("mlp",), decay=False)
        log_a_BTD = -self.power * self._gate(u_BTHK, "a") * jax.nn.softplus(lambda_D)
        multiplier_BTD = _time.select(call.pos_BT != _time.START, bounded_sqrt(-jnp.expm1(2 * log_a_BTD)), 1)
        u_BTD = (multiplier_BTD * self._gate(u_BTHK, "i") * u_BTD).astype(self.dtype)
        h_BTD, scan = call.op("rglru")(u_BTD, log_a_BTD, state=scan)
        init = fan_in(2 * _init.additions(self) ** -0.5)
        out = Linear((self.width,), ("mlp", "embed"), bias=True, init_fn=init, dtype=self.dtype, name="o")
        return Mixed(out(h_BTD * gelu_BTD), RGLRUState(conv_state, scan))
