"""Mixture of experts: each token is routed to a few of many feed-forwards (Shazeer et al. 2017, arXiv:1701.06538).

The default is Mixtral (Jiang et al. 2024, arXiv:2401.04088, §2.1): top 2, weighted by the softmax over the chosen logits. Switch
(Fedus et al. 2022, arXiv:2101.03961, §2.1) is `top_k=1, normalize=False, gated=False`: weighted by the router's probability.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call, Mixed
from jaxseq.errors import UserError
from jaxseq.layers import Linear, Mixer, constrain, param
from jaxseq.mixers import _activations, _init
from jaxseq.mixers._experts import grouped, permute
from jaxseq.ops import _time
from jaxseq.shards import mesh_axes, on_mesh
from jaxseq.weights import dense

Weights = tuple[jax.Array, ...]  # kernel [E, D, F] and, if there is one, bias [E, F]


class MoE(Mixer):
    """y = sum over the chosen e of weight_e expert_e(x), chosen = the top_k largest of x W_router; its state is ().

    expert(x) = (act(x W_gate) * x W_up) W_down, or act(x W_up) W_down if not `gated`. The router computes in the accumulation
    dtype. weight = softmax over the chosen logits; if not `normalize`, the softmax over all logits, at the chosen experts. `bias`
    adds one to each of these maps.

    Without `capacity_factor`, and always in evaluation, no token is dropped, so rows are independent and all forms are equal.
    With `capacity_factor` tokens are dropped in training: in each row an expert processes the first
    capacity_factor * T * top_k / experts tokens that choose it, and adds nothing to the others. The forms then differ.

    Sown into 'losses', as means over tokens: balance_loss * E sum_e f_e P_e, where f_e is the fraction of choices and P_e the
    mean probability of expert e (Switch, eq. 4; f sums to 1 for any top_k, so the minimum is balance_loss); and z_loss times the
    mean squared log-sum-exp of the logits (Zoph et al. 2022, arXiv:2202.08906, eq. 5). Sown into 'intermediates': the chosen
    experts, as 'choice'.
    """

    experts: int = 4
    top_k: int = 2
    hidden: int | None = None  # of an expert; default: 8/3 width up to a multiple of 8 if gated, else 4 width
    gated: bool = True
    activation: str = "silu"
    bias: bool = False  # on the router and on the maps of the experts
    normalize: bool = True
    capacity_factor: float | None = None  # in training; default: no token is dropped
    balance_loss: float = 0.01
    z_loss: float = 0.0
    jitter: float = 0.0  # in training the router's input is multiplied by U(1 - jitter, 1 + jitter), Switch §2.4
    routing: str = "token_choice"
    initial: str = "gpt2"  # initial values, see _init.RECIPES
    init_std: float | None = None  # for gpt2 and llama; default: 1 / sqrt(inputs)

    def __post_init__(self):
        super().__post_init__()
        if self.routing == "expert_choice":
            raise UserError(
                "expert-choice routing depends on later tokens, so it is not causal; set routing to token_choice"
            )
        if self.routing != "token_choice":
            raise UserError(f"there is no routing {self.routing!r}; the only one is token_choice")
        if not 1 <= self.top_k <= self.experts:
            raise UserError(f"top_k={self.top_k} is outside of 1 … {self.experts}, the number of experts; change one of them")

    @property
    def features(self) -> int:
        """F, the hidden size of an expert."""
        return self.hidden or (_init.gated_hidden(self.width) if self.gated else 4 * self.width)

    def _weights(self) -> tuple[Weights, ...]:
        """The maps (gate, up, down), or (up, down) if not `gated`."""

        def map_(name, sizes, axes, init):
            shape, names = (self.experts, *sizes), ("expert", *axes)
            found = [param(self, name, _init.by_expert(init), shape, names, contracts=(-2,))]
            if self.bias:
                zeros, axes = nn.initializers.zeros, ("expert", axes[1])
                found.append(param(self, f"{name}_bias", zeros, (self.experts, sizes[1]), axes, decay=False))
            return tuple(dense(w, self.dtype) for w in found)

        up, paired = ((self.width, self.features), ("embed", "mlp")), _init.paired(self)
        names = ("gate", "up") if self.gated else ("up",)
        down = map_("down", (self.features, self.width), ("mlp", "embed"), _init.outward(self))
        return *(map_(name, *up, paired) for name in names), down

    def _inner(self) -> Callable[..., jax.Array]:
        """The hidden activations of an expert, as a function of the outputs of its first maps."""
        activation = _activations.find(self.activation)
        return (lambda gate, up: activation(gate) * up) if self.gated else activation

    def _route(self, x_BTD, call):
        """(expert [B, T, A] int32, weight [B, T, A]) of each token's A = top_k choices, largest first."""
        acc = _time.accumulation_dtype(x_BTD)
        x_BTD = x_BTD.astype(acc)
        if call.train and self.jitter:
            x_BTD *= jax.random.uniform(self.make_rng("dropout"), x_BTD.shape, acc, 1 - self.jitter, 1 + self.jitter)
        init, axes = _init.inward(self), ("embed", None)
        logits_BTE = Linear((self.experts,), axes, bias=self.bias, init_fn=init, dtype=acc, name="router")(x_BTD)
        chosen_BTA, expert_BTA = jax.lax.top_k(logits_BTE, self.top_k)
        log_z_BT = jax.nn.logsumexp(logits_BTE, axis=-1)
        if not self.is_initializing():  # init must create parameters only
            self.sow("intermediates", "choice", expert_BTA)
            self._sow(logits_BTE, log_z_BT, expert_BTA, _time.valid(call.pos_BT))
        if self.normalize:
            return expert_BTA, jax.nn.softmax(chosen_BTA, axis=-1)
        return expert_BTA, jnp.exp(chosen_BTA - log_z_BT[..., None])

    def _sow(self, logits_BTE, log_z_BT, expert_BTA, valid_BT):
        tokens = jnp.maximum(jnp.sum(valid_BT), 1)
        mean = lambda x: jnp.sum(_time.select(valid_BT, x), axis=(0, 1)) / tokens  # noqa: E731
        if self.balance_loss:
            share_E = mean(jnp.mean(jax.nn.one_hot(expert_BTA, self.experts, dtype=logits_BTE.dtype), axis=2))
            probability_E = mean(jnp.exp(logits_BTE - log_z_BT[..., None]))
            self.sow("losses", "balance", self.balance_loss * self.experts * jnp.sum(share_E * probability_E))
        if self.z_loss:
            self.sow("losses", "router_z", self.z_loss * mean(jnp.square(log_z_BT)))

    @nn.compact
    def mix(self, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
        weights, inner = self._weights(), self._inner()
        expert_BTA, weight_BTA = self._route(x_BTD, call)
        if call.train and self.capacity_factor is not None:
            places = math.ceil(self.capacity_factor * x_BTD.shape[1] * self.top_k / self.experts)
            valid_BT = _time.valid(call.pos_BT)
            routed = x_BTD, expert_BTA, weight_BTA, weights, valid_BT
            return Mixed(capacity(*routed, inner=inner, places=max(places, 1)), ())
        tokens, up, down = ("batch", "time", None), ("expert", None, "mlp"), ("expert", "mlp", None)
        over_experts, _, over_mlp = mesh_axes(up, weights[0][0].shape)
        function = functools.partial(dropless, inner=inner, experts=over_experts, hidden=over_mlp)
        inward, outward = ((up, ("expert", "mlp")), (down, ("expert", None))) if self.bias else ((up,), (down,))
        axes = (tokens, tokens, tokens, (*[inward] * (len(weights) - 1), outward))
        return Mixed(on_mesh(function, axes, tokens)(x_BTD, expert_BTA, weight_BTA, weights), ())


def dropless(
    x_BTD: jax.Array, expert_BTA: jax.Array, weight_BTA: jax.Array, weights: tuple[Weights, ...], *,
    inner: Callable[..., jax.Array], experts: tuple[str, ...] = (), hidden: tuple[str, ...] = (),
) -> jax.Array:  # fmt: skip
    """Sort rows by expert, do one grouped product per kernel, restore the order. `weights` may be shards over experts and F.

    experts, hidden: mesh axes over which the experts and F are sharded, and the results summed. Each device applies its experts
    to its tokens.
    """
    batch, time, choices = expert_BTA.shape
    own, width, rows = weights[0][0].shape[0], x_BTD.shape[2], batch * time * choices
    first = jax.lax.axis_index(experts) * own if experts else 0
    expert_N = expert_BTA.reshape(rows) - first
    expert_N = jnp.where((expert_N >= 0) & (expert_N < own), expert_N, own)  # experts on other devices come last
    order_N = jnp.argsort(expert_N, stable=True)
    back_N = jnp.argsort(order_N)
    size_E = jnp.bincount(expert_N, length=own + 1)[:own].astype(jnp.int32)
    x_ND = permute(jnp.repeat(x_BTD.reshape(batch * time, width), choices, axis=0), order_N, back_N)

    def map_(x_ND, kernel, bias_EF=None):
        y_NF = grouped(x_ND, kernel, size_E)
        if bias_EF is None:
            return y_NF
        return y_NF + jnp.pad(bias_EF, ((0, 1), (0, 0)))[expert_N[order_N]]  # zero for experts on other devices

    *ins, (kernel, *bias) = weights
    if hidden:  # the devices that share an expert add its last bias once
        bias = [jnp.where(jax.lax.axis_index(hidden) == 0, b, 0) for b in bias]
    y_ND = map_(inner(*(map_(x_ND, *w) for w in ins)), kernel, *bias)
    y_BTAD = permute(y_ND, back_N, order_N).reshape(batch, time, choices, width)
    y_BTD = jnp.einsum("btad,bta->btd", y_BTAD.astype(weight_BTA.dtype), weight_BTA)
    return (jax.lax.psum(y_BTD, experts + hidden) if experts + hidden else y_BTD).astype(x_BTD.dtype)


def capacity(
    x_BTD: jax.Array, expert_BTA: jax.Array, weight_BTA: jax.Array, weights: tuple[Weights, ...], valid_BT: jax.Array,
    *, inner: Callable[..., jax.Array], places: int,
) -> jax.Array:  # fmt: skip
    """In each row an expert processes the first `places` tokens that choose it and contributes zero to the others."""
    batch, time, choices = expert_BTA.shape
    experts, size = weights[0][0].shape[0], x_BTD.shape[2]
    expert_BN = expert_BTA.reshape(batch, time * choices)
    real_BN = jnp.repeat(valid_BT, choices, axis=1)
    mine_BNE = jax.nn.one_hot(expert_BN, experts, dtype=jnp.int32) * real_BN[..., None]
    place_BN = jnp.sum((jnp.cumsum(mine_BNE, axis=1) - 1) * mine_BNE, axis=2)
    kept_BN = real_BN & (place_BN < places)
    slot_BN = jnp.where(kept_BN, expert_BN * places + place_BN, experts * places)
    token_N = jnp.repeat(jnp.arange(time), choices)
    row_B1 = jnp.arange(batch)[:, None]
    token_BS = jnp.full((batch, experts * places + 1), time).at[row_B1, slot_BN].set(token_N)[:, :-1]
    x_BSD = jnp.take_along_axis(jnp.pad(x_BTD, ((0, 0), (0, 1), (0, 0))), token_BS[..., None], axis=1)
    x_BECD = constrain(x_BSD.reshape(batch, experts, places, size), ("batch", "expert", None, None))

    def map_(x_BECD, kernel, bias_EF=None):
        y_BECF = jnp.einsum("becd,edf->becf", x_BECD, kernel)
        return y_BECF if bias_EF is None else y_BECF + bias_EF[:, None]

    *ins, out = weights
    y_BECD = map_(inner(*(map_(x_BECD, *w) for w in ins)), *out)
    y_BSD = jnp.pad(y_BECD.reshape(batch, experts * places, size), ((0, 0), (0, 1), (0, 0)))
    y_BTAD = jnp.take_along_axis(y_BSD, slot_BN[..., None], axis=1).reshape(batch, time, choices, size)
    return jnp.einsum("btad,bta->btd", y_BTAD.astype(weight_BTA.dtype), weight_BTA).astype(x_BTD.dtype)
