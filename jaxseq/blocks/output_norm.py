"""Norms on the outputs of the mixers: x <- x + norm(mixer(x)), as in OLMo 2 (OLMo Team 2024, arXiv:2501.00656, §3.1)."""

import re

import jax

from jaxseq.blocks._block import Serial


class OutputNorm(Serial):
    """x <- x + norm(mixer(x)), or x + mixer(norm(x)) for the mixers whose labels are in `pre`.

    OLMo Hybrid norms the outputs of attention and of the feed-forward after it, and the inputs of its other mixers.
    """

    pre: str = ""  # labels, separated by spaces: "gdn swiglu"

    def _pre(self, name: str) -> bool:
        """Whether the mixer with this name, a label or one with the suffix _1, _2 …, is in `pre`."""
        return {name, re.sub(r"_\d+$", "", name)} & set(self.pre.split()) != set()

    def before(self, x_BTD: jax.Array, name: str) -> jax.Array:
        return self.normed(x_BTD, name) if self._pre(name) else x_BTD

    def after(self, x_BTD: jax.Array, h_BTD: jax.Array, y_BTD: jax.Array, name: str) -> jax.Array:
        return x_BTD + (y_BTD if self._pre(name) else self.normed(y_BTD, name).astype(x_BTD.dtype))
