"""RWKV-6's time mixing in place of softmax attention: r takes the weights of the queries.

At first no previous token is mixed in, as in attention. The gate, the decays and the bonus of the current token are new.
"""

from typing import Any

import jax.numpy as jnp

from jaxseq.migrate import _heads
from jaxseq.mixers.attention import Attention


def fields(mixer: Attention, argument: str) -> dict[str, Any]:
    _heads.whole_width(mixer, "rwkv6")
    return {"heads": mixer.heads}


def arrays(mixer: Attention, own: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    q_LDHK, k_LDHK, v_LDHK, o_LHKD = _heads.projections(mixer, own)
    unmixed = {name: jnp.zeros_like(x) for name, x in new.items() if name.startswith("mix_") and name not in ("mix_a", "mix_b")}
    out_LDD = o_LHKD.reshape(o_LHKD.shape[0], -1, o_LHKD.shape[-1])
    return {"r/kernel": q_LDHK, "k/kernel": k_LDHK, "v/kernel": v_LDHK, "o/kernel": out_LDD} | unmixed


dropped = _heads.dropped
