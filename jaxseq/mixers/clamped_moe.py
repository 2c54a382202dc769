"""Experts with a clamped SwiGLU and biases (OpenAI 2025, gpt-oss, arXiv:2508.10925, §2)."""

import jax
import jax.numpy as jnp

from jaxseq.errors import UserError
from jaxseq.mixers.moe import MoE


class ClampedMoE(MoE):
    """As `moe`, with expert(x) = (g sigmoid(alpha g) (u + 1)) W_down + b.

    g = min(x W_gate + b, limit), u = x W_up + b clipped to -limit … limit. The router has a bias too. `activation` has no effect.
    Raises UserError if not `gated`.
    """

    bias: bool = True
    alpha: float = 1.702
    limit: float = 7.0
    initial: str = "llama"

    def _inner(self):
        if not self.gated:
            raise UserError("the experts of clamped_moe have a gate; leave gated true, or use moe")

        def inner(gate, up):
            gate, up = jnp.minimum(gate, self.limit), jnp.clip(up, -self.limit, self.limit)
            return gate * jax.nn.sigmoid(self.alpha * gate) * (up + 1)

        return inner
