"""Mamba-2 with log-linear attention (Guo et al. 2025, arXiv:2506.04761, §3.3), as flash-linear-attention builds it."""

from typing import Any

import jax
from flax import linen as nn

from jaxseq.call import Call
from jaxseq.layers import Linear, param
from jaxseq.mixers.mamba import fan_in_uniform
from jaxseq.mixers.mamba2 import Mamba2, Mamba2State
from jaxseq.ops import _time, log_linear, short_conv


class LogLinearMamba2(Mamba2):
    """`mamba2` whose past is read in parts that grow with their distance, each with its own factor.

    The op is `log_linear` with the factors softplus(lambda * (u W_levels)); lambda is a number per head and level, initially 1,
    without weight decay. W_levels is drawn as `in`'s weights are, of which it is a part in the published code. Fields as in
    `mamba2`.
    """

    levels: int = 15  # the last level also holds all tokens older than 2^(levels - 1)

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> Mamba2State:
        inner, size, selected = self._sizes()
        conv = short_conv.init_state(batch, self.taps, inner + selected, self.dtype)
        sizes = self.levels, self.heads, self.state_size, size
        return Mamba2State(conv, log_linear.init_state(batch, *sizes, self.dtype))

    def _ssd(self, x_BTD, c_BTGK, b_BTGK, v_BTHV, log_a_BTH, state: Any, call: Call):
        shape, axes = (self.heads, self.levels), ("heads", None)
        project = Linear(shape, ("embed", *axes), init_fn=fan_in_uniform, dtype=self.dtype, name="levels")
        lambda_HL = param(self, "lambda", nn.initializers.ones, shape, axes, decay=False)
        acc = _time.accumulation_dtype(x_BTD)
        scale_BTHL = jax.nn.softplus(lambda_HL * project(x_BTD).astype(acc))
        return call.op("log_linear")(c_BTGK, b_BTGK, v_BTHV, log_a_BTH, scale_BTHL, state=state)
