"""H3: a shift SSM and a diagonal SSM between multiplicative gates (Fu et al. 2022, arXiv:2212.14052, §3.1)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import Linear, Mixer, param, uniform
from jaxseq.mixers import _init, _ssm
from jaxseq.ops import diagonal_ssm, long_conv


class H3State(NamedTuple):
    shift: long_conv.LongConvState  # the last state_size - 1 keys
    diagonal: diagonal_ssm.DiagonalSSMState  # one for each product of a key channel and a value channel of a head


class H3(Mixer):
    """y = (q . diagonal(shift(k) v^T)) W_O + b, heads of `head_size` channels; q, k, v = x W + b.

    The state of the shift SSM holds its last N inputs, so it is a convolution with taps w_t = sum_j C_{j+t} B_j, t < N, and a
    skip connection. With the default head_size 1 the outer product k v^T is an ordinary product.
    """

    state_size: int = 64  # taps of the shift SSM; real numbers per channel of the diagonal SSM, two for each conjugate pair
    head_size: int = 1
    frequencies: str = "lin"
    discretisation: str = "bilinear"  # or zoh
    dt_min: float = 0.001
    dt_max: float = 0.1
    kernel_lr: float = 1.0  # learning-rate multiplier of the A, B and steps of both SSMs
    initial: str = "llama"  # initial values of the projections, see _init.RECIPES; the released code does not scale W_O down
    init_std: float | None = None  # for gpt2 and llama; default: 1 / sqrt(inputs)

    @nn.nowrap
    def _heads(self) -> int:
        if self.width % self.head_size:
            raise UserError(f"width {self.width} is not a multiple of head_size={self.head_size}; change one of them")
        return self.width // self.head_size

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> H3State:
        modes = _ssm.check(self.state_size, self.frequencies, self.discretisation)
        products = self._heads() * self.head_size**2
        shift = long_conv.init_state(batch, self.state_size, self.width, self.dtype)
        return H3State(shift, diagonal_ssm.init_state(batch, products, modes, self.dtype))

    def _shift(self) -> dict[str, jax.Array]:
        """Taps and skip of the shift SSM."""
        size, axes = self.state_size, ("embed", None)
        first = lambda key, shape, dtype: jnp.zeros(shape, dtype).at[:, 0].set(1)  # noqa: E731
        b_DN = param(self, "shift_B", first, (self.width, size), axes, decay=False, lr=self.kernel_lr)
        c_DN = param(self, "shift_C", uniform(size**-0.5), (self.width, size), axes, decay=False)
        later_WN = jnp.arange(size)[:, None] + jnp.arange(size)
        w_WD = jnp.einsum("dwn,dn->wd", jnp.pad(c_DN, ((0, 0), (0, size)))[:, later_WN], b_DN)
        return {"w_WD": w_WD, "skip_D": param(self, "shift_D", jax.nn.initializers.normal(1.0), (self.width,), ("embed",), False)}

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        heads, size = self._heads(), self.head_size
        shift, diagonal = (None, None) if state is None else state

        def project(name):
            axes = "embed", "heads", None
            return Linear((heads, size), axes, 1, True, _init.inward(self), self.dtype, name=name)(x_BTD)

        q_BTHK, k_BTHK, v_BTHV = project("q"), project("k"), project("v")
        conv = call.op("long_conv")
        k_BTD, shift = conv(k_BTHK.reshape(x_BTD.shape), state=shift, **self._shift())
        kv_BTHKV = k_BTD.reshape(k_BTHK.shape)[..., None] * v_BTHV[:, :, :, None]
        weights = _ssm.diagonal(
            self, heads, self.state_size, self.frequencies, self.discretisation, (self.dt_min, self.dt_max), self.kernel_lr, True
        )
        weights = {name: jnp.repeat(w, size**2, axis=0) for name, w in weights.items()}  # all products of a head share one SSM
        flat_BTD = kv_BTHKV.reshape(*x_BTD.shape[:2], self.width * size)
        y_BTD, diagonal = call.op("diagonal_ssm")(flat_BTD, state=diagonal, **weights)
        y_BTHV = jnp.einsum("bthk,bthkv->bthv", q_BTHK, y_BTD.reshape(kv_BTHKV.shape))
        out = Linear((self.width,), ("heads", None, "embed"), 2, True, _init.outward(self), self.dtype, name="o")
        return Mixed(out(y_BTHV), H3State(shift, diagonal))
