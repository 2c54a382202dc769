"""Pre-norm residual block whose mixers are multiplied by a constant, as in Granite (arXiv:2405.04324) and Granite 4.0-H."""

from jaxseq.blocks._serial import Serial


class Scaled(Serial):
    """x <- x + scale mixer(norm(x)), for each mixer in the order of the stack."""

    scale: float = 1.0

    def before(self, x_BTD, name):
        return self.normed(x_BTD, name)

    def after(self, x_BTD, h_BTD, y_BTD, name):
        return x_BTD + self.scale * y_BTD
