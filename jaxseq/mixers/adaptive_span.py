"""Attention whose heads learn how far they look back (Adaptive Attention Span, Sukhbaatar et al. 2019, arXiv:1905.07799)."""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike

from jaxseq.errors import UserError
from jaxseq.layers import Units, param
from jaxseq.mixers.attention import Attention
from jaxseq.ops import attention


class AdaptiveSpan(Attention):
    """y = adaptive_span_attention(q, k, v, z) W_O with q, k and v as in `attention`, and for each query head a learned span

        z = max_span sigmoid(theta)   tokens

    Beyond it the head's weights go to zero over `ramp` tokens. `span_loss` times the mean of z over the heads is added to the
    loss (eq. 3): sown into 'losses'. In the paper z itself is the parameter, clipped to [0, max_span] after each step; here no
    gradient is lost at the ends. Its relative position embeddings are rotary positions here. Fields as in `attention`, without
    window, alibi, sinks and `cap`.

    A head never sees more than `max_span` tokens, the slots of its state. `windows` sets fewer slots for each key head, as a list
    of numbers: "8 40 40 256"; key heads with equal windows are computed together. With z as it is and windows of z + ramp tokens
    nothing changes but the cost: `jaxseq compress --recipe=spans` sets them.
    """

    in_place: ClassVar[bool] = False
    quantizes: ClassVar[bool] = False
    max_span: int = 256
    ramp: float = 32.0  # R of the paper
    first_span: float = 32.0  # z before training
    span_loss: float = 2e-6  # the paper's, for models of its small size
    windows: str = ""  # of each key head; default: max_span

    @nn.nowrap
    def _sizes(self) -> tuple[int, int]:
        if self.alibi or self.sink or self.cap is not None or self.window is not None:
            raise UserError("attention with adaptive spans has no window, alibi, sinks or cap; leave them out")
        if not 0 < self.first_span < self.max_span or self.ramp <= 0:
            raise UserError(
                f"adaptive spans need 0 < first_span < max_span and ramp > 0, not first_span={self.first_span:g}, "
                f"max_span={self.max_span}, ramp={self.ramp:g}"
            )
        return super()._sizes()

    @nn.nowrap
    def needed(self, theta_H: ArrayLike) -> tuple[int, ...]:
        """The number of tokens that each key head's query heads see with these parameters."""
        z_H = self.max_span / (1 + np.exp(-np.asarray(theta_H, np.float64)))
        z_H *= 1 + 1e-6  # z is computed in float32
        own_GR = np.minimum(np.ceil(z_H + self.ramp), self.max_span).reshape(self._sizes()[0], -1)
        return tuple(int(window) for window in own_GR.max(axis=1))

    @nn.nowrap
    def groups(self) -> list[tuple[int, list[int]]]:
        """(window, key heads) for each different window."""
        kv_heads, _ = self._sizes()
        words = self.windows.split() or [str(self.max_span)] * kv_heads
        if len(words) != kv_heads or not all(word.isdecimal() and 0 < int(word) <= self.max_span for word in words):
            raise UserError(
                f"windows={self.windows!r} must be {kv_heads} numbers from 1 to max_span={self.max_span}, one for each key head"
            )
        own = [int(word) for word in words]
        return [(window, [g for g in range(kv_heads) if own[g] == window]) for window in sorted(set(own))]

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> tuple[attention.AttentionState, ...]:
        _, size = self._sizes()
        return tuple(
            attention.init_state(batch, window, len(heads), size, size, self.dtype) for window, heads in self.groups()
        )

    @nn.nowrap
    def remaining_capacity(self, state: Any) -> None:
        return None

    @nn.nowrap
    def units(self, kind: str) -> Units | str:
        if kind == "heads" and self.windows:
            return "its heads have windows of their own; remove heads before the step spans"
        return super().units(kind)

    def _span_H(self) -> jax.Array:
        share = self.first_span / self.max_span
        start = nn.initializers.constant(math.log(share / (1 - share)))
        z_H = self.max_span * jax.nn.sigmoid(param(self, "span", start, (self.heads,), ("heads",), decay=False))
        if self.span_loss and not self.is_initializing():  # init must create parameters only
            self.sow("losses", "span", self.span_loss * jnp.mean(z_H))
        return z_H

    def _attend(self, q_BTHK, k_BTGK, v_BTGV, state, call, limits):
        z_H, shared = self._span_H(), self.heads // k_BTGK.shape[2]
        op, outputs, states, order = call.op("adaptive_span_attention"), [], [], []
        for i, (window, kv_heads) in enumerate(self.groups()):
            heads = [g * shared + r for g in kv_heads for r in range(shared)]
            xs = _taken(q_BTHK, heads), _taken(k_BTGK, kv_heads), _taken(v_BTGV, kv_heads)
            options = {"window": window, "ramp": self.ramp, "scale": limits["scale"]}
            own = None if state is None else state[i]
            y_BTHV, own = op(*xs, span_H=z_H[np.asarray(heads)], state=own, **options)
            outputs.append(y_BTHV)
            states.append(own)
            order += heads
        return _taken(jnp.concatenate(outputs, axis=2), np.argsort(order).tolist()), tuple(states)


def _taken(x_BTHK: jax.Array, heads: list[int]) -> jax.Array:
    return x_BTHK if heads == list(range(x_BTHK.shape[2])) else x_BTHK[:, :, np.asarray(heads)]
