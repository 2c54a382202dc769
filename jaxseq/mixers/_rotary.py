"""Frequencies of rotary positions, and their changes for contexts longer than those of training."""

import functools
import math
from typing import Protocol

import jax
import jax.numpy as jnp

from jaxseq.errors import UserError


class Rotary(Protocol):
    """The fields of a mixer that determine its frequencies."""

    theta: float
    rope_scaling: str  # a key of SCALINGS
    rope_factor: float  # by which low frequencies are divided
    rope_context: int  # tokens of the contexts in training
    rope_slow: float  # frequencies that turn at most this often in rope_context are divided
    rope_fast: float  # frequencies that turn at least this often are unchanged


def _linear(mixer: Rotary, frequency_F: jax.Array) -> jax.Array:
    """All are divided: positions are interpolated (Chen et al. 2023, arXiv:2306.15595, eq. 4)."""
    return frequency_F / mixer.rope_factor


def _blend(mixer: Rotary, frequency_F: jax.Array, kept_F: jax.Array) -> jax.Array:
    kept_F = jnp.clip(kept_F, 0, 1)
    return frequency_F * (kept_F + (1 - kept_F) / mixer.rope_factor)


def _llama3(mixer: Rotary, frequency_F: jax.Array) -> jax.Array:
    """The kept fraction is linear in the number of turns (YaRN, Peng et al. 2023, arXiv:2309.00071, eq. 18; Llama 3.1)."""
    turns_F = mixer.rope_context * frequency_F / (2 * math.pi)
    return _blend(mixer, frequency_F, (turns_F - mixer.rope_slow) / (mixer.rope_fast - mixer.rope_slow))


def _yarn(mixer: Rotary, frequency_F: jax.Array, rounded: bool) -> jax.Array:
    """The kept fraction is linear in the index of the frequency, as in YaRN's released code, which rounds both ends outwards."""
    count = frequency_F.shape[0]

    def index(turns: float) -> float:
        return count * math.log(mixer.rope_context / (2 * math.pi * turns)) / math.log(mixer.theta)

    first, last = index(mixer.rope_fast), index(mixer.rope_slow)
    if rounded:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * count - 1)
    return _blend(mixer, frequency_F, 1 - (jnp.arange(count) - first) / max(last - first, 1e-3))


SCALINGS = {
    "none": lambda mixer, frequency_F: frequency_F,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": functools.partial(_yarn, rounded=True),
    "yarn_exact": functools.partial(_yarn, rounded=False),  # gpt-oss
}


def frequencies(mixer: Rotary, channels: int) -> jax.Array:
    """[channels / 2]: theta^(-2i / channels), changed by the mixer's `rope_scaling`.

    Raises UserError for an unknown scaling and for `rope_slow` that is not below `rope_fast`.
    """
    if mixer.rope_scaling not in SCALINGS:
        raise UserError(f"there is no rope_scaling {mixer.rope_scaling!r}; choose one of: {', '.join(SCALINGS)}")
    if mixer.rope_slow >= mixer.rope_fast:
        raise UserError(f"rope_slow={mixer.rope_slow} must be below rope_fast={mixer.rope_fast}; change one of them")
    return SCALINGS[mixer.rope_scaling](mixer, mixer.theta ** (-jnp.arange(0, channels, 2) / channels))
