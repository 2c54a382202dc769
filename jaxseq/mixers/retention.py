"""Multi-scale retention with its gate (RetNet, Sun et al. 2023, arXiv:2307.08621, §2.2)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq import forms
from jaxseq.errors import UserError
from jaxseq.layers import Linear, Mixer, rms_normalize, rotate, xavier_uniform
from jaxseq.ops import retention


def decay_published(heads: int) -> jax.Array:
    """gamma_h = 1 - 2^(-5 - h), as §2.2 prints and the released code computes."""
    return 1 - 2.0 ** (-5.0 - jnp.arange(heads))


def decay_experiments(heads: int) -> jax.Array:
    """gamma_h = 1 - exp(linspace(log 1/32, log 1/512, heads)), with which §3.1's experiments were run."""
    return 1 - jnp.exp(jnp.linspace(jnp.log(1 / 32), jnp.log(1 / 512), heads))


DECAYS = {"published": decay_published, "experiments": decay_experiments}


class Retention(Mixer):
    """y = (swish(x W_G) * norm_h(retention(q, k, v))) W_O, eq. 8.

    q = rotate(x W_Q), k = rotate(x W_K) / sqrt(K), v = x W_V with V = 2K. Pairs are interleaved and the angles are
    10000^-linspace(0, 1, K/2), the end point included, as in the released code. The norm is RMS per head without a scale,
    eps 1e-6. The score normalisations of §2.2 cancel in that norm up to eps and are left out, so that all forms are equal.
    Kernels start Xavier-uniform with gain 2^-2.5, the output's with 2^-1.
    """

    heads: int = 4
    value_factor: int = 2  # V = value_factor * width / heads
    decay: str = "published"  # "published" or "experiments"
    eps: float = 1e-6

    @nn.nowrap
    def _sizes(self) -> tuple[int, int]:
        if self.width % self.heads or self.width // self.heads % 2:
            raise UserError(f"width {self.width} must be an even multiple of {self.heads} heads; change one of them")
        if self.decay not in DECAYS:
            raise UserError(f"there is no decay {self.decay!r}; choose one of: {', '.join(DECAYS)}")
        return self.width // self.heads, self.value_factor * self.width // self.heads

    @nn.nowrap
    def init_state(self, batch, context):
        return retention.init_state(batch, self.heads, *self._sizes(), self.dtype)

    @nn.compact
    def mix(self, x_BTD, state, pos_BT, form, layer, train):
        key_size, value_size = self._sizes()

        def project(size, name):
            axes, init = ("embed", "heads", None), xavier_uniform(2**-2.5)
            return Linear((self.heads, size), axes, init_fn=init, dtype=self.dtype, name=name)(x_BTD)

        frequency_F = 10000.0 ** -jnp.linspace(0, 1, key_size // 2)
        q_BTHK = rotate(project(key_size, "q"), pos_BT, frequency_F, interleaved=True)
        k_BTHK = rotate(project(key_size, "k") * key_size**-0.5, pos_BT, frequency_F, interleaved=True)
        log_a_BTH = jnp.broadcast_to(jnp.log(DECAYS[self.decay](self.heads)), q_BTHK.shape[:3])
        op = forms.op("retention", form, x_BTD.shape[1])
        y_BTHV, state = op(q_BTHK, k_BTHK, project(value_size, "v"), log_a_BTH, state=state, pos=pos_BT)
        gate_BTHV = nn.silu(project(value_size, "g"))
        y_BTHV = gate_BTHV * rms_normalize(y_BTHV, self.eps).astype(self.dtype)
        axes, init = ("heads", None, "embed"), xavier_uniform(2**-1.0)
        return Linear((self.width,), axes, 2, init_fn=init, dtype=self.dtype, name="o")(y_BTHV), state
