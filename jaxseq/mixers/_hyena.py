"""Base of the Hyena mixers: gates and long convolutions; subclasses define the filters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import Initializer, Linear, Mixer, normal, param, uniform
from jaxseq.mixers import _init
from jaxseq.ops import short_conv

CONVENTIONS = ("safari", "paper")


class HyenaState(NamedTuple):
    short: short_conv.ShortConvState  # the last taps - 1 projections
    long: tuple  # one state per long convolution


class GatedConvolutions(Mixer):
    """Projections x_0 … x_{N-1}, v of the input, each passed through a short convolution. Then, for order N,

    safari: v <- h^i * (x_{N-i} v) for i = 1 … N-1, y = x_0 v; N - 1 long convolutions (the released code, StripedHyena).
    paper:  v <- x_i (h^i * v) for i = 0 … N-1, y = v; N long convolutions (arXiv:2302.10866, definition 3.1).
    """

    order: int = 2
    convention: str = "safari"
    taps: int = 3  # of the short convolutions
    heads: int = 1  # groups of adjacent channels whose projections are stored together: only the layout of weights
    initial: str = "gpt2"  # initial values of the projections, see _init.RECIPES
    init_std: float | None = None  # for gpt2 and llama; default: 1 / sqrt(inputs)

    @nn.nowrap
    def convolutions(self) -> int:
        if self.convention not in CONVENTIONS:
            raise UserError(f"there is no convention {self.convention!r}; choose one of: {', '.join(CONVENTIONS)}")
        least = 2 if self.convention == "safari" else 1
        if self.order < least:
            raise UserError(f"the {self.convention} convention needs an order of {least} or more, not {self.order}")
        if self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of {self.heads} heads; change one of them")
        return self.order - 1 if self.convention == "safari" else self.order

    @nn.nowrap
    def long_state(self, batch: int) -> Any:
        """The empty state of one long convolution."""
        raise NotImplementedError

    def filters(self) -> list:
        """Arguments of `convolve`, one item per long convolution; only inside a compact method."""
        raise NotImplementedError

    def convolve(self, item: Any, x_BTD: jax.Array, state: Any, call: Call) -> tuple[jax.Array, Any]:
        raise NotImplementedError

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> HyenaState:
        short = short_conv.init_state(batch, self.taps, (self.order + 1) * self.width, self.dtype)
        return HyenaState(short, tuple(self.long_state(batch) for _ in range(self.convolutions())))

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        count, width, heads = self.order + 1, self.width, self.heads
        short, long = (None, (None,) * self.convolutions()) if state is None else state
        shape, axes = (heads, count, width // heads), ("embed", None, None, "mlp")
        z_BTHPK = Linear(shape, axes, bias=True, init_fn=_init.inward(self), dtype=self.dtype, name="in")(x_BTD)
        bound = self.taps**-0.5  # torch's default for a depthwise convolution
        w_WD = param(self, "conv_kernel", uniform(bound), (self.taps, count * width), (None, "mlp"))
        bias_D = param(self, "conv_bias", uniform(bound), (count * width,), ("mlp",), decay=False)
        conv = call.op("short_conv")
        z_BTD, short = conv(
            z_BTHPK.reshape(*x_BTD.shape[:2], count * width), w_WD=w_WD, bias_D=bias_D, state=short
        )
        z_BTHPK = z_BTD.reshape(z_BTHPK.shape)
        *x, v_BTD = (z_BTHPK[:, :, :, i].reshape(x_BTD.shape) for i in range(count))

        safari, after = self.convention == "safari", []
        gates = x[:0:-1] if safari else x
        for gate_BTD, item, before in zip(gates, self.filters(), long, strict=True):
            v_BTD = v_BTD * gate_BTD if safari else v_BTD
            v_BTD, s = self.convolve(item, v_BTD, before, call)
            v_BTD = v_BTD if safari else v_BTD * gate_BTD
            after.append(s)
        y_BTD = v_BTD * x[0] if safari else v_BTD
        out = Linear((width,), ("mlp", "embed"), 1, True, _init.outward(self), self.dtype, name="out")
        return Mixed(out(y_BTD), HyenaState(short, tuple(after)))

    def skip(self) -> jax.Array:
        """Skip weights [O, D]: the multiple of its input that each convolution adds; only inside a compact method."""
        shape, axes = (self.convolutions(), self.width), (None, "mlp")
        return param(self, "skip", jax.nn.initializers.normal(1.0), shape, axes, decay=False)


def positions(taps: int, features: int) -> tuple[jax.Array, jax.Array]:
    """(t [W] in [0, 1], z = (t, Re e^{-ifw}, Im e^{-ifw}) [W, F]), w = 2 pi n / W, f from 1e-4 to bands - 1."""
    bands = (features - 1) // 2
    t_W = jnp.linspace(0, 1, taps)
    angle_WF = 2 * jnp.pi * jnp.arange(taps)[:, None] / taps * jnp.linspace(1e-4, bands - 1, bands)
    return t_W, jnp.concatenate([t_W[:, None], jnp.cos(angle_WF), -jnp.sin(angle_WF)], axis=1)


class Filter(nn.Module):
    """h [O, W, D] = MLP(z) (e^{-t |delta|} + shift): filters as functions of position (§3.3, appendix D).

    The activations of the MLP are sin(freq * x), with one trained vector `freq` shared by all layers. The features z are trained
    with a separate learning rate; t and delta are constants. No parameter has weight decay. Initial values: kernels normal with
    `std` and zero biases, as in safari's language models; without `std` torch's default for linear layers.
    """

    convolutions: int
    width: int
    taps: int
    features: int
    hidden: int
    inner: int  # hidden layers after the first
    sine: float
    fast: float
    slow: float
    target: float
    shift: float
    lr: float
    position_lr: float
    std: float | None
    dtype: Any = jnp.float32

    @nn.nowrap
    def _kernel(self, inputs: int) -> Initializer:
        return uniform(inputs**-0.5) if self.std is None else normal(self.std)

    @nn.compact
    def __call__(self) -> jax.Array:
        if self.features < 3 or self.features % 2 == 0:
            raise UserError(f"features={self.features} must be time and pairs of sine and cosine; make it odd and at least 3")
        t_W, z_WF = positions(self.taps, self.features)
        shape, axes = z_WF.shape, (None, None)
        x = param(self, "position", lambda key, shape, dtype: z_WF.astype(dtype), shape, axes, decay=False, lr=self.position_lr)
        freq = param(self, "freq", jax.nn.initializers.constant(self.sine), (self.hidden,), (None,), decay=False, lr=self.lr)
        for i in range(self.inner + 1):
            shape, axes = (x.shape[1], self.hidden), (None, None)
            kernel = param(self, f"kernel_{i}", self._kernel(x.shape[1]), shape, axes, decay=False, lr=self.lr)
            start = uniform(x.shape[1] ** -0.5) if self.std is None else jax.nn.initializers.zeros
            bias = param(self, f"bias_{i}", start, (self.hidden,), (None,), decay=False, lr=self.lr)
            x = jnp.sin(freq * (x @ kernel + bias))
        shape, axes = (self.hidden, self.convolutions, self.width), (None, None, "mlp")
        kernel = param(self, "kernel_out", self._kernel(self.hidden), shape, axes, decay=False, lr=self.lr)
        h_OWD = jnp.einsum("wf,fod->owd", x, kernel)
        ends = jnp.log(self.target) / self.slow, jnp.log(self.target) / self.fast
        delta_OD = jnp.abs(jnp.linspace(*ends, self.convolutions * self.width)).reshape(-1, self.width)
        decay_OWD = jnp.exp(-t_W[:, None] * delta_OD[:, None])
        return h_OWD * (decay_OWD.astype(h_OWD.dtype) + self.shift)
