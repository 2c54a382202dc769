"""S4: a state space model with a diagonal plus rank-one matrix, initially HiPPO (Gu et al. 2021, arXiv:2111.00396)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.layers import Mixer, param
from jaxseq.mixers import _ssm
from jaxseq.ops import dplr_ssm


class S4(Mixer):
    """y = GLU(W gelu(ssm(x)) + b), one `dplr_ssm` per channel: A = diag(-exp(A_log) + i A_imag) - P P*, initially HiPPO-LegS.

    The parameters of the SSM are float32, without weight decay, with learning-rate multiplier `kernel_lr`. The published S4
    trains C (I - A^L) instead of C, to avoid a matrix inverse in its Cauchy kernel; set `kernel_length` = L for such weights.
    """

    state_size: int = 64  # real numbers per channel, two for each conjugate pair
    dt_min: float = 0.001
    dt_max: float = 0.1
    kernel_lr: float = 1.0  # learning-rate multiplier of A, P, B and the steps
    kernel_length: int | None = None  # the parameter is C (I - A^kernel_length); default: the parameter is C

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> dplr_ssm.DPLRState:
        return dplr_ssm.init_state(batch, self.width, _ssm.check(self.state_size, "legs", "bilinear"), self.dtype)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        modes, width, lr = _ssm.check(self.state_size, "legs", "bilinear"), self.width, self.kernel_lr
        lam, p, b = _ssm.hippo(self.state_size)

        def vector(name, init, lr=1.0):
            return _ssm.packed(param(self, name, init, (width, modes, 2), ("embed", None, None), decay=False, lr=lr))

        dt_D = jnp.exp(
            param(self, "log_dt", _ssm.log_uniform(self.dt_min, self.dt_max), (width,), ("embed",), decay=False, lr=lr)
        )
        system = {"lam_DM": _ssm.matrix(self, width, np.imag(lam), lr), "P_DM": vector("P", _ssm.constant(p), lr), "dt_D": dt_D}
        c_DM = vector("C", _ssm.complex_normal)
        if self.kernel_length:
            c_DM = dplr_ssm.whole(c_DM, self.kernel_length, **system)
        d_D = param(self, "D", jax.nn.initializers.normal(1.0), (width,), ("embed",), decay=False)
        y_BTD, state = call.op("dplr_ssm")(
            x_BTD, b_DM=vector("B", _ssm.constant(b), lr), c_DM=c_DM, d_D=d_D, state=state, **system
        )
        return Mixed(_ssm.gated_output(self, y_BTD), state)
