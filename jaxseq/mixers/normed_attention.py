"""Attention with normalised queries and keys (Henry et al. 2020, arXiv:2010.04245) and an optional output gate."""

import jax

from jaxseq.errors import UserError
from jaxseq.layers import NORMS, Units
from jaxseq.mixers.attention import Attention


class NormedAttention(Attention):
    """y = (softmax(q k^T / sqrt(K)) v * sigmoid(x W_G)) W_O with q, k = rotate(rms_norm(x W)), the norm over each head.

    All heads share the scales of the norms. With `joint` one norm is over all heads together, as in OLMo 2 (arXiv:2501.00656,
    §3.1). `gated` adds the gate W_G on the output of the heads (Qiu et al. 2025, arXiv:2505.06708); without it this is the
    attention of Qwen3 and LFM2. Fields as in `attention`, without alibi.
    """

    gated: bool = False
    joint: bool = False  # one norm over all heads of q, and one over those of k
    norm: str = "rmsnorm"  # or rmsnorm_offset, …, see layers.NORMS
    eps: float = 1e-6  # of the norms
    initial: str = "llama"

    def units(self, kind: str) -> Units | str:
        return "the joint norm depends on all heads" if kind == "heads" and self.joint else super().units(kind)

    def _normed(self, q_BTHK, k_BTGK):
        if self.norm not in NORMS:
            raise UserError(f"there is no norm {self.norm!r}; choose one of: {', '.join(NORMS)}")

        def normed(x_BTHK, name):
            norm = NORMS[self.norm](self.eps, self.dtype, name=name)
            return norm(jax.lax.collapse(x_BTHK, 2)).reshape(x_BTHK.shape) if self.joint else norm(x_BTHK)

        return normed(q_BTHK, "q_norm"), normed(k_BTGK, "k_norm")

    def _gated(self, y_BTHK, project):
        return y_BTHK * jax.nn.sigmoid(project(self.heads, "heads", "g")) if self.gated else y_BTHK
