"""Residual connections that carry the normed stream: DeepNorm as in MiniMax-01 (arXiv:2501.08313, §2.1)."""

import jax

from jaxseq.blocks._block import Serial


class NormedResidual(Serial):
    """h = norm(x), x <- alpha h + beta mixer(h).

    This is post-norm, x <- norm(alpha x + beta mixer(x)), with each norm moved from the end of one step to the beginning of the
    next. DeepNorm (Wang et al. 2022, arXiv:2203.00555, table 2) has alpha > 1.
    """

    alpha: float = 1.0
    beta: float = 1.0

    def before(self, x_BTD: jax.Array, name: str) -> jax.Array:
        return self.normed(x_BTD, name)

    def after(self, x_BTD: jax.Array, h_BTD: jax.Array, y_BTD: jax.Array, name: str) -> jax.Array:
        return self.alpha * h_BTD.astype(x_BTD.dtype) + self.beta * y_BTD
