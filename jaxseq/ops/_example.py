"""Return types and helpers of an op's `example` and `stress`: the inputs used by tests, benchmark and report."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

LOG_DECAYS = ("kept", "slow", "fast", "mixed")
STRESSES = (*LOG_DECAYS, "repeated", "large")


class Example(NamedTuple):
    """Arguments of `form(*xs, state=state, pos=pos, **weights, **options)`."""

    xs: tuple  # arrays [B, T, ...]
    weights: dict[str, Any]  # arrays without a time axis
    options: dict[str, Any]  # static Python values
    state: Any  # after a random prefix; large enough that at least 30 % of the output comes from it


def log_decays(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> dict[str, jax.Array]:
    """Log-decays as found in trained models: kept (0), slow (about -1e-4), fast (about -50), and mixed (from 0 to -1e4)."""
    keys = jax.random.split(key, 3)
    rate = jax.random.uniform(keys[0], shape, dtype, 0.5, 1.5)
    mixed = jax.random.choice(keys[2], jnp.asarray([0, -1e-3, -1e-3, -1, -50, -1e4], dtype), shape)
    return {"kept": jnp.zeros(shape, dtype), "slow": -1e-4 * rate, "fast": -50 * rate, "mixed": rate * mixed}


def gates(log_decay: jax.Array) -> jax.Array:
    """x with sigmoid(x) = e^log_decay, clipped to [-60, 60]."""
    return jnp.clip(-jnp.log(jnp.expm1(jnp.minimum(-log_decay, 60))), -60, 60)


def outliers(key: jax.Array, x: jax.Array) -> jax.Array:
    """x scaled by exp(2 n), n ~ N(0, 1): some values are a thousand times as large as others."""
    return x * jnp.exp(2 * jax.random.normal(key, x.shape, x.dtype))


def repeated(*xs: jax.Array) -> tuple[jax.Array, ...]:
    """The first token repeated at all T positions."""
    return tuple(jnp.broadcast_to(x[:, :1], x.shape) for x in xs)


def stresses(
    key: jax.Array,
    base: Example,
    shape: tuple[int, ...],
    with_log_decays: Callable[[jax.Array], Example],
    repeated_tokens: Example | None = None,
    large: Example | None = None,
) -> dict[str, Example]:
    """The cases of STRESSES by name. By default "repeated" repeats the first token and "large" has outliers in xs[0]."""
    key_decay, key_large = jax.random.split(key)
    cases = {name: with_log_decays(x) for name, x in log_decays(key_decay, shape, base.xs[0].dtype).items()}
    if large is None:
        large = base._replace(xs=(outliers(key_large, base.xs[0]), *base.xs[1:]))
    return cases | {"repeated": repeated_tokens or base._replace(xs=repeated(*base.xs)), "large": large}
