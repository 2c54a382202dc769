"""Gated recurrent unit with an output projection (Cho et al. 2014, arXiv:1406.1078; see `jaxseq.ops.gru`)."""

from typing import Any

import jax
from flax import linen as nn
from jax.nn.initializers import zeros

from jaxseq.call import Call, Mixed
from jaxseq.mixers._cell import Cell
from jaxseq.ops import gru


class GRU(Cell):
    """y = h W_out, h the states of a GRU. Two biases, of input and state: for the candidate only the latter is gated by r."""

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> gru.GRUState:
        return gru.init_state(batch, self.heads, self._size(), self.dtype)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        u_BTHPK = self.inputs(x_BTD, len(gru.GATES), bias=True)
        w_HKPJ, b_HPK = self.recurrent_weights(len(gru.GATES), zeros)
        op = call.op("gru")
        h_BTHK, state = op(u_BTHPK, w_HKPJ=w_HKPJ, b_HPK=b_HPK, state=state)
        return Mixed(self.output(h_BTHK), state)
