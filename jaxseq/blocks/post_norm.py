"""The original Transformer's residual connections (Vaswani et al. 2017, arXiv:1706.03762, §3.1): x <- norm(x + mixer(x))."""

import jax

from jaxseq.blocks._block import Serial


class PostNorm(Serial):
    """x <- norm(x + mixer(x)); without a norm after the last block, as in OPT-350m."""

    def before(self, x_BTD: jax.Array, name: str) -> jax.Array:
        return x_BTD

    def after(self, x_BTD: jax.Array, h_BTD: jax.Array, y_BTD: jax.Array, name: str) -> jax.Array:
        return self.normed(x_BTD + y_BTD, name)
