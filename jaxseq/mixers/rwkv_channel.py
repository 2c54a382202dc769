"""The channel mixing of RWKV (Peng et al. 2023, arXiv:2305.13048, eq. 21 to 23)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.layers import Linear, Mixer, Units, recomputed
from jaxseq.mixers import _rwkv
from jaxseq.ops import token_shift


class RWKVChannel(Mixer):
    """y = sigmoid(x_r W_r) * (relu(x_k W_k)^2 W_v), x_k and x_r mixtures of the current and the previous token.

    RWKV-7 has neither gate nor x_r (`gated=False`; arXiv:2503.14456, eq. 27 and 28). State: the last input. Initial values: W_v
    and W_r zero, W_k orthogonal, mixtures as in the released code of each version.
    """

    hidden: int | None = None  # default: 4 width
    gated: bool = True
    mix_power: int | None = None  # exponent of initial mixtures: RWKV-4 and -5: 1, -6: 3, -7: 4; default: 1 if gated, else 4
    key_gain: float = 1.0  # of the initial W_k; RWKV-4's is sqrt(hidden / width)
    of_last: bool = False  # mix_k and mix_r are weights of the previous token (RWKV-6 and -7), not of the current one

    @property
    def features(self) -> int:
        """F, the hidden size."""
        return self.hidden or 4 * self.width

    @nn.nowrap
    def units(self, kind: str) -> Units | str:
        return Units(self.features, ("mlp",), lambda n: {"hidden": n}) if kind == "channels" else super().units(kind)

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> token_shift.TokenShiftState:
        return token_shift.init_state(batch, self.width, self.dtype)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        hidden = self.features
        _, left = _rwkv.depth(call.layer, self.layers)
        power = self.mix_power or (1 if self.gated else 4)
        share_D = _rwkv.ramp(self.width) ** (left**power)
        last_BTD, state = call.op("token_shift")(x_BTD, state=state)

        def linear(x, features, axes, name, init=_rwkv.zeros):
            return Linear((features,), axes, init_fn=init, dtype=self.dtype, name=name)(x)

        x_k_BTD = _rwkv.mix(self, "mix_k", share_D, x_BTD, last_BTD, self.of_last)
        k_BTF = linear(x_k_BTD, hidden, ("embed", "mlp"), "k", _rwkv.orthogonal(self.key_gain))
        y_BTD = linear(recomputed(lambda k: jnp.square(nn.relu(k)))(k_BTF), self.width, ("mlp", "embed"), "v")
        if not self.gated:
            return Mixed(y_BTD, state)
        x_r_BTD = _rwkv.mix(self, "mix_r", share_D, x_BTD, last_BTD, self.of_last)
        return Mixed(jax.nn.sigmoid(linear(x_r_BTD, self.width, ("embed", None), "r")) * y_BTD, state)
