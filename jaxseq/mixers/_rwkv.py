"""Base of the RWKV mixers: initial values by channel and depth, mixing with the previous token, heads."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike

from jaxseq import registry
from jaxseq.errors import UserError
from jaxseq.layers import Initializer, Mixer, param, recomputed
from jaxseq.ops import token_shift


class TimeMixState(NamedTuple):
    shift: token_shift.TokenShiftState  # the last input
    wkv: Any  # the op's


class HeadMixer(Mixer):
    """Time mixing with one state matrix per head, by the op `op`: RWKV-5 and later."""

    heads: int = 4  # the released models have heads of 64 channels
    eps: float = 64e-5  # of the norm of each head

    op: ClassVar[str] = "wkv6"

    @nn.nowrap
    def size(self) -> int:
        """Channels of a head."""
        if self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of {self.heads} heads; change one of them")
        return self.width // self.heads

    @nn.nowrap
    def keys(self) -> int:
        """K: key channels of a head."""
        return self.size()

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> TimeMixState:
        shift, op = token_shift.init_state(batch, self.width, self.dtype), registry.load("ops", self.op)
        return TimeMixState(shift, op.init_state(batch, self.heads, self.keys(), self.size(), self.dtype))


def depth(layer: Any, layers: int) -> tuple[Any, Any]:
    """(layer / (layers - 1), 1 - layer / layers): the two depth ratios of the released initialisation; (0, 1) for one layer."""
    return layer / max(layers - 1, 1), 1 - layer / layers


def ramp(width: int, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """i / D for each channel i, [D]."""
    return jnp.arange(width, dtype=dtype) / width


def constant(value: ArrayLike) -> Initializer:
    """An initialiser that ignores its key."""
    return lambda key, shape, dtype: jnp.broadcast_to(value, shape).astype(dtype)


orthogonal, zeros = jax.nn.initializers.orthogonal, jax.nn.initializers.zeros


def vector(
    module: nn.Module, name: str, value: ArrayLike, shape: tuple[int, ...], axes: tuple[str | None, ...], lr: float = 1.0
) -> jax.Array:
    """A parameter that starts at `value` and has no weight decay."""
    return param(module, name, constant(value), shape, axes, decay=False, lr=lr)


def mix(
    module: nn.Module, name: str, share: jax.Array, x_BTD: jax.Array, last_BTD: jax.Array, of_last: bool = False
) -> jax.Array:
    """m x_t + (1 - m) x_{t-1} with a trained m, initially `share`; with `of_last` the parameter is 1 - m."""
    mu_D = vector(module, name, 1 - share if of_last else share, x_BTD.shape[-1:], ("embed",)).astype(x_BTD.dtype)
    return x_BTD + mu_D * (last_BTD - x_BTD) if of_last else last_BTD + mu_D * (x_BTD - last_BTD)


def layer_scale(layer: Any, layers: int) -> Any:
    """((1 + layer) / layers)^0.7: initial scale of the norm of each head, from RWKV-5 on."""
    return ((1 + layer) / layers) ** 0.7


def decay_speed(width: int, low: float, span: float, ratio: ArrayLike) -> jax.Array:
    """low + span (n / (D - 1))^(0.7 + 1.3 ratio) for channel n: memories from long to short."""
    n_D = jnp.arange(width) / max(width - 1, 1)
    return low + span * n_D ** (0.7 + 1.3 * ratio)


def zigzag(width: int) -> jax.Array:
    """(n + 1) mod 3 - 1 for channel n, which cycles through 0, 1, -1."""
    return (jnp.arange(width) + 1) % 3 - 1.0


def group_norm(module: nn.Module, x_BTHV: jax.Array, eps: float, scale: ArrayLike = 1.0) -> jax.Array:
    """Layer norm of each head, with a scale and bias for every channel (torch's GroupNorm with H groups): [B, T, H V]."""
    channels = (x_BTHV.shape[2] * x_BTHV.shape[3],)

    def normed(x_BTHV, scale_D, bias_D):
        y = x_BTHV.astype(jnp.promote_types(x_BTHV.dtype, jnp.float32))
        y -= jnp.mean(y, axis=-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
        return (y.reshape(*y.shape[:2], *channels) * scale_D + bias_D).astype(module.dtype)

    scale_D = vector(module, "ln_x_scale", scale, channels, ("heads",))
    bias_D = vector(module, "ln_x_bias", 0.0, channels, ("heads",))
    return recomputed(normed)(x_BTHV, scale_D, bias_D)
