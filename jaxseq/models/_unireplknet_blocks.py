"""Layers of UniRepLKNet for images (Ding et al. 2023, arXiv:2311.15599). In shape suffixes Y and X are rows and columns."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.layers import LayerNorm, Linear, Parameter, normal, param
from jaxseq.mixers import _reparam
from jaxseq.ops import _time

INIT = normal(0.02)  # of convolutions and linear maps; the paper truncates at 100 standard deviations
NORM_EPS = 1e-5  # of batch norms
PLAIN = (3, 5)  # kernel sizes without parallel branches
SAME = "SAME"
Padding = str | Sequence[tuple[int, int]]


def convolve(
    x_BYXI: jax.Array, kernel_WWID: jax.Array, stride: int = 1, padding: Padding = SAME, dilation: int = 1, groups: int = 1
) -> jax.Array:
    """2-D convolution over rows and columns."""
    return jax.lax.conv_general_dilated(
        x_BYXI, kernel_WWID.astype(x_BYXI.dtype), (stride, stride), padding, rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip


def depthwise(x_BYXD: jax.Array, kernel_WWD: jax.Array, padding: Padding = SAME, dilation: int = 1) -> jax.Array:
    """2-D depthwise convolution: one kernel per channel."""
    return convolve(x_BYXD, kernel_WWD[:, :, None], 1, padding, dilation, kernel_WWD.shape[2])


def drop_path(module: nn.Module, y: jax.Array, rate: jax.Array) -> jax.Array:
    """Stochastic depth: set the branch to zero for random examples, scale up the others (Huang et al. 2016, arXiv:1603.09382)."""
    keep_B = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, y.shape[:1])
    return _time.select(keep_B, (y / (1 - rate)).astype(y.dtype))


class BatchNorm(nn.Module):
    """scale * (x - mean) / sqrt(variance + eps) + bias (Ioffe & Szegedy 2015, arXiv:1502.03167).

    In training, mean and variance are those of the batch over all devices. The running statistics are updated with weight
    `momentum`; the running variance uses the divisor n - 1, as in torch. In evaluation the running statistics are used. The
    collection `batch_stats` holds mean, var and count, the number of batches.
    """

    momentum: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BYXD: jax.Array, train: bool) -> jax.Array:
        acc, width = _time.accumulation_dtype(x_BYXD), x_BYXD.shape[-1:]
        scale_D = param(self, "scale", nn.initializers.ones, width, ("norm",), decay=False)
        bias_D = param(self, "bias", nn.initializers.zeros, width, ("norm",), decay=False)

        def statistic(name, value, names=("norm",)):
            return self.variable("batch_stats", name, lambda: Parameter(value, names, decay=False))

        mean = statistic("mean", jnp.zeros(width, scale_D.dtype))
        var = statistic("var", jnp.ones(width, scale_D.dtype))
        count = statistic("count", jnp.zeros((), jnp.int32), ())
        x_BYXD = x_BYXD.astype(acc)
        if not train:
            mean_D, var_D = mean.value, var.value
        else:
            mean_D = jnp.mean(x_BYXD, axis=(0, 1, 2))
            var_D = jnp.mean(jnp.square(x_BYXD - mean_D), axis=(0, 1, 2))
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                n = x_BYXD.size // x_BYXD.shape[-1]
                mean.value += self.momentum * (mean_D - mean.value)
                var.value += self.momentum * (var_D * (n / max(n - 1, 1)) - var.value)
                count.value += 1
        return ((x_BYXD - mean_D) * jax.lax.rsqrt(var_D + NORM_EPS) * scale_D + bias_D).astype(self.dtype)


class LargeKernel(nn.Module):
    """A depthwise convolution. From 7 taps on, the sum of a large kernel and small dilated ones, each with a batch norm (§3.1).

    With `merged`: a single kernel and a bias.
    """

    kernel: int
    merged: bool = False
    momentum: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BYXD: jax.Array, train: bool = False, padding: Padding = SAME) -> jax.Array:
        width = x_BYXD.shape[-1]

        def conv(name, taps, dilation=1):
            kernel_WWD = param(self, name, INIT, (taps, taps, width), (None, None, "embed"))
            return depthwise(x_BYXD, kernel_WWD, padding, dilation)

        def norm(name, y_BYXD):
            return BatchNorm(self.momentum, self.dtype, name=name)(y_BYXD, train)

        y_BYXD = conv("kernel", self.kernel)
        if self.merged:
            return y_BYXD + param(self, "bias", nn.initializers.zeros, (width,), ("embed",), decay=False).astype(self.dtype)
        if self.kernel in PLAIN:
            return y_BYXD
        y_BYXD = norm("norm", y_BYXD)
        for taps, dilation in _reparam.branches(self.kernel):
            y_BYXD += norm(f"norm_{taps}_{dilation}", conv(f"kernel_{taps}_{dilation}", taps, dilation))
        return y_BYXD


class UniRepLKNetBlock(nn.Module):
    """x + drop_path(gamma * BN(GRN(gelu(SE(BN(conv(x))) W_up + b)) W_down)); if merged, batch norms and gamma are folded in.

    Split at the two operations that need all positions, so that an image can be processed in tiles: see `_unireplknet_tiles`.
    """

    width: int
    kernel: int
    merged: bool = False
    layer_scale: float = 1e-6
    momentum: float = 0.1
    dtype: Any = jnp.float32

    def setup(self) -> None:
        width, hidden, dtype = self.width, 4 * self.width, self.dtype
        zeros, vector = nn.initializers.zeros, dict(axes=("mlp",), decay=False)
        self.conv = LargeKernel(self.kernel, self.merged, self.momentum, dtype)
        self.squeeze = Linear((width // 4,), ("embed", None), 1, True, INIT, dtype)
        self.excite = Linear((width,), (None, "embed"), 1, True, INIT, dtype)
        self.up = Linear((hidden,), ("embed", "mlp"), 1, True, INIT, dtype)
        self.down = Linear((width,), ("mlp", "embed"), 1, self.merged, INIT, dtype)
        self.grn_gamma_F = param(self, "grn_gamma", zeros, (hidden,), **vector)
        if not self.merged:
            self.norm, self.down_norm = BatchNorm(self.momentum, dtype), BatchNorm(self.momentum, dtype)
            self.grn_beta_F = param(self, "grn_beta", zeros, (hidden,), **vector)
            init = nn.initializers.constant(self.layer_scale)
            self.gamma_D = param(self, "layer_scale", init, (width,), ("embed",), decay=False)

    def spatial(self, x_BYXD: jax.Array, train: bool = False, padding: Padding = SAME) -> jax.Array:
        """BN(conv(x)), the only part that needs neighbouring positions; with padding "VALID" the result is kernel - 1 smaller."""
        h_BYXD = self.conv(x_BYXD, train, padding)
        return h_BYXD if self.merged else self.norm(h_BYXD, train)

    def gate(self, mean_BD: jax.Array) -> jax.Array:
        """Squeeze-and-excitation: the factor of each channel, from the mean over all positions."""
        return jax.nn.sigmoid(self.excite(nn.relu(self.squeeze(mean_BD))))

    def expand(self, h_BYXD: jax.Array, gate_BD: jax.Array) -> jax.Array:
        return nn.gelu(self.up(h_BYXD * gate_BD[:, None, None]), approximate=False)

    def contract(self, h_BYXF: jax.Array, square_BF: jax.Array, train: bool = False) -> jax.Array:
        """The output of the branch; `square_BF`: squares of the result of `expand`, summed over all positions."""
        h_BYXF = _reparam.respond(h_BYXF, square_BF[:, None, None], self.grn_gamma_F)
        if self.merged:
            return self.down(h_BYXF)
        h_BYXF += self.grn_beta_F.astype(self.dtype)
        return self.down_norm(self.down(h_BYXF), train) * self.gamma_D.astype(self.dtype)

    def __call__(self, x_BYXD: jax.Array, rate: jax.Array | None = None, train: bool = False) -> jax.Array:
        """`rate`: probability of dropping the branch; None: never."""
        acc = _time.accumulation_dtype(x_BYXD)
        h_BYXD = self.spatial(x_BYXD, train)
        mean_BD = jnp.mean(h_BYXD, axis=(1, 2), dtype=acc).astype(self.dtype)
        h_BYXF = self.expand(h_BYXD, self.gate(mean_BD))
        y_BYXD = self.contract(h_BYXF, jnp.sum(jnp.square(h_BYXF.astype(acc)), axis=(1, 2)), train)
        return x_BYXD + (drop_path(self, y_BYXD, rate) if train and rate is not None else y_BYXD)


class Reduce(nn.Module):
    """Halve rows and columns: a 3 x 3 convolution of stride 2 and a norm over channels; then GELU if another Reduce follows."""

    width: int
    gelu: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BYXI: jax.Array, padding: Padding = ((1, 1), (1, 1))) -> jax.Array:
        shape = (3, 3, x_BYXI.shape[-1], self.width)
        kernel_WWID = param(self, "kernel", INIT, shape, (None, None, None, "embed"))
        bias_D = param(self, "bias", nn.initializers.zeros, (self.width,), ("embed",), decay=False)
        y_BYXD = convolve(x_BYXI.astype(self.dtype), kernel_WWID, 2, padding) + bias_D.astype(self.dtype)
        y_BYXD = LayerNorm(1e-6, self.dtype, name="norm")(y_BYXD)
        return nn.gelu(y_BYXD, approximate=False) if self.gelu else y_BYXD
