"""Pre-norm residual block: x <- x + mixer(norm(x)) for each mixer, in the order of the stack."""

from flax import linen as nn

from jaxseq.blocks._block import Block
from jaxseq.layers import constrain


class Residual(Block):
    """Mixers one after another, each with its own norm: x <- x + mixer(norm(x))."""

    @nn.compact
    def __call__(self, x_BTD, streams, state, pos_BT, form, layer=None, train=False):
        after = []
        for mixer, before in zip(self.mixers, state or (None,) * len(self.mixers), strict=True):
            h_BTD = self.normed(x_BTD, mixer.name)
            h_BTD, streams, s = self.run(mixer, h_BTD, streams, before, pos_BT, form, layer, train)
            x_BTD = constrain(x_BTD + h_BTD.astype(x_BTD.dtype), ("batch", "time", None))
            after.append(s)
        return x_BTD, streams, tuple(after)
