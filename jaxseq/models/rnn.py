"""Stacked recurrent layers on vectors, unidirectional or bidirectional, like torch.nn.LSTM, torch.nn.GRU and the SRU package."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import constant, zeros
from ml_collections import ConfigDict

from jaxseq import forms
from jaxseq.errors import UserError
from jaxseq.layers import Linear, param, uniform
from jaxseq.models._network import DTYPES, Network, check, fields
from jaxseq.ops import _time, gru, lstm, sru

CELLS = {"lstm": lstm, "gru": gru, "sru": sru}
GatedState = lstm.LSTMState | gru.GRUState


class GatedLayer(nn.Module):
    """One direction of one LSTM or GRU layer. It has two biases, as in torch; for an LSTM only their sum matters.

    Initial values: U(-b, b) with b = 1 / sqrt(hidden), torch's default; `forget_bias` is added to the forget bias of an LSTM.
    """

    cell: str
    hidden: int
    bias: bool = True
    forget_bias: float = 0.0
    dtype: Any = jnp.float32

    @nn.nowrap
    def init_state(self, batch: int) -> GatedState:
        return CELLS[self.cell].init_state(batch, 1, self.hidden, self.dtype)

    @nn.compact
    def __call__(self, x_BTD: jax.Array, state: GatedState | None, pos_BT: jax.Array, form: Any) -> tuple[jax.Array, GatedState]:
        op, init = CELLS[self.cell], uniform(self.hidden**-0.5)
        gates, inner = len(op.GATES), (self.hidden, len(op.GATES), self.hidden)
        u_BTPK = Linear(inner[1:], ("embed", None, "mlp"), init_fn=init, dtype=self.dtype, name="in")(x_BTD)
        w_KPJ = param(self, "recurrent", init, inner, (None, None, "mlp"))
        b_PK = jnp.zeros((gates, self.hidden), w_KPJ.dtype)
        if self.bias:

            def first(key, shape, dtype):
                forget = jnp.asarray([name == "f" for name in op.GATES], dtype)[:, None]
                return init(key, shape, dtype) + self.forget_bias * forget

            axes = (None, "mlp")
            u_BTPK += param(self, "in_bias", first, (gates, self.hidden), axes, decay=False).astype(self.dtype)
            b_PK = param(self, "recurrent_bias", init, (gates, self.hidden), axes, decay=False)
        run = forms.plan(form).op(self.cell)
        y_BTHK, state = run(u_BTPK[:, :, None], w_HKPJ=w_KPJ[None], b_HPK=b_PK[None], state=state, pos=pos_BT)
        return y_BTHK[:, :, 0], state


class SRULayer(nn.Module):
    """One SRU layer (Lei et al. 2018, arXiv:1709.02755, §3). The highway input is `scale` x, where scale is a constant stored
    with the parameters, or, if the sizes differ, a projection of x (the fourth part of the kernel)."""

    hidden: int
    highway_bias: float = 0.0
    dtype: Any = jnp.float32

    @nn.nowrap
    def init_state(self, batch: int) -> sru.SRUState:
        return sru.init_state(batch, self.hidden, self.dtype)

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, state: sru.SRUState | None, pos_BT: jax.Array, form: Any
    ) -> tuple[jax.Array, sru.SRUState]:
        parts = 3 if x_BTD.shape[2] == self.hidden else 4
        init, gate = uniform((3 / x_BTD.shape[2]) ** 0.5), uniform(1.5**0.5)
        u_BTPD = Linear((parts, self.hidden), ("embed", None, "mlp"), init_fn=init, dtype=self.dtype, name="in")(x_BTD)

        def vectors(name, *inits):
            def init(key, shape, dtype):
                pairs = zip(inits, jax.random.split(key), strict=True)
                return jnp.stack([make(k, shape[1:], dtype) for make, k in pairs])

            return param(self, name, init, (2, self.hidden), (None, "mlp"), decay=False)

        bias_PD, v_PD = vectors("bias", zeros, constant(self.highway_bias)), vectors("recurrent", gate, gate)
        scale = (1 + 2 * jnp.exp(self.highway_bias)) ** 0.5
        scale_1 = jax.lax.stop_gradient(param(self, "scale", constant(scale), (1,), (None,), decay=False)).astype(self.dtype)
        f_BTD, r_BTD = (u_BTPD[:, :, n + 1] + bias_PD[n].astype(self.dtype) for n in (0, 1))
        skip_BTD = scale_1 * x_BTD.astype(self.dtype) if parts == 3 else u_BTPD[:, :, 3]
        run = forms.plan(form).op("sru")
        return run(u_BTPD[:, :, 0], f_BTD, r_BTD, skip_BTD, v_f_D=v_PD[0], v_r_D=v_PD[1], state=state, pos=pos_BT)


def turned(pos_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(order that reverses the tokens of each row and keeps padding at the end, `pos` for a run in that order).

    The last token of a document begins a document in the reversed order. The order is its own inverse.
    """
    valid_BT = _time.valid(pos_BT)
    index_1T = jnp.arange(pos_BT.shape[1])[None]
    order_BT = jnp.where(valid_BT, jnp.sum(valid_BT, axis=1, keepdims=True) - 1 - index_1T, index_1T)
    after_BT = jnp.pad(pos_BT[:, 1:], ((0, 0), (0, 1)), constant_values=_time.PAD)
    last_BT = (after_BT == _time.START) & valid_BT
    last_BT = jnp.take_along_axis(last_BT, order_BT, axis=1)
    return order_BT, jnp.where(valid_BT, jnp.where(last_BT, _time.START, _time.START + 1), _time.PAD)


class RNN(Network):
    """y, state = model.apply({"params": params}, x, state=None, pos=None, form="recurrent", train=False)

    x [B, T, inputs] -> y [B, T, hidden], or if bidirectional [B, T, 2 hidden]: forward, then backward. state: a tuple over layers
    of tuples over directions of states of the op. pos: see `jaxseq.ops`. The backward direction reads each document from its
    end, so only unidirectional models obey the stream laws. `dropout` is applied between layers.
    """

    cell: str
    inputs: int
    hidden: int
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    forget_bias: float = 0.0
    highway_bias: float = 0.0  # of SRU
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.nowrap
    def example(self) -> tuple[jax.Array]:
        """Example inputs for `init`."""
        return (jnp.zeros((1, 2, self.inputs), self.dtype),)

    @property
    def directions(self) -> tuple[str, ...]:
        return ("forward", "backward") if self.bidirectional else ("forward",)

    @nn.nowrap
    def layer(self, name: str | None = None) -> nn.Module:
        if self.cell == "sru":
            return SRULayer(self.hidden, self.highway_bias, self.dtype, name=name)
        return GatedLayer(self.cell, self.hidden, self.bias, self.forget_bias, self.dtype, name=name)

    @nn.nowrap
    def init_state(self, batch: int, context: int | None = None) -> tuple:
        one = self.layer().init_state(batch)
        return ((one,) * len(self.directions),) * self.layers

    @nn.compact
    def __call__(
        self, x: jax.Array, state: tuple | None = None, pos: jax.Array | None = None, form: Any = "recurrent", train: bool = False
    ) -> tuple[jax.Array, tuple]:
        chex.assert_shape(x, (None, None, self.inputs))
        pos_BT = _time.positions(pos, x)
        chex.assert_shape(pos_BT, x.shape[:2])
        (x_BTD,) = _time.clean(pos_BT, x.astype(self.dtype))
        state = ((None,) * len(self.directions),) * self.layers if state is None else state
        order_BT, back_BT = turned(pos_BT) if self.bidirectional else (None, None)
        turn: Callable = lambda x: jnp.take_along_axis(x, order_BT[..., None], axis=1)  # noqa: E731
        after = []
        for n, before in enumerate(state):
            y_BTK, s = self.layer(f"layer_{n}_forward")(x_BTD, before[0], pos_BT, form)
            after.append((s,))
            if self.bidirectional:
                back_BTK, s = self.layer(f"layer_{n}_backward")(turn(x_BTD), before[1], back_BT, form)
                y_BTK, after[-1] = jnp.concatenate([y_BTK, turn(back_BTK)], axis=-1), (*after[-1], s)
            x_BTD = nn.Dropout(self.dropout, deterministic=not train)(y_BTK) if n + 1 < self.layers else y_BTK
        return x_BTD, tuple(after)


def build(config: ConfigDict) -> RNN:
    """The model that `config.model` describes. Raises UserError for an unknown cell or dtype."""
    model = fields(config.model)
    check(model, cell=CELLS, dtype=DTYPES)
    if model["cell"] == "sru" and (model["bidirectional"] or not model["bias"]):
        raise UserError("SRU layers are unidirectional and have biases; set model.bidirectional=false and model.bias=true")
    return RNN(**model | {"dtype": DTYPES[model["dtype"]]})


DEFAULTS = {
    "cell": "lstm",  # lstm, gru, sru
    "inputs": 128,
    "hidden": 128,
    "layers": 1,
    "bidirectional": False,
    "bias": True,
    "forget_bias": 1.0,  # of an LSTM (Jozefowicz et al. 2015, §5)
    "highway_bias": 0.0,  # of an SRU
    "dropout": 0.0,
    "dtype": "float32",
}
