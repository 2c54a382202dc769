"""Pre-norm residual block: x <- x + mixer(norm(x)) for each mixer, in the order of the stack."""

import jax

from jaxseq.blocks._block import Serial


class Residual(Serial):
    """Mixers one after another, each with its own norm: x <- x + mixer(norm(x))."""

    def before(self, x_BTD: jax.Array, name: str) -> jax.Array:
        return self.normed(x_BTD, name)

    def after(self, x_BTD: jax.Array, h_BTD: jax.Array, y_BTD: jax.Array, name: str) -> jax.Array:
        return x_BTD + y_BTD
