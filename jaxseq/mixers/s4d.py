"""S4D: a state space model with a diagonal matrix in every channel (Gu et al. 2022, arXiv:2206.11893)."""

from typing import Any

import jax
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.layers import Mixer
from jaxseq.mixers import _ssm
from jaxseq.ops import diagonal_ssm


class S4D(Mixer):
    """y = GLU(W gelu(ssm(x)) + b), one `diagonal_ssm` per channel: A = -exp(A_log) + i A_imag, steps exp(log_dt).

    The parameters of the SSM are float32, without weight decay, with learning-rate multiplier `kernel_lr`. Initial values: C
    complex normal, B one, D normal.
    """

    state_size: int = 64  # real numbers per channel, two for each conjugate pair
    frequencies: str = "lin"  # initial imaginary parts: lin (pi n), inv, legs (HiPPO-LegS)
    discretisation: str = "zoh"  # or bilinear
    dt_min: float = 0.001
    dt_max: float = 0.1
    input_map: bool = True  # train B; else it is 1
    kernel_lr: float = 1.0  # learning-rate multiplier of A, B and the steps

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> diagonal_ssm.DiagonalSSMState:
        modes = _ssm.check(self.state_size, self.frequencies, self.discretisation)
        return diagonal_ssm.init_state(batch, self.width, modes, self.dtype)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        weights = _ssm.diagonal(
            self, self.width, self.state_size, self.frequencies, self.discretisation,
            (self.dt_min, self.dt_max), self.kernel_lr, self.input_map,
        )  # fmt: skip
        y_BTD, state = call.op("diagonal_ssm")(x_BTD, state=state, **weights)
        return Mixed(_ssm.gated_output(self, y_BTD), state)
