"""Gated DeltaNet's mixer (Yang et al. 2024, arXiv:2412.06464, §3.3), as flash-linear-attention and Qwen3-Next build it."""

from typing import Any

import jax
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.mixers._delta import DeltaMixer, DeltaMixerState


class GatedDeltaNet(DeltaMixer):
    """y = (rms_norm(gated_delta_rule(q, k, v, log_a, beta)) * gate(x W_g)) W_o, the norm over each head.

    q, k, v = silu(conv(x W)); q and k are normalised to unit length. beta = sigmoid(x W_beta); log_a = -A softplus(x W_a + b_dt).
    A and b_dt are one number per value head, in float32, without weight decay. Initial values: A from U(1e-4, 16) (U(0, 16) in
    flash-linear-attention, layers/gated_deltanet.py), b_dt the inverse softplus of a log-uniform step.
    """

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        conv, delta = (None, None) if state is None else state
        value_heads, _, value_size = self.sizes()
        q, k, v, conv = self.convolved(x_BTD, conv, call)
        log_a_BTH = self.log_decay(self.project(x_BTD, (value_heads,), "a"), 1e-4, 16)
        op = call.op("gated_delta_rule")
        y_BTHV, delta = op(q, k, v, log_a_BTH, self.rate(x_BTD), state=delta)
        return Mixed(self.out(y_BTHV, self.project(x_BTD, (value_heads, value_size), "g")), DeltaMixerState(conv, delta))
