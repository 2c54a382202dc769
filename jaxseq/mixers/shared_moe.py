"""Routed experts and a shared expert (Dai et al. 2024, arXiv:2401.06066, §3.2): DeepSeek-V3, Kimi Linear, Qwen3-Next."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import Linear, param
from jaxseq.mixers import _init
from jaxseq.mixers._activations import gated
from jaxseq.mixers.moe import MoE
from jaxseq.ops import _time


class SharedMoE(MoE):
    """y = moe(x) + g shared(x), shared a SwiGLU of `shared_hidden`; g = sigmoid(x W_g) if `shared_gate`, else 1.

    router "softmax": as in `moe`. router "sigmoid" (DeepSeek-AI 2024, arXiv:2412.19437, eq. 12 to 16): scores s = sigmoid(x W);
    the experts with the top_k largest s + bias are chosen. With several `groups`, experts are chosen from the `top_groups` groups
    with the largest sum of their two best s + bias. weight = scale s / sum of the chosen s, or scale s if not `normalize`. The
    bias affects the choice but not the weights, and gets no gradient. Departure: its balancing update is not implemented, so in
    training it stays 0.
    """

    shared_hidden: int | None = None  # default: hidden size of one expert
    shared_gate: bool = False
    router: str = "softmax"  # or sigmoid
    groups: int = 1
    top_groups: int = 1
    scale: float = 1.0  # of the sigmoid router's weights
    initial: str = "llama"

    def _route(self, x_BTD, call):
        if self.router == "softmax":
            return super()._route(x_BTD, call)
        if self.router != "sigmoid":
            raise UserError(f"there is no router {self.router!r}; choose one of: softmax, sigmoid")
        if self.experts % self.groups or not self.top_groups <= self.groups:
            raise UserError(f"groups={self.groups} must divide experts={self.experts} and be >= top_groups={self.top_groups}")
        acc = _time.accumulation_dtype(x_BTD)
        init = _init.inward(self)
        router = Linear((self.experts,), ("embed", None), bias=self.bias, init_fn=init, dtype=acc, name="router")
        logits_BTE = router(x_BTD.astype(acc))
        score_BTE = jax.nn.sigmoid(logits_BTE)
        bias_E = param(self, "router_bias", nn.initializers.zeros, (self.experts,), (None,), decay=False)
        choice_BTE = score_BTE + jax.lax.stop_gradient(bias_E.astype(acc))
        if self.groups > 1:
            grouped = choice_BTE.reshape(*choice_BTE.shape[:2], self.groups, self.experts // self.groups)
            best_BTG = jnp.sum(jax.lax.top_k(grouped, min(2, grouped.shape[-1]))[0], axis=-1)
            kept_BTG = best_BTG >= jax.lax.top_k(best_BTG, self.top_groups)[0][..., -1:]
            choice_BTE = jnp.where(kept_BTG[..., None], grouped, -jnp.inf).reshape(choice_BTE.shape)
        _, expert_BTA = jax.lax.top_k(choice_BTE, self.top_k)
        if not self.is_initializing():  # init must create parameters only
            self.sow("intermediates", "choice", expert_BTA)
            self._sow(logits_BTE, jax.nn.logsumexp(logits_BTE, axis=-1), expert_BTA, _time.valid(call.pos_BT))
        weight_BTA = jnp.take_along_axis(score_BTE, expert_BTA, axis=-1)
        if self.normalize:
            weight_BTA /= jnp.sum(weight_BTA, axis=-1, keepdims=True) + 1e-20
        return expert_BTA, self.scale * weight_BTA

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        y_BTD = super().mix(x_BTD, state, call).y_BTD
        hidden = self.shared_hidden or self.features

        def up(name):
            return Linear((hidden,), ("embed", "mlp"), init_fn=_init.paired(self), dtype=self.dtype, name=name)(x_BTD)

        inner = gated(nn.silu, up("shared_in"), up("shared_up"))
        out = Linear((self.width,), ("mlp", "embed"), init_fn=_init.outward(self), dtype=self.dtype, name="shared_down")
        shared_BTD = out(inner)
        if self.shared_gate:
            gate = Linear((1,), ("embed", None), init_fn=_init.inward(self), dtype=self.dtype, name="shared_weight")
            shared_BTD *= jax.nn.sigmoid(gate(x_BTD))
        return Mixed(y_BTD + shared_BTD, ())
