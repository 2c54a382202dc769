"""Gated linear attention in place of softmax attention.

Queries, keys, values and output are taken over; the output gate and the low-rank map to the decays are new. Decays start near
RetNet's gamma_h = 1 - 2^(-5 - h) (Sun et al. 2023, arXiv:2307.08621, §2.2), so that heads begin with different memories; the
mixer's own initial values forget within about 20 tokens.
"""

from typing import Any

import jax.numpy as jnp

from jaxseq.migrate import _heads
from jaxseq.mixers.attention import Attention
from jaxseq.mixers.gla import GatedLinearAttention
from jaxseq.mixers.retention import decay_published


def fields(mixer: Attention, argument: str) -> dict[str, Any]:
    _heads.whole_width(mixer, "gla")
    return {"heads": mixer.heads, "key_factor": 1.0, "value_factor": 1}


def arrays(mixer: Attention, own: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    q_LDHK, k_LDHK, v_LDHK, o_LHKD = _heads.projections(mixer, own)
    log_a_H = jnp.log(decay_published(mixer.heads)) * GatedLinearAttention.tau
    bias_LHK = jnp.broadcast_to((log_a_H - jnp.log(-jnp.expm1(log_a_H)))[:, None], new["w_b/bias"].shape)  # sigmoid = e^log_a
    return {"q/kernel": q_LDHK, "k/kernel": k_LDHK, "v/kernel": v_LDHK, "o/kernel": o_LHKD, "w_b/bias": bias_LHK}


dropped = _heads.dropped
