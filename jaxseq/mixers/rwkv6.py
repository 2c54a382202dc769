"""The time mixing of RWKV-6, "Finch" (Peng et al. 2024, arXiv:2404.05892, §4.2)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.layers import Linear, param, recomputed, uniform
from jaxseq.mixers import _rwkv

TARGETS = ("w", "k", "v", "r", "g")  # one mixture each; also the order of the stacked low-rank maps


class RWKV6(_rwkv.HeadMixer):
    """RWKV-5 with data-dependent mixtures and decays.

    x_* = x_t + (x_{t-1} - x_t) (mu_* + tanh(x' A) B_*), x' a mixture with constant weights; log w = -exp(decay + tanh(x_w A_w)
    B_w). The low-rank maps have no weight decay; initial values: A zero, B from U(-0.01, 0.01).
    """

    mix_rank: int = 32
    decay_rank: int = 64
    key_size: int | None = None  # of a head; default: that of the values, width / heads

    @nn.nowrap
    def keys(self) -> int:
        return self.key_size or self.size()

    def _mixtures(self, x_BTD, last_BTD, done, left) -> dict[str, jax.Array]:
        """x_w, x_k, x_v, x_r, x_g by name; parameters are the weights of the previous token, as in the released code."""
        ramp_D, width, rank = _rwkv.ramp(self.width), self.width, self.mix_rank
        full_D, half_D = 1 - ramp_D**left, 1 - ramp_D ** (0.5 * left)
        value_D = 1 - (ramp_D**left + 0.3 * done)
        shares = {"x": full_D, "w": full_D, "k": full_D, "v": value_D, "r": half_D, "g": half_D}
        mu = {
            name: _rwkv.vector(self, f"mix_{name}", share, (width,), ("embed",)).astype(self.dtype)
            for name, share in shares.items()
        }
        a_DPR = param(self, "mix_a", _rwkv.zeros, (width, len(TARGETS), rank), ("embed", None, None), False)
        b_PRD = param(self, "mix_b", uniform(0.01), (len(TARGETS), rank, width), (None, None, "embed"), False)
        change_BTD = last_BTD - x_BTD
        low_BTPR = jnp.tanh(jnp.einsum("btd,dpr->btpr", x_BTD + change_BTD * mu["x"], a_DPR.astype(self.dtype)))
        shift_BTPD = jnp.einsum("btpr,prd->btpd", low_BTPR, b_PRD.astype(self.dtype))
        return {name: x_BTD + change_BTD * (mu[name] + shift_BTPD[:, :, i]) for i, name in enumerate(TARGETS)}

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        heads, size = self.heads, self.size()
        shift, wkv = (None, None) if state is None else state
        done, left = _rwkv.depth(call.layer, self.layers)
        last_BTD, shift = call.op("token_shift")(x_BTD, state=shift)
        x = self._mixtures(x_BTD, last_BTD, done, left)

        keys = self.keys()
        channels = heads * keys  # of all keys

        def project(name, size, gain=1.0):
            axes, init = ("embed", "heads", None), _rwkv.orthogonal(gain)
            return Linear((heads, size), axes, init_fn=init, dtype=self.dtype, name=name)(x[name])

        r_BTHK, k_BTHK = project("r", keys), project("k", keys, 0.1)
        v_BTHV, g_BTHV = project("v", size), project("g", size, 0.1)
        n_D = jnp.arange(channels) / max(channels - 1, 1)
        decay_D = _rwkv.decay_speed(channels, -6.0, 5.0, done)
        bonus_HK = (done * (1 - n_D) + 0.1 * _rwkv.zigzag(channels)).reshape(heads, keys)
        decay_D = _rwkv.vector(self, "time_decay", decay_D, (channels,), ("heads",), lr=2.0)
        a_DR = param(self, "decay_a", _rwkv.zeros, (self.width, self.decay_rank), ("embed", None), False)
        b_RD = param(self, "decay_b", uniform(0.01), (self.decay_rank, channels), (None, "heads"), False)
        u_HK = _rwkv.vector(self, "time_first", bonus_HK, (heads, keys), ("heads", None))
        low_BTR = jnp.tanh(x["w"] @ a_DR.astype(self.dtype))
        w_BTD = decay_D + (low_BTR @ b_RD.astype(self.dtype)).astype(decay_D.dtype)
        log_w_BTHK = -jnp.exp(w_BTD).reshape(k_BTHK.shape)
        y_BTHV, wkv = call.op("wkv6")(r_BTHK, k_BTHK, v_BTHV, log_w_BTHK, u_HK=u_HK, state=wkv)
        y_BTHV = _rwkv.group_norm(self, y_BTHV, self.eps, _rwkv.layer_scale(call.layer, self.layers))
        y_BTD = recomputed(lambda y, g: y * jax.nn.silu(g).reshape(y.shape))(y_BTHV, g_BTHV)
        out = Linear((self.width,), ("heads", "embed"), init_fn=_rwkv.zeros, dtype=self.dtype, name="o")
        return Mixed(out(y_BTD), _rwkv.TimeMixState(shift, wkv))
