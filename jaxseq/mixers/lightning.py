"""Lightning attention: linear attention with one fixed decay per head (Qin et al. 2024, arXiv:2405.17381).

Gates, norm and layer-dependent decays follow MiniMax-01 (MiniMax 2025, arXiv:2501.08313, §2.2).
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import Linear, Mixer, RMSNorm
from jaxseq.mixers import _init
from jaxseq.ops import retention


class LightningAttention(Mixer):
    """y = (rms_norm(retention(q, k, v)) * sigmoid(x W_g)) W_o with q, k, v = silu(x W), the norm over all heads together.

    Head h = 1 .. H of layer l = 0 .. L - 1 decays by exp(-2^(-8 h / H) (1 - l / (L - 1) + 1e-5)) per token: higher layers
    remember longer. Layers are the mixers with a state, of any kind. Initial values: normal with the same standard deviation
    for all kernels (transformers, MiniMaxPreTrainedModel).
    """

    numbered: ClassVar[bool] = True

    heads: int = 4
    head_size: int | None = None  # default: width / heads
    eps: float = 1e-5
    initial: str = "llama"  # initial values, see _init.RECIPES
    init_std: float | None = None  # for gpt2 and llama; default: 1 / sqrt(inputs)

    @nn.nowrap
    def _size(self) -> int:
        if not self.head_size and self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of {self.heads} heads; change one, or set head_size")
        return self.head_size or self.width // self.heads

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> retention.RetentionState:
        return retention.init_state(batch, self.heads, self._size(), self._size(), self.dtype)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        def project(name):
            axes, init = ("embed", "heads", None), _init.inward(self)
            return Linear((self.heads, self._size()), axes, init_fn=init, dtype=self.dtype, name=name)(x_BTD)

        q, k, v = (nn.silu(project(name)) for name in "qkv")
        number, count = self.place(call)
        left = 1 - number / (count - 1 + 1e-5) + 1e-5
        log_a_H = -(2.0 ** (-8 * jnp.arange(1, self.heads + 1) / self.heads)) * left
        y_BTHV, state = call.op("retention")(q, k, v, jnp.broadcast_to(log_a_H, q.shape[:3]), state=state)
        y_BTD = RMSNorm(self.eps, self.dtype, name="norm")(jax.lax.collapse(y_BTHV, 2)).reshape(y_BTHV.shape)
        y_BTHV = y_BTD * nn.sigmoid(project("g"))
        out = Linear((self.width,), ("heads", None, "embed"), 2, init_fn=_init.outward(self), dtype=self.dtype, name="o")
        return Mixed(out(y_BTHV), state)
