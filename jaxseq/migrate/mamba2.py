"""Mamba-2 in place of softmax attention, in the variant made for it (Bick et al. 2024, arXiv:2408.10189, §4.3): C takes the
weights of the queries, B of the keys, x of the values, as also in Wang et al. 2024 (arXiv:2408.15237, §2.2).

At first each head computes attention to first order: softmax weights are exp(q.k / sqrt(K)) up to a factor, about 1 + q.k /
sqrt(K). The 1 comes from an additional channel of B and C that is constant. In place of the sum over all tokens, which the
softmax divides by, stand decays: sum_s gamma^(t - s) (1 - gamma) is about 1. The decays gamma_h are RetNet's (arXiv:2307.08621,
§2.2), for all tokens alike. The convolution is the identity, the gate 1, and D 0.
"""

from typing import Any

import jax.numpy as jnp

from jaxseq.migrate import _heads
from jaxseq.mixers.attention import Attention
from jaxseq.mixers.retention import decay_published

MIXER = "discrete_mamba2"
UNIT = 1.27846454  # silu of it is 1


def fields(mixer: Attention, argument: str) -> dict[str, Any]:
    heads, size = _heads.sizes(mixer)
    return {"inner": heads * size, "heads": heads, "state_size": size + 1}


def arrays(mixer: Attention, own: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    heads, size = _heads.sizes(mixer)
    q_LDHK, k_LDHK, v_LDHK, o_LHKD = _heads.projections(mixer, own)
    kept_H = decay_published(heads)
    scale = size**-0.5 if mixer.scale is None else mixer.scale
    one = lambda x_LDHK: jnp.pad(x_LDHK, ((0, 0), (0, 0), (0, 0), (0, 1)))  # noqa: E731  the constant channel, last
    flat = lambda x_LDHK: x_LDHK.reshape(*x_LDHK.shape[:2], -1)  # noqa: E731
    b_LDHK = one(k_LDHK) * scale * (1 - kept_H)[:, None]
    zero_LDI, zero_LDH = (jnp.zeros((*v_LDHK.shape[:2], n)) for n in (heads * size, heads))
    in_LDF = jnp.concatenate([zero_LDI, flat(v_LDHK), flat(b_LDHK), flat(one(q_LDHK)), zero_LDH], axis=-1)

    last_K = jnp.arange(size + 1) == size
    b_HK, c_HK = jnp.outer(1 - kept_H, last_K), jnp.outer(jnp.ones(heads), last_K)
    bias_D = jnp.concatenate([jnp.zeros(heads * size), b_HK.reshape(-1), c_HK.reshape(-1)])
    everywhere = lambda name, value: jnp.broadcast_to(value, new[name].shape)  # noqa: E731
    return {
        "in/kernel": in_LDF, "out/kernel": o_LHKD.reshape(o_LHKD.shape[0], heads * size, -1),
        "conv_kernel": jnp.zeros_like(new["conv_kernel"]).at[:, 0].set(1), "conv_bias": everywhere("conv_bias", bias_D),
        "z_bias": everywhere("z_bias", UNIT), "D": jnp.zeros_like(new["D"]),
        "a_bias": everywhere("a_bias", jnp.log(jnp.expm1(-jnp.log(kept_H)))),
    }  # fmt: skip


dropped = _heads.dropped
