"""Multi-scale retention with its gate (RetNet, Sun et al. 2023, arXiv:2307.08621, §2.2)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import Linear, Mixer, Units, recomputed, rms_normalize, rotate, xavier_uniform
from jaxseq.ops import retention


def decay_published(heads: int) -> jax.Array:
    """gamma_h = 1 - 2^(-5 - h), as in §2.2 and the released code."""
    return 1 - 2.0 ** (-5.0 - jnp.arange(heads))


def decay_experiments(heads: int) -> jax.Array:
    """gamma_h = 1 - exp(linspace(log 1/32, log 1/512, heads)), as in the experiments of §3.1."""
    return 1 - jnp.exp(jnp.linspace(jnp.log(1 / 32), jnp.log(1 / 512), heads))


DECAYS = {"published": decay_published, "experiments": decay_experiments}


class Retention(Mixer):
    """y = (swish(x W_G) * norm_h(retention(q, k, v))) W_O, eq. 8.

    q = rotate(x W_Q), k = rotate(x W_K) / sqrt(K), v = x W_V with V = 2K. Rotary pairs are interleaved, with frequencies
    10000^-linspace(0, 1, K/2) including the end point, as in the released code. The norm is an RMS norm per head without a scale,
    eps 1e-6. The score normalisations of §2.2 cancel in that norm up to eps and are left out unless `torchscale_scaling`.
    Initial values: Xavier-uniform with gain 2^-2.5, and 2^-1 for the output; with `deepnet` v and the output are divided by
    (8 layers)^(1/4) (Wang et al. 2022, arXiv:2203.00555).

    torchscale_scaling: the output is divided by sqrt(sum_i gamma^i), a function of the position. Then it is divided, without
    gradient, by max(|sum_m R_nm|, 1); R are the decayed scores after the first division. sum_m R_nm is q_n times the decayed
    sum of keys. It is computed as one more value channel with value 1, so it is part of the state and all forms are equal.
    The chunkwise form of the released code uses other factors; the difference is of the order of eps.
    """

    heads: int = 4
    value_factor: int = 2  # V = value_factor * width / heads
    value_size: int | None = None  # V itself
    pairs: str = ""  # rotary pairs that the keys have, by their number: "0 2 5"; default: all. K is twice their number
    decay: str = "published"  # "published" or "experiments"
    eps: float = 1e-6
    torchscale_scaling: bool = False
    deepnet: bool = False

    @nn.nowrap
    def _sizes(self) -> tuple[int, int]:
        if self.width % self.heads or self.width // self.heads % 2:
            raise UserError(f"width {self.width} must be an even multiple of {self.heads} heads; change one of them")
        if self.decay not in DECAYS:
            raise UserError(f"there is no decay {self.decay!r}; choose one of: {', '.join(DECAYS)}")
        return 2 * len(self.kept_pairs()), self.value_size or self.value_factor * self.width // self.heads

    @nn.nowrap
    def kept_pairs(self) -> list[int]:
        """The numbers of the keys' rotary pairs. Raises UserError if `pairs` is not a list of different ones in order."""
        total = self.width // self.heads // 2
        found = [int(word) if word.isdecimal() else total for word in self.pairs.split()] if self.pairs else list(range(total))
        if not found or found != sorted(set(found)) or found[-1] >= total:
            raise UserError(f"pairs={self.pairs!r} must be ascending numbers below {total}, the rotary pairs of a head")
        return found

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> retention.RetentionState:
        key_size, value_size = self._sizes()
        return retention.init_state(batch, self.heads, key_size, value_size + self.torchscale_scaling, self.dtype)

    @nn.nowrap
    def units(self, kind: str) -> Units | str:
        return "the decays of retention depend on the number of heads" if kind == "heads" else super().units(kind)

    def _scaled(self, y_BTHV, log_a_H, pos_BT):
        """y after both normalisations of `torchscale_scaling`; the last channel of y_BTHV is the sum of the scores."""
        y = y_BTHV.astype(jnp.promote_types(y_BTHV.dtype, jnp.float32))
        count_BT1 = jnp.maximum(pos_BT, 0)[..., None] + 1
        total_BTH = jnp.expm1(count_BT1 * log_a_H) / jnp.expm1(log_a_H)  # 1 + gamma + … + gamma^pos
        y *= jax.lax.rsqrt(total_BTH)[..., None]
        return y[..., :-1] / jax.lax.stop_gradient(jnp.maximum(jnp.abs(y[..., -1:]), 1))

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        key_size, value_size = self._sizes()
        shrink = (8 * self.layers) ** -0.25 if self.deepnet else 1.0

        def project(size, name, gain=2**-2.5):
            axes, init = ("embed", "heads", None), xavier_uniform(gain)
            return Linear((self.heads, size), axes, init_fn=init, dtype=self.dtype, name=name)(x_BTD)

        whole = self.width // self.heads  # the size of keys with all pairs
        frequency_F = 10000.0 ** -jnp.linspace(0, 1, whole // 2)
        frequency_F = frequency_F[jnp.asarray(self.kept_pairs())] if self.pairs else frequency_F
        q_BTHK = rotate(project(key_size, "q"), call.pos_BT, frequency_F, interleaved=True)
        k_BTHK = rotate(project(key_size, "k") * whole**-0.5, call.pos_BT, frequency_F, interleaved=True)
        v_BTHV = project(value_size, "v", 2**-2.5 * shrink)
        if self.torchscale_scaling:
            v_BTHV = jnp.concatenate([v_BTHV, jnp.ones_like(v_BTHV[..., :1])], axis=-1)
        log_a_H = jnp.log(DECAYS[self.decay](self.heads))
        op = call.op("retention")
        y_BTHV, state = op(q_BTHK, k_BTHK, v_BTHV, jnp.broadcast_to(log_a_H, q_BTHK.shape[:3]), state=state)
        if self.torchscale_scaling:
            y_BTHV = self._scaled(y_BTHV, log_a_H, call.pos_BT)
        gated = recomputed(lambda gate, y: nn.silu(gate) * rms_normalize(y, self.eps).astype(self.dtype))
        y_BTHV = gated(project(value_size, "g"), y_BTHV)
        axes, init = ("heads", None, "embed"), xavier_uniform(2**-1.0 * shrink)
        return Mixed(Linear((self.width,), axes, 2, init_fn=init, dtype=self.dtype, name="o")(y_BTHV), state)
