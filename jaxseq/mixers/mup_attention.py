"""Attention with the forward multipliers of Falcon-H1 (Zuo et al. 2025, arXiv:2507.22448), an extension of µP."""

from typing import Any

import jax

from jaxseq.call import Call, Mixed
from jaxseq.mixers.attention import Attention


class MupAttention(Attention):
    """y = out attention(in x), with k = key (in x) W_K. Fields as in `attention`.

    The multipliers are constants of the config; µP (Yang et al. 2022, arXiv:2203.03466) scales them with the width.
    """

    in_multiplier: float = 1.0
    key_multiplier: float = 1.0
    out_multiplier: float = 1.0

    def _normed(self, q_BTHK, k_BTGK):
        return q_BTHK, self.key_multiplier * k_BTGK

    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        mixed = super().mix(self.in_multiplier * x_BTD, state, call)
        return mixed._replace(y_BTD=self.out_multiplier * mixed.y_BTD)
