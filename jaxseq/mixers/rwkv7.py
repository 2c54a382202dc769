"""The time mixing of RWKV-7, "Goose" (Peng et al. 2025, arXiv:2503.14456, §4)."""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.layers import Linear, param
from jaxseq.mixers import _rwkv

SHARES = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}  # exponents of the initial mixtures
LOWEST = math.exp(-0.5)  # log w lies in (-LOWEST, 0)


def _unit(x_BTHK: jax.Array) -> jax.Array:
    """x / |x| in the accumulation dtype, zero where x is zero."""
    x = x_BTHK.astype(jnp.promote_types(x_BTHK.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


class RWKV7(_rwkv.HeadMixer):
    """y = ((group_norm(wkv7(r, w, k', v', -kappa, kappa a)) + (r . k' rho) v') * g) W_o.

    log w = -e^-0.5 sigmoid(w0 + tanh(x_w A_w) B_w), a = sigmoid(a0 + x_a A_a B_a), g = sigmoid(x_g A_g) B_g,
    kappa = k * xi / |k * xi|, k' = k * (1 + (a - 1) alpha), v' = v + (v_1 - v) sigmoid(v0 + x_v A_v B_v), where v_1 is the v of
    the first layer, passed on in the stream "value". The first layer (`first`) writes the stream and has no v0, A_v, B_v.

    Each x_* is a mixture of the current and the previous token; the parameters are the weights of the previous one. Initial
    values as in the released training code; the learning-rate multiplier of w0 is 2.
    """

    first: bool = False
    decay_rank: int = 64  # of A_w
    rate_rank: int = 64  # of A_a
    value_rank: int = 32  # of A_v
    gate_rank: int = 128  # of A_g

    op: ClassVar[str] = "wkv7"

    def _low_rank(self, name: str, rank: int, x_BTD, activation=lambda x: x):
        """activation(x A) B; initial values: A zero, B orthogonal times 0.1."""
        shape, gain = (rank, self.width), 0.1 * max(1.0, rank / self.width) ** 0.5
        a_DR = param(self, f"{name}_a", _rwkv.zeros, shape[::-1], ("embed", None), decay=False)
        b_RD = param(self, f"{name}_b", jax.nn.initializers.orthogonal(gain), shape, (None, "heads"), decay=False)
        return activation(x_BTD @ a_DR.astype(self.dtype)) @ b_RD.astype(self.dtype)

    def _vector(self, name: str, value, lr: float = 1.0):
        return _rwkv.vector(self, name, value, (self.width,), ("heads",), lr=lr)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        heads, size = self.heads, self.size()
        shift, wkv = (None, None) if state is None else state
        done, left = _rwkv.depth(call.layer, self.layers)
        ramp_D = _rwkv.ramp(self.width)
        last_BTD, shift = call.op("token_shift")(x_BTD, state=shift)
        x = {
            name: _rwkv.mix(self, f"mix_{name}", ramp_D ** (power * left), x_BTD, last_BTD, of_last=True)
            for name, power in SHARES.items()
        }

        def project(name, gain=1.0):
            init = _rwkv.orthogonal(gain)
            return Linear((self.width,), ("embed", "heads"), init_fn=init, dtype=self.dtype, name=name)(x[name])

        line_D = jnp.arange(self.width) / max(self.width - 1, 1) - 0.5
        wave_D = jnp.tile(2 * jnp.arange(size) / max(size - 1, 1) - 1, heads)
        wave_D *= jnp.abs(wave_D)
        w0_D = self._vector("decay", -5.5 + 6 * (line_D + 0.5) ** (1 + done**0.3) + 2.5 * wave_D, lr=2.0)
        a0_D = self._vector("rate", -0.19 + 0.3 * wave_D + 0.4 * line_D)

        w_BTD = w0_D + self._low_rank("decay", self.decay_rank, x["w"], jnp.tanh).astype(w0_D.dtype)
        rate = self._low_rank("rate", self.rate_rank, x["a"]).astype(a0_D.dtype)
        rate_BTD = jax.nn.sigmoid(a0_D + rate).astype(self.dtype)
        gate_BTD = self._low_rank("gate", self.gate_rank, x["g"], jax.nn.sigmoid)
        r_BTD, k_BTD, v_BTD = project("r"), project("k", 0.1), project("v")
        streams = {"value": v_BTD} if self.first else {}
        if not self.first:
            first_BTD = call.streams.get("value", jnp.zeros_like(v_BTD)).astype(self.dtype)
            v0_D = self._vector("value", 0.73 - 0.4 * line_D)
            share = jax.nn.sigmoid(v0_D + self._low_rank("value", self.value_rank, x["v"]).astype(v0_D.dtype))
            v_BTD += (first_BTD - v_BTD) * share.astype(self.dtype)

        def by_head(x_BTD):
            return x_BTD.reshape(*x_BTD.shape[:2], heads, size)

        kappa_BTHK = _unit(by_head(k_BTD * self._vector("removal", 0.71 - 0.1 * line_D).astype(self.dtype))).astype(self.dtype)
        k_BTD *= 1 + (rate_BTD - 1) * self._vector("mix_rate", 1.02).astype(self.dtype)
        rho_HK = _rwkv.vector(self, "bonus", -0.04, (heads, size), ("heads", None)).astype(self.dtype)
        r_BTHK, k_BTHK, v_BTHV, log_w_BTHK = map(by_head, (r_BTD, k_BTD, v_BTD, -LOWEST * jax.nn.sigmoid(w_BTD)))
        y_BTHV, wkv = call.op("wkv7")(
            r_BTHK, log_w_BTHK, k_BTHK, v_BTHV, -kappa_BTHK, kappa_BTHK * by_head(rate_BTD), state=wkv
        )
        y_BTD = _rwkv.group_norm(self, y_BTHV, self.eps, _rwkv.layer_scale(call.layer, self.layers))
        bonus_BTHV = jnp.sum(r_BTHK * k_BTHK * rho_HK, axis=-1, keepdims=True) * v_BTHV
        y_BTD = (y_BTD + bonus_BTHV.reshape(y_BTD.shape)) * gate_BTD
        out = Linear((self.width,), ("heads", "embed"), init_fn=_rwkv.zeros, dtype=self.dtype, name="o")
        return Mixed(out(y_BTD), _rwkv.TimeMixState(shift, wkv), streams)
