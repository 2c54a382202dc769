"""Pre-norm residual block: x <- x + mixer(norm(x)) for each mixer, in the order of the stack."""

from jaxseq.blocks._serial import Serial


class Residual(Serial):
    """Mixers one after another, each with its own norm: x <- x + mixer(norm(x))."""

    def before(self, x_BTD, name):
        return self.normed(x_BTD, name)

    def after(self, x_BTD, h_BTD, y_BTD, name):
        return x_BTD + y_BTD
