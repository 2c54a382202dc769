"""Long short-term memory with an output projection (Hochreiter & Schmidhuber 1997; see `jaxseq.ops.lstm`)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.mixers._cell import Cell
from jaxseq.ops import lstm


class LSTM(Cell):
    """y = h W_out, h the states of an LSTM. Initial forget bias `forget_bias` (Jozefowicz et al. 2015, §5), other biases 0."""

    forget_bias: float = 1.0

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> lstm.LSTMState:
        return lstm.init_state(batch, self.heads, self._size(), self.dtype)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        def bias(key, shape, dtype):
            return jnp.zeros(shape, dtype).at[:, lstm.GATES.index("f")].set(self.forget_bias)

        u_BTHPK = self.inputs(x_BTD, len(lstm.GATES), bias=False)
        w_HKPJ, b_HPK = self.recurrent_weights(len(lstm.GATES), bias)
        op = call.op("lstm")
        h_BTHK, state = op(u_BTHPK, w_HKPJ=w_HKPJ, b_HPK=b_HPK, state=state)
        return Mixed(self.output(h_BTHK), state)
