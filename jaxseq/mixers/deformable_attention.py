"""Deformable attention for sequences: every head reads a few learned points of the recent past."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import Linear, Mixer, Units
from jaxseq.mixers import _init
from jaxseq.ops import _time, deformable_attention


def distances(heads: int, points: int, reach: int) -> jax.Array:
    """Offsets [H, P] in tokens, between 0 and `reach`: evenly spaced logarithms of 1 + offset, dealt to the heads in turn."""
    order = jnp.arange(points) * heads + jnp.arange(heads)[:, None]
    return jnp.exp(math.log1p(reach) * (order + 0.5) / (heads * points)) - 1


class CausalDeformableAttention(Mixer):
    """y = (sum_p weight_p v(t - offset_p)) W_O with v = x W_V, and for each head its P points

        offset = reach sigmoid(x W_P + b_P),   weight = softmax over the points of x W_A + b_A

    The attention of Deformable DETR (Zhu et al. 2020, arXiv:2010.04159, eq. 2) in one dimension, see the op for points between
    tokens and before the document. There are no keys, so a token costs O(P) and the state is the last `reach` values. As in the
    paper W_P, W_A and b_A are initially 0, and b_P sets the points of each head: here from the token itself to `reach` tokens
    before it, with distances that grow geometrically.
    """

    heads: int = 4
    head_size: int | None = None  # default: width / heads
    points: int = 4  # of each head
    reach: int = 64  # tokens between a token and its farthest point
    initial: str = "gpt2"  # initial values of v and o, see _init.RECIPES
    init_std: float | None = None  # for gpt2 and llama; default: 1 / sqrt(inputs)

    @nn.nowrap
    def _size(self) -> int:
        for name in ("heads", "points", "reach"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} of deformable attention is {getattr(self, name)}; set it to a number of at least 1")
        if not self.head_size and self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of {self.heads} heads; change one, or set head_size")
        return self.head_size or self.width // self.heads

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> deformable_attention.DeformableAttentionState:
        return deformable_attention.init_state(batch, self.reach, self.heads, self._size(), self.dtype)

    @nn.nowrap
    def units(self, kind: str) -> Units | str:
        if kind != "heads":
            return super().units(kind)
        size = self._size()
        return Units(self.heads, ("heads",), lambda n: {"heads": n, "head_size": size})

    def _first_logits(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """b_P, for which reach sigmoid(b_P) are the `distances`."""
        heads, points = shape
        offset_HP = distances(heads, points, self.reach).astype(dtype)
        return jnp.log(offset_HP / (self.reach - offset_HP))

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        size, zeros, acc = self._size(), nn.initializers.zeros, _time.accumulation_dtype(x_BTD)

        def project(columns, name, init, bias_init=None, dtype=acc):
            shape, axes, bias = (self.heads, columns), ("embed", "heads", None), bias_init is not None
            return Linear(shape, axes, 1, bias, init, dtype, bias_init or zeros, name=name)(x_BTD)

        v_BTHV = project(size, "v", _init.inward(self), dtype=self.dtype)
        # in the accumulation dtype: bfloat16 would round an offset of a hundred tokens to half a token
        offsets_BTHP = self.reach * jax.nn.sigmoid(project(self.points, "offsets", zeros, self._first_logits))
        weights_BTHP = jax.nn.softmax(project(self.points, "weights", zeros, zeros))
        op = call.op("deformable_attention")
        y_BTHV, state = op(v_BTHV, offsets_BTHP, weights_BTHP, reach=self.reach, state=state)
        out = Linear((self.width,), ("heads", None, "embed"), 2, init_fn=_init.outward(self), dtype=self.dtype, name="o")
        return Mixed(out(y_BTHV), state)
