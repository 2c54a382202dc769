"""Retention in place of softmax attention.

Queries, keys, values and output are taken over, the gate is new. Retention rotates adjacent pairs of channels, so those of
queries and keys are put in that order; its frequencies are nearly those of rotary attention (10000^-linspace(0, 1, K/2)).
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxseq.migrate import _heads
from jaxseq.mixers.attention import Attention


def fields(mixer: Attention, argument: str) -> dict[str, Any]:
    _heads.whole_width(mixer, "retention")
    return {"heads": mixer.heads, "value_factor": 1}


def arrays(mixer: Attention, own: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    q_LDHK, k_LDHK, v_LDHK, o_LHKD = _heads.projections(mixer, own)
    if mixer.rotary and not mixer.interleaved:
        q_LDHK, k_LDHK = (_adjacent(x, int(mixer.rotary_fraction * x.shape[-1])) for x in (q_LDHK, k_LDHK))
    return {"q/kernel": q_LDHK, "k/kernel": k_LDHK, "v/kernel": v_LDHK, "o/kernel": o_LHKD}


def _adjacent(x_LDHK: jax.Array, turned: int) -> jax.Array:
    """The first `turned` channels reordered so that pairs (i, i + turned / 2) become (2 i, 2 i + 1)."""
    pairs = x_LDHK[..., :turned].reshape(*x_LDHK.shape[:-1], 2, turned // 2)
    return jnp.concatenate([jnp.swapaxes(pairs, -1, -2).reshape(*x_LDHK.shape[:-1], turned), x_LDHK[..., turned:]], axis=-1)


def dropped(mixer: Attention) -> list[str]:
    return _heads.dropped(mixer, rotary=True)
