"""Norms before and after each mixer (Ding et al. 2021, CogView, arXiv:2105.13290, §2.4), as in Gemma 2 (arXiv:2408.00118, §2)."""

import jax

from jaxseq.blocks._block import Serial


class Sandwich(Serial):
    """x <- x + norm_out(mixer(norm(x)))."""

    def before(self, x_BTD: jax.Array, name: str) -> jax.Array:
        return self.normed(x_BTD, name)

    def after(self, x_BTD: jax.Array, h_BTD: jax.Array, y_BTD: jax.Array, name: str) -> jax.Array:
        return x_BTD + self.normed(y_BTD, f"{name}_out").astype(x_BTD.dtype)
