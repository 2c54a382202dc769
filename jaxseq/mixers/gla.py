"""Gated linear attention's mixer (Yang et al. 2023, arXiv:2312.06635, §4.4)."""

from typing import Any

import jax
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import Linear, Mixer, param, recomputed, rms_normalize
from jaxseq.mixers import _init
from jaxseq.ops import _time, gla


class GatedLinearAttention(Mixer):
    """y = (rms_norm(gla(q, k, v, log_w)) * silu(x W_g)) W_o, the norm over each head.

    log_w = log sigmoid(x A_w B_w + b_w) / tau for each key channel; q is divided by sqrt(K). Initial values: normal with the same
    standard deviation for all kernels (flash-linear-attention, models/gla: initializer_range), b_w zero.
    """

    heads: int = 4
    key_factor: float = 0.5  # K = key_factor * width / heads
    key_size: int | None = None  # K itself
    value_factor: int = 1  # V = value_factor * width / heads
    decay_rank: int = 16
    tau: float = 16.0  # larger values decay more slowly
    eps: float = 1e-5
    initial: str = "llama"  # initial values, see _init.RECIPES
    init_std: float | None = None  # for gpt2 and llama; default: 1 / sqrt(inputs)

    @nn.nowrap
    def sizes(self) -> tuple[int, int]:
        """(K, V). Raises UserError if the heads do not divide the channels."""
        keys = self.heads * self.key_size if self.key_size else int(self.key_factor * self.width)
        values = self.value_factor * self.width
        if not keys or keys % self.heads or values % self.heads:
            raise UserError(f"{self.heads} heads do not divide {keys} key and {values} value channels; change heads or the width")
        return keys // self.heads, values // self.heads

    @nn.nowrap
    def init_state(self, batch: int, context: int | None) -> gla.GLAState:
        return gla.init_state(batch, self.heads, *self.sizes(), self.dtype)

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        key_size, value_size = self.sizes()
        acc, init = _time.accumulation_dtype(x_BTD), _init.inward(self)

        def project(x, shape, axes, name, bias=False):
            return Linear(shape, axes, bias=bias, init_fn=init, dtype=self.dtype, name=name)(x)

        axes = ("embed", "heads", None)
        q_BTHK, k_BTHK = (project(x_BTD, (self.heads, key_size), axes, name) for name in "qk")
        v_BTHV, gate_BTHV = (project(x_BTD, (self.heads, value_size), axes, name) for name in "vg")
        inner = project(x_BTD, (self.decay_rank,), ("embed", None), "w_a")
        w_BTHK = project(inner, (self.heads, key_size), (None, "heads", None), "w_b", bias=True)
        log_w_BTHK = jax.nn.log_sigmoid(w_BTHK.astype(acc)) / self.tau
        op = call.op("gla")
        y_BTHV, state = op(q_BTHK * key_size**-0.5, k_BTHK, v_BTHV, log_w_BTHK, state=state)
        scale_V = param(self, "norm_scale", jax.nn.initializers.ones, (value_size,), (None,), decay=False)

        def gated(y, gate, scale_V):
            return (rms_normalize(y, self.eps) * scale_V * nn.silu(gate).astype(acc)).astype(self.dtype)

        y_BTHV = recomputed(gated)(y_BTHV, gate_BTHV, scale_V)
        out = Linear((self.width,), ("heads", None, "embed"), 2, init_fn=_init.outward(self), dtype=self.dtype, name="o")
        return Mixed(out(y_BTHV), state)
