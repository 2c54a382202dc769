"""The layers of an encoder-decoder: pre-norm, no biases, one relative position bias per stack, experts in some layers."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.call import Call
from jaxseq.layers import RMSNorm, constrain, fan_in
from jaxseq.mixers.moe import MoE
from jaxseq.models import _relative, _transformer
from jaxseq.models._network import scan

KeysValues = tuple[jax.Array, jax.Array]  # [B, S, H, K], [B, S, H, K]


class Dimensions(NamedTuple):
    """Hyper-parameters shared by all layers of both stacks."""

    width: int
    heads: int
    head_size: int
    hidden: int
    activation: str
    gated: bool
    norm_eps: float
    dropout: float
    buckets: int
    max_distance: int
    sparse_every: int  # n: layers 1, 1 + n, 1 + 2n … (all for n = 1) have a mixture of experts as feed-forward; 0: none
    experts: tuple[tuple[str, Any], ...]  # fields of the MoE mixer
    depth: int  # layers of both stacks
    remat: str
    dtype: Any

    @property
    def period(self) -> int:
        """Number of layers in one step of the scan."""
        return max(self.sparse_every, 1)

    def sparse(self, layer: int) -> bool:
        return self.sparse_every > 0 and layer % self.sparse_every == 1 % self.sparse_every


class Look(NamedTuple):
    """Arguments of the two attentions that are the same in every layer: query positions, what they see, and bias."""

    pos_BT: jax.Array
    sight: _transformer.Sight
    bias_BHTS: jax.Array
    cross: _transformer.Sight | None = None
    slot_BT: jax.Array | None = None  # slot of each token in the state; beyond the last slot: not stored


def put(kept: jax.Array, new: jax.Array, slot_BT: jax.Array) -> jax.Array:
    """`kept` [B, S, …] with `new` [B, T, …] written to the slots slot_BT."""
    return kept.at[jnp.arange(kept.shape[0])[:, None], slot_BT].set(new.astype(kept.dtype), mode="drop")


class CoderLayer(nn.Module):
    """x <- x + attention(norm(x)); in a decoder x <- x + attention(norm(x), source); then x <- x + feed_forward(norm(x))."""

    shape: Dimensions
    decoder: bool
    sparse: bool

    def setup(self) -> None:
        s = self.shape
        norm = functools.partial(RMSNorm, s.norm_eps, s.dtype)
        # scores are not scaled by 1 / sqrt(K); the initial values of the queries include that factor
        attention = functools.partial(
            _transformer.MultiHeadAttention, s.width, s.heads, s.head_size, scale=1.0, query_init_fn=fan_in(s.head_size**-0.5),
            dropout=s.dropout, dtype=s.dtype,
        )  # fmt: skip
        self.norm_attention, self.attention = norm(), attention()
        if self.decoder:
            self.norm_cross, self.cross = norm(), attention()
        self.norm_mlp = norm()
        if self.sparse:
            self.moe = MoE(width=s.width, layers=s.depth, dtype=s.dtype, **dict(s.experts))
        else:
            self.mlp = _transformer.FeedForward(s.width, s.hidden, s.activation, s.gated, dropout=s.dropout, dtype=s.dtype)
        self.drop = nn.Dropout(s.dropout)

    def __call__(
        self, x_BTD: jax.Array, source: jax.Array | KeysValues | None, kept: KeysValues | None, look: Look, train: bool
    ) -> tuple[jax.Array, KeysValues | None]:
        """(y_BTD, `kept` with the new keys and values). source: [B, S, D], or its keys and values."""

        def add(x_BTD, h_BTD):
            h_BTD = self.drop(h_BTD, deterministic=not train)
            return constrain(x_BTD + h_BTD.astype(x_BTD.dtype), ("batch", "time", None))

        h_BTD = self.norm_attention(x_BTD)
        seen = own = self.attention.keys_values(h_BTD)
        if kept is not None:
            kept = seen = tuple(put(a, b, look.slot_BT) for a, b in zip(kept, own, strict=True))
        x_BTD = add(x_BTD, self.attention(h_BTD, *seen, look.sight, look.bias_BHTS, train))
        if self.decoder:
            source = source if isinstance(source, tuple) else self.cross.keys_values(source)
            x_BTD = add(x_BTD, self.cross(self.norm_cross(x_BTD), *source, look.cross, None, train))
        h_BTD = self.norm_mlp(x_BTD)
        h_BTD = self.moe(h_BTD, (), Call.of(look.pos_BT, train=train)).y_BTD if self.sparse else self.mlp(h_BTD, train)
        return add(x_BTD, h_BTD), kept


class Unit(nn.Module):
    """The layers of one period."""

    shape: Dimensions
    decoder: bool

    def setup(self) -> None:
        self.layer = [CoderLayer(self.shape, self.decoder, self.shape.sparse(i)) for i in range(self.shape.period)]

    def __call__(
        self, x_BTD: jax.Array, sources: Sequence[KeysValues | jax.Array | None], kept: Sequence[KeysValues | None],
        look: Look, train: bool,
    ) -> tuple[jax.Array, tuple]:  # fmt: skip
        """sources, kept: one entry per layer."""
        after = []
        for layer, source, own in zip(self.layer, sources, kept, strict=True):
            x_BTD, own = layer(x_BTD, source, own, look, train)
            after.append(own)
        return x_BTD, tuple(after)

    def keys_values(self, source_BSD: jax.Array) -> tuple[KeysValues, ...]:
        """Keys and values of the source for the cross-attention of each layer."""
        return tuple(layer.cross.keys_values(source_BSD) for layer in self.layer)


class Stack(nn.Module):
    """All layers, their shared position bias, and the final norm."""

    shape: Dimensions
    layers: int
    decoder: bool

    def setup(self) -> None:
        s = self.shape
        std = s.width**-0.5
        self.relative = _relative.RelativeBias(s.heads, s.buckets, s.max_distance, not self.decoder, std)
        self.blocks = Unit(s, self.decoder)
        self.final_norm = RMSNorm(s.norm_eps, s.dtype)
        self.drop = nn.Dropout(s.dropout)

    @property
    def units(self) -> int:
        return self.layers // self.shape.period

    def __call__(
        self, x_BTD: jax.Array, look: Look, source: jax.Array | None = None, state: tuple | None = None, train: bool = False
    ) -> tuple[jax.Array, tuple]:
        """(y_BTD, kept). source: [B, S, D], for a decoder without state. state: (keys and values of the source, kept), with
        leaves [units, B, …]."""
        x_BTD = self.drop(x_BTD, deterministic=not train)
        period = self.shape.period

        def call(unit, x_BTD, state):
            sources, kept = state or ((source,) * period, (None,) * period)
            return unit(x_BTD, sources, kept, look, train)

        x_BTD, kept = scan(self.blocks, self.units, x_BTD, state, call, self.shape.remat)
        return self.drop(self.final_norm(x_BTD), deterministic=not train), kept

    def keys_values(self, source_BSD: jax.Array) -> tuple[KeysValues, ...]:
        """Keys and values of the source for all layers: one pair per layer of a unit, with leaves [units, B, S, H, K]."""
        call = lambda unit, carry, _: (carry, unit.keys_values(source_BSD))  # noqa: E731
        return scan(self.blocks, self.units, jnp.zeros(()), None, call)[1]
