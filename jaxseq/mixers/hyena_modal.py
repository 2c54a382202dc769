"""Hyena with filters that are sums of exponentials: StripedHyena's, and the modal form of a trained Hyena (`jaxseq modal`).

Massaroli et al. 2023, "Laughing Hyena Distillery" (arXiv:2310.18780, §3).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call
from jaxseq.errors import UserError
from jaxseq.layers import param
from jaxseq.mixers import _hyena
from jaxseq.mixers._ssm import packed
from jaxseq.ops import diagonal_ssm


class HyenaModal(_hyena.GatedConvolutions):
    """Hyena with filters h_t = Re sum_n R_n p_n^t and a state of `state_size` complex numbers per channel.

    With `polar`, poles are p = exp(-softplus(a) + i b), always inside the unit circle; otherwise they are free complex numbers,
    as in StripedHyena. Initial values: decays from 1/2 to 1/500 per token, uniform angles, and residues such that the norm of
    the filter is about 1.
    """

    state_size: int = 8
    polar: bool = True
    share: int = 1  # number of adjacent channels that share a filter
    filter_lr: float = 1.0  # learning-rate multiplier of poles and residues

    @nn.nowrap
    def long_state(self, batch: int) -> diagonal_ssm.DiagonalSSMState:
        return diagonal_ssm.init_state(batch, self.width, self.state_size, self.dtype)

    @nn.nowrap
    def _decays(self) -> jax.Array:
        return jnp.geomspace(0.5, 0.002, self.state_size)

    def _poles_init(self, key, shape, dtype):
        rate_N, angle = self._decays(), jax.random.uniform(key, shape[:-1], dtype, 0, jnp.pi)
        if self.polar:
            return jnp.stack([jnp.broadcast_to(jnp.log(jnp.expm1(rate_N)), angle.shape).astype(dtype), angle], axis=-1)
        return (jnp.exp(-rate_N)[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)).astype(dtype)

    def _residues_init(self, key, shape, dtype):
        std_N = jnp.sqrt(-jnp.expm1(-2 * self._decays()) / self.state_size)
        return (std_N[:, None] * jax.random.normal(key, shape, dtype)).astype(dtype)

    def filters(self) -> list[tuple[jax.Array, jax.Array, jax.Array]]:
        if self.width % self.share:
            raise UserError(f"width {self.width} is not a multiple of share={self.share}; change one of them")
        shape = (self.convolutions(), self.width // self.share, self.state_size, 2)
        axes, lr = (None, "mlp", None, None), self.filter_lr
        poles = param(self, "poles", self._poles_init, shape, axes, decay=False, lr=lr)
        residues = param(self, "residues", self._residues_init, shape, axes, decay=False, lr=lr)
        if self.polar:
            radius, angle = jnp.exp(-nn.softplus(poles[..., 0])), poles[..., 1]
            poles = jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)], axis=-1)
        p_ODM, c_ODM = (jnp.repeat(packed(x), self.share, axis=1) for x in (poles, residues))
        return list(zip(p_ODM, c_ODM, self.skip(), strict=True))

    def convolve(
        self, item: tuple[jax.Array, jax.Array, jax.Array], x_BTD: jax.Array, state: Any, call: Call
    ) -> tuple[jax.Array, diagonal_ssm.DiagonalSSMState]:
        p_DM, c_DM, d_D = item
        b_DM = jnp.zeros_like(p_DM).at[:, : self.state_size].set(1)
        op = call.op("diagonal_ssm")
        return op(x_BTD, p_DM=p_DM, b_DM=b_DM, c_DM=c_DM, d_D=d_D, state=state)
