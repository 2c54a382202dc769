"""Pre-norm residual block whose mixers are multiplied by a constant, as in Granite (arXiv:2405.04324) and Granite 4.0-H."""

import jax

from jaxseq.blocks._block import Serial


class Scaled(Serial):
    """x <- x + scale mixer(norm(x)), for each mixer in the order of the stack."""

    scale: float = 1.0

    def before(self, x_BTD: jax.Array, name: str) -> jax.Array:
        return self.normed(x_BTD, name)

    def after(self, x_BTD: jax.Array, h_BTD: jax.Array, y_BTD: jax.Array, name: str) -> jax.Array:
        return x_BTD + self.scale * y_BTD
