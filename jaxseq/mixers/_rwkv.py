"""What the RWKV mixers share: the initial values that depend on channel and depth, and the mixing of a token with the last."""

import jax
import jax.numpy as jnp

from jaxseq.layers import param


def depth(layer, layers: int):
    """(0 .. 1, 1 .. almost 0) over the layers, the two ratios of the released initialisation; one layer counts as the first."""
    layer = 0 if layer is None else layer
    return layer / max(layers - 1, 1), 1 - layer / layers


def ramp(width: int, dtype=jnp.float32):
    """i / D for each channel."""
    return jnp.arange(width, dtype=dtype) / width


def constant(value):
    """An initialiser that ignores its key."""
    return lambda key, shape, dtype: jnp.broadcast_to(value, shape).astype(dtype)


def orthogonal(gain: float = 1.0):
    """Orthogonal, larger by sqrt(outputs / inputs) where there are more outputs (the released code's `RWKV_Init`)."""

    def init(key, shape, dtype):
        scale = gain * max(1.0, shape[1] / shape[0]) ** 0.5
        return jax.nn.initializers.orthogonal(scale)(key, shape, dtype)

    return init


zeros = jax.nn.initializers.zeros


def mix(module, name: str, share, x_BTD, last_BTD, lr: float = 1.0):
    """mu x_t + (1 - mu) x_{t-1} with mu = `share` at the start."""
    mu_D = param(module, name, constant(share), x_BTD.shape[-1:], ("embed",), decay=False, lr=lr).astype(x_BTD.dtype)
    return last_BTD + mu_D * (x_BTD - last_BTD)


def decay_speed(width: int, low: float, span: float, ratio):
    """low + span (n / (D - 1))^(0.7 + 1.3 ratio): channels that remember from long to short."""
    n_D = jnp.arange(width) / max(width - 1, 1)
    return low + span * n_D ** (0.7 + 1.3 * ratio)


def zigzag(width: int):
    """-1, 0, 1 in turn: (n + 1) mod 3 - 1."""
    return (jnp.arange(width) + 1) % 3 - 1.0


def group_norm(module, x_BTHV, eps: float):
    """Layer norm of each head, with a scale and bias for every channel (torch's GroupNorm with H groups): [B, T, H V]."""
    acc = jnp.promote_types(x_BTHV.dtype, jnp.float32)
    y = x_BTHV.astype(acc)
    y -= jnp.mean(y, axis=-1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    y_BTD = y.reshape(*y.shape[:2], y.shape[2] * y.shape[3])
    scale_D = param(module, "ln_x_scale", jax.nn.initializers.ones, y_BTD.shape[-1:], ("heads",), decay=False)
    bias_D = param(module, "ln_x_bias", zeros, y_BTD.shape[-1:], ("heads",), decay=False)
    return (y_BTD * scale_D + bias_D).astype(module.dtype)
