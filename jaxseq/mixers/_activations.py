"""Elementwise nonlinearities by name."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxseq.errors import UserError
from jaxseq.layers import recomputed

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),  # x Phi(x), Phi the standard normal distribution function
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
}


def gated(activation: Callable[[jax.Array], jax.Array], gate: jax.Array, up: jax.Array) -> jax.Array:
    """activation(gate) * up; the backward pass stores only the arguments."""
    return recomputed(lambda gate, up: activation(gate) * up)(gate, up)


def find(name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation with this name. Raises UserError for an unknown name."""
    if name not in ACTIVATIONS:
        raise UserError(f"there is no activation {name!r}; choose one of: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
