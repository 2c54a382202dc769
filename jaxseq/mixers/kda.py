"""Kimi Delta Attention's mixer (Kimi Team 2025, arXiv:2510.26692, §4)."""

from typing import Any

import jax
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.mixers._delta import DeltaMixer, DeltaMixerState


class KimiDeltaAttention(DeltaMixer):
    """y = (rms_norm(kda(q, k, v, log_w, beta)) * sigmoid(x A_g B_g)) W_o, the norm over each head.

    q, k, v = silu(conv(x W)); q and k are normalised to unit length. beta = sigmoid(x W_beta);
    log_w = -A softplus(x A_f B_f + b_dt) for each key channel, with one A per value head. A and b_dt are float32, without weight
    decay. Initial values: A from U(1, 16), b_dt the inverse softplus of a log-uniform step (transformers,
    KimiLinearPreTrainedModel, after flash-linear-attention).
    """

    gate: str = "sigmoid"
    rank: int | None = None  # of the two low-rank maps; default: the key size

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        conv, delta = (None, None) if state is None else state
        value_heads, key_size, value_size = self.sizes()
        rank = self.rank or key_size
        q, k, v, conv = self.convolved(x_BTD, conv, call)
        log_w_BTHK = self.log_decay(self.low_rank(x_BTD, rank, (value_heads, key_size), "f"), 1, 16)
        op = call.op("kda")
        y_BTHV, delta = op(q, k, v, log_w_BTHK, self.rate(x_BTD), state=delta)
        return Mixed(self.out(y_BTHV, self.low_rank(x_BTD, rank, (value_heads, value_size), "g")), DeltaMixerState(conv, delta))
