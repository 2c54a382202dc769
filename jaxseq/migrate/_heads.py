"""The projections of softmax attention, as the mixers that replace it take them over."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxseq.errors import UserError
from jaxseq.mixers.attention import Attention


class Projections(NamedTuple):
    """Kernels of H heads with a leading layer axis; keys and values of grouped heads are repeated."""

    q_LDHK: jax.Array
    k_LDHK: jax.Array
    v_LDHK: jax.Array
    o_LHKD: jax.Array


def sizes(mixer: Attention) -> tuple[int, int]:
    """(heads, channels of a head)."""
    return mixer.heads, mixer.head_size or mixer.width // mixer.heads


def projections(mixer: Attention, arrays: dict[str, Any]) -> Projections:
    """arrays: {"q/kernel": …}, the mixer's parameters."""
    times = mixer.heads // (mixer.kv_heads or mixer.heads)
    k_LDHK, v_LDHK = (jnp.repeat(arrays[f"{name}/kernel"], times, axis=2) for name in "kv")
    return Projections(arrays["q/kernel"], k_LDHK, v_LDHK, arrays["o/kernel"])


def dropped(mixer: Attention, rotary: bool = False) -> list[str]:
    """What attention has and its replacement does not. rotary: whether the replacement rotates queries and keys."""
    has = {
        "rotary positions": mixer.rotary and not rotary,
        "positions of alibi": mixer.alibi,
        "biases": mixer.bias or bool(mixer.output_bias),
        "a cap of the scores": mixer.cap is not None,
        "a sink": mixer.sink,
    }
    return [name for name, present in has.items() if present]


def whole_width(mixer: Attention, name: str) -> None:
    """Raises UserError if the heads together are not as wide as the residual stream."""
    heads, size = sizes(mixer)
    if heads * size != mixer.width:
        raise UserError(f"{name} needs heads as wide as the stream, {mixer.width}, but these are {heads} of {size} channels")
