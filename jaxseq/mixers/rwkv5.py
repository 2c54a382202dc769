"""The time mixing of RWKV-5.2, "Eagle" (Peng et al. 2024, arXiv:2404.05892, §4.1)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.layers import Linear
from jaxseq.mixers import _rwkv


class RWKV5(_rwkv.HeadMixer):
    """y = (group_norm(wkv(r, k, v)) * silu(x_g W_g)) W_o; r, k, v from mixtures of the current and the previous token.

    Each key channel has the decay e^-e^time_decay, constant over time. The released code divides by 8 before a norm with eps
    1e-5, which equals eps 64e-5 here.
    """

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        heads, size = self.heads, self.size()
        shift, wkv = (None, None) if state is None else state
        done, left = _rwkv.depth(call.layer, self.layers)
        ramp_D = _rwkv.ramp(self.width)
        last_BTD, shift = call.op("token_shift")(x_BTD, state=shift)

        def project(name, share_D, gain=1.0):
            mixed_BTD = _rwkv.mix(self, f"mix_{name}", share_D, x_BTD, last_BTD)
            axes, init = ("embed", "heads", None), _rwkv.orthogonal(gain)
            return Linear((heads, size), axes, init_fn=init, dtype=self.dtype, name=name)(mixed_BTD)

        r_BTHK, k_BTHK = project("r", ramp_D ** (0.5 * left)), project("k", ramp_D**left, 0.1)
        v_BTHV = project("v", ramp_D**left + 0.3 * done)
        g_BTHV = jax.nn.silu(project("g", ramp_D ** (0.5 * left), 0.1))
        n_D = jnp.arange(self.width) / max(self.width - 1, 1)
        shape, axes = (heads, size), ("heads", None)
        decay_D = _rwkv.decay_speed(self.width, -6.0, 5.0, done).reshape(shape)
        bonus_D = (done * (1 - n_D) + 0.1 * _rwkv.zigzag(self.width)).reshape(shape)
        decay_HK = _rwkv.vector(self, "time_decay", decay_D, shape, axes, lr=2.0)
        u_HK = _rwkv.vector(self, "time_first", bonus_D, shape, axes)
        log_w_BTHK = jnp.broadcast_to(-jnp.exp(decay_HK), k_BTHK.shape)
        y_BTHV, wkv = call.op("wkv6")(r_BTHK, k_BTHK, v_BTHV, log_w_BTHK, u_HK=u_HK, state=wkv)
        y_BTHV = _rwkv.group_norm(self, y_BTHV, self.eps, _rwkv.layer_scale(call.layer, self.layers))
        y_BTD = y_BTHV * g_BTHV.reshape(x_BTD.shape)
        out = Linear((self.width,), ("heads", "embed"), init_fn=_rwkv.zeros, dtype=self.dtype, name="o")
        return Mixed(out(y_BTD), _rwkv.TimeMixState(shift, wkv))
