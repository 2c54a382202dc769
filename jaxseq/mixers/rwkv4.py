"""The time mixing of RWKV-4 (Peng et al. 2023, arXiv:2305.13048, §3.1, eq. 11 to 16)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.layers import Linear, Mixer
from jaxseq.mixers import _rwkv
from jaxseq.ops import token_shift, wkv4


class RWKV4(Mixer):
    """y = (sigmoid(x_r W_r) * wkv(x_k W_k, x_v W_v)) W_o; each x_* is a mixture of the current and the previous token.

    Initial values as in the released code: log-decay -e^time_decay with time_decay from -5 to 3 over the channels, bonus around
    log 0.3, W_k, W_r and W_o zero, W_v orthogonal. Learning-rate multipliers: 2 for time_decay, 3 for the bonus.
    """

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> _rwkv.TimeMixState:
        shift = token_shift.init_state(batch, self.width, self.dtype)
        return _rwkv.TimeMixState(shift, wkv4.init_state(batch, self.width, self.dtype))

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        shift, wkv = (None, None) if state is None else state
        done, left = _rwkv.depth(call.layer, self.layers)
        ramp_D = _rwkv.ramp(self.width)
        last_BTD, shift = call.op("token_shift")(x_BTD, state=shift)

        def project(name, share_D, init=_rwkv.zeros):
            mixed_BTD = _rwkv.mix(self, f"mix_{name}", share_D, x_BTD, last_BTD)
            return Linear((self.width,), ("embed", "mlp"), init_fn=init, dtype=self.dtype, name=name)(mixed_BTD)

        k_BTD = project("k", ramp_D**left)
        v_BTD = project("v", ramp_D**left + 0.3 * done, _rwkv.orthogonal())
        r_BTD = project("r", ramp_D ** (0.5 * left))
        decay_D = _rwkv.decay_speed(self.width, -5.0, 8.0, done)
        bonus_D = jnp.log(0.3) + 0.5 * _rwkv.zigzag(self.width)
        decay_D = _rwkv.vector(self, "time_decay", decay_D, (self.width,), ("mlp",), lr=2.0)
        u_D = _rwkv.vector(self, "time_first", bonus_D, (self.width,), ("mlp",), lr=3.0)
        op = call.op("wkv4")
        y_BTD, wkv = op(k_BTD, v_BTD, w_D=-jnp.exp(decay_D), u_D=u_D, state=wkv)
        out = Linear((self.width,), ("mlp", "embed"), init_fn=_rwkv.zeros, dtype=self.dtype, name="o")
        return Mixed(out(jax.nn.sigmoid(r_BTD) * y_BTD), _rwkv.TimeMixState(shift, wkv))
