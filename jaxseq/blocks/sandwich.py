"""Norms before and after each mixer (Ding et al. 2021, CogView, arXiv:2105.13290, §2.4), as in Gemma 2 (arXiv:2408.00118, §2)."""

from jaxseq.blocks._serial import Serial


class Sandwich(Serial):
    """x <- x + norm_out(mixer(norm(x)))."""

    def before(self, x_BTD, name):
        return self.normed(x_BTD, name)

    def after(self, x_BTD, h_BTD, y_BTD, name):
        return x_BTD + self.normed(y_BTD, f"{name}_out").astype(x_BTD.dtype)
