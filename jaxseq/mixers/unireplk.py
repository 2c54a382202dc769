"""A causal one-dimensional UniRepLKNet block (Ding et al. 2023, arXiv:2311.15599, §3.1, defined for images)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.layers import Linear, Mixer, fan_in, normal, param
from jaxseq.mixers import _init, _reparam
from jaxseq.ops import _time, running_mean, short_conv


class UniRepLKState(NamedTuple):
    conv: short_conv.ShortConvState  # the last kernel - 1 inputs
    pool: running_mean.RunningMeanState  # running mean for squeeze-and-excitation
    response: running_mean.RunningMeanState  # running mean of squares of the hidden channels


class UniRepLK(Mixer):
    """y = scale * (GRN(gelu(SE(conv(x)) W_up + b)) W_down + b), conv the sum of a large depthwise kernel and dilated small ones.

    Four parts of the published block depend on later tokens and are changed here:

    - Padding: on the left only; tap j reads the token j steps ago, also in the branches.
    - Batch norm, of each branch and of their sum: an affine map per channel without statistics, so that the branches can still
      be merged into one kernel. The norm before the mixer controls the scale, and the initial values give each branch the
      same variance as its batch norm would. All branches share one bias.
    - Squeeze-and-excitation: the mean over the document so far, not over the whole sequence.
    - Global response normalisation: the mean of squares over the document so far. It differs from the squared norm by a factor
      (the number of tokens) that cancels when dividing by the mean over channels.

    The initial layer scale is 1: the paper's 1e-6 was 0.19 bits per byte worse at the laptop size after 250 steps (2.75 instead
    of 2.56). State: the last kernel - 1 inputs and the two running means. With `merged` the parameters are those that `merge`
    returns.
    """

    kernel: int = 13  # taps; see _reparam.BRANCHES
    factor: int = 4  # hidden channels = factor * width
    reduction: int = 4  # of channels in squeeze-and-excitation
    layer_scale: float = 1.0  # initial value
    eps: float = 1e-6
    merged: bool = False

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> UniRepLKState:
        return UniRepLKState(
            short_conv.init_state(batch, self.kernel, self.width, self.dtype),
            running_mean.init_state(batch, self.width, self.dtype),
            running_mean.init_state(batch, self.factor * self.width, self.dtype),
        )

    def _kernel(self) -> jax.Array:
        """The kernel [W, D] as the sum of all branches; convolution is linear."""
        own = () if self.merged else _reparam.branches(self.kernel)
        gain = (1 + len(own)) ** -0.5  # initially all branches have outputs of equal variance, as after batch norm

        def branch(label, taps):
            w_WD = param(self, f"conv{label}", normal(taps**-0.5), (taps, self.width), (None, "embed"))
            if self.merged:
                return w_WD
            scale_D = param(self, f"scale{label}", nn.initializers.constant(gain), (self.width,), ("embed",), decay=False)
            return w_WD * scale_D

        w_WD = branch("", self.kernel)
        for taps, dilation in own:
            w_WD += _reparam.spread(branch(f"_{taps}_{dilation}", taps), dilation, self.kernel, 1)
        return w_WD

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        width, hidden = self.width, self.factor * self.width
        conv_state, pool, response = (None, None, None) if state is None else state
        zeros, mean = nn.initializers.zeros, call.op("running_mean")

        def linear(x, features, axes, name, init=None):
            return Linear((features,), axes, 1, True, init, self.dtype, name=name)(x)

        bias_D = param(self, "conv_bias", zeros, (width,), ("embed",), decay=False)
        conv = call.op("short_conv")
        h_BTD, conv_state = conv(x_BTD, w_WD=self._kernel(), bias_D=bias_D, state=conv_state)

        pooled_BTD, pool = mean(h_BTD, state=pool)
        gate_BTD = nn.relu(linear(pooled_BTD, max(width // self.reduction, 1), ("embed", None), "squeeze"))
        h_BTD *= jax.nn.sigmoid(linear(gate_BTD, width, (None, "embed"), "excite"))

        h_BTF = nn.gelu(linear(h_BTD, hidden, ("embed", "mlp"), "up"), approximate=False)
        square_BTF, response = mean(jnp.square(h_BTF.astype(_time.accumulation_dtype(h_BTF))), state=response)
        gamma_F = param(self, "grn_gamma", zeros, (hidden,), ("mlp",), decay=False)
        h_BTF = _reparam.respond(h_BTF, square_BTF, gamma_F, self.eps)
        if not self.merged:
            h_BTF += param(self, "grn_beta", zeros, (hidden,), ("mlp",), decay=False).astype(self.dtype)

        y_BTD = linear(h_BTF, width, ("mlp", "embed"), "down", fan_in(_init.additions(self) ** -0.5))
        if not self.merged:
            init = nn.initializers.constant(self.layer_scale)
            y_BTD *= param(self, "layer_scale", init, (width,), ("embed",), decay=False).astype(self.dtype)
        return Mixed(y_BTD, UniRepLKState(conv_state, pool, response))


def merge(params: Mapping[str, Any]) -> dict:
    """Convert the parameters of a `UniRepLK` to those of an equivalent one with `merged=True`.

    Branches are merged into the kernel; the bias of GRN and the layer scale into W_down. Use `jax.vmap` for stacked layers.
    """
    merged = {name: params[name] for name in ("conv_bias", "squeeze", "excite", "up", "grn_gamma")}
    w_WD = params["conv"] * params["scale"]
    for taps, dilation in _reparam.branches(len(w_WD)):
        label = f"_{taps}_{dilation}"
        w_WD += _reparam.spread(params[f"conv{label}"] * params[f"scale{label}"], dilation, len(w_WD), 1)
    kernel_FD, scale_D = params["down"]["kernel"], params["layer_scale"]
    bias_D = (params["down"]["bias"] + params["grn_beta"] @ kernel_FD) * scale_D
    return merged | {"conv": w_WD, "down": {"kernel": kernel_FD * scale_D, "bias": bias_D}}
