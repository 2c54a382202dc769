"""Mamba-2 in place of softmax attention: C takes the weights of the queries, B of the keys, x of the values (Wang et al. 2024,
arXiv:2408.15237, §2.2).

Every head has its own B and C. The convolution starts as the identity; the gate, dt and decays are new.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxseq.migrate import _heads
from jaxseq.mixers.attention import Attention


def fields(mixer: Attention, argument: str) -> dict[str, Any]:
    heads, size = _heads.sizes(mixer)
    return {"inner": heads * size, "heads": heads, "groups": heads, "state_size": size}


def arrays(mixer: Attention, own: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    heads, size = _heads.sizes(mixer)
    inner = heads * size
    q, k, v, o_LHKD = _heads.projections(mixer, own)
    flat = lambda x_LDHK: x_LDHK.reshape(*x_LDHK.shape[:2], inner)  # noqa: E731
    in_LDF = jnp.asarray(new["in/kernel"])  # z, x, B, C, dt
    in_LDF = jax.lax.dynamic_update_slice_in_dim(in_LDF, jnp.concatenate([flat(v), flat(k), flat(q)], axis=-1), inner, axis=2)
    identity_LWD, zero_LD = jnp.zeros_like(new["conv_kernel"]).at[:, -1].set(1), jnp.zeros_like(new["conv_bias"])
    out_LDD = o_LHKD.reshape(o_LHKD.shape[0], inner, -1)
    return {"in/kernel": in_LDF, "conv_kernel": identity_LWD, "conv_bias": zero_LD, "out/kernel": out_LDD}


dropped = _heads.dropped
