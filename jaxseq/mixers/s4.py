"""S4: a state space model whose matrix, HiPPO's at first, is diagonal plus rank one (Gu et al. 2021, arXiv:2111.00396)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq import forms
from jaxseq.layers import Mixer, param
from jaxseq.mixers import _ssm
from jaxseq.ops import dplr_ssm


class S4(Mixer):
    """y = GLU(W gelu(ssm(x)) + b), ssm a `dplr_ssm` a channel: A = diag(-exp(A_log) + i A_imag) - P P*, HiPPO-LegS at first.

    The SSM's parameters are float32 without weight decay and may learn more slowly. S4 as published trains C (I - A^L) in place
    of C, so that its Cauchy kernel has no inverse in it; weights trained so are read with `kernel_length` = L.
    """

    state_size: int = 64  # real numbers: half as many complex ones, each of which stands for a conjugate pair
    dt_min: float = 0.001
    dt_max: float = 0.1
    kernel_lr: float = 1.0  # learning-rate multiplier of A, P, B and the steps
    kernel_length: int | None = None  # of the filter for which C is stored; default: C is C

    @nn.nowrap
    def init_state(self, batch, context):
        return dplr_ssm.init_state(batch, self.width, _ssm.check(self.state_size, "legs", "bilinear"), self.dtype)

    @nn.compact
    def mix(self, x_BTD, state, pos_BT, form, layer, train):
        modes, width, lr = _ssm.check(self.state_size, "legs", "bilinear"), self.width, self.kernel_lr
        lam, p, b = _ssm.hippo(self.state_size)

        def vector(name, init, lr=1.0):
            return _ssm.packed(param(self, name, init, (width, modes, 2), ("embed", None, None), decay=False, lr=lr))

        dt_D = jnp.exp(
            param(self, "log_dt", _ssm.log_uniform(self.dt_min, self.dt_max), (width,), ("embed",), decay=False, lr=lr)
        )
        system = {"lam_DM": _ssm.matrix(self, width, lam.imag, lr), "P_DM": vector("P", _ssm.constant(p), lr), "dt_D": dt_D}
        c_DM = vector("C", _ssm.complex_normal)
        if self.kernel_length:
            c_DM = dplr_ssm.whole(c_DM, self.kernel_length, **system)
        d_D = param(self, "D", jax.nn.initializers.normal(1.0), (width,), ("embed",), decay=False)
        y_BTD, state = forms.op("dplr_ssm", form, x_BTD.shape[1])(
            x_BTD, b_DM=vector("B", _ssm.constant(b), lr), c_DM=c_DM, d_D=d_D, state=state, pos=pos_BT, **system
        )
        return _ssm.gated_output(self, y_BTD), state
