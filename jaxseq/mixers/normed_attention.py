"""Attention with normalised queries and keys (Henry et al. 2020, arXiv:2010.04245) and an optional output gate."""

import jax

from jaxseq.layers import RMSNorm
from jaxseq.mixers.attention import Attention


class NormedAttention(Attention):
    """y = (softmax(q k^T / sqrt(K)) v * sigmoid(x W_G)) W_O with q, k = rotate(rms_norm(x W)), the norm over each head.

    All heads share the scales of the norms. `gated` adds the gate W_G on the output of the heads (Qiu et al. 2025,
    arXiv:2505.06708); without it this is the attention of Qwen3 and LFM2. Fields as in `attention`, without alibi.
    """

    gated: bool = False
    eps: float = 1e-6  # of the norms
    initial: str = "llama"

    def _normed(self, q_BTHK, k_BTGK):
        q_norm, k_norm = (RMSNorm(self.eps, self.dtype, name=name) for name in ("q_norm", "k_norm"))
        return q_norm(q_BTHK), k_norm(k_BTGK)

    def _gated(self, y_BTHK, project):
        return y_BTHK * jax.nn.sigmoid(project(self.heads, "heads", "g")) if self.gated else y_BTHK
