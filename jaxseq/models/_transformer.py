"""Layers of the networks other than the causal language model: attention over a whole sequence and feed-forward.

What a token sees is computed from positions: `segments` numbers the documents of a row, and tokens attend only to their own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq.layers import Initializer, LayerNorm, Linear, constrain
from jaxseq.mixers import _activations
from jaxseq.ops import _attend, _time
from jaxseq.ops._attend import Keys, Score, Span, attend


def segments(pos_BT: jax.Array) -> jax.Array:
    """[B, T] int32: document number 1, 2, … of each token in its row, 0 for padding (pos == -1); pos == 0 begins a document.

    Tokens before the first pos == 0 belong to the first document.
    """
    begun_BT, valid_BT = _time.segments(pos_BT), _time.valid(pos_BT)
    goes_on_B1 = jnp.any(valid_BT & (begun_BT == 0), axis=1, keepdims=True)
    return jnp.where(valid_BT, begun_BT + goes_on_B1, 0)


class Sight(NamedTuple):
    """Which keys each query sees, as numbers: see `jaxseq.ops._attend`."""

    span: Span
    number_BS: jax.Array  # of the keys


def same_document(query_BT: jax.Array, key_BS: jax.Array) -> Sight:
    """A query sees the keys with its document number; 0 is padding, which neither sees nor is seen."""
    high_BT = jnp.where(query_BT > 0, query_BT, -1)
    return Sight(Span(jnp.where(query_BT > 0, query_BT, _attend.NEVER), high_BT), jnp.where(key_BS > 0, key_BS, -1))


class MultiHeadAttention(nn.Module):
    """Multi-head attention: y = attend(x W_Q, k, v) W_O with k, v = `keys_values(source)` (Vaswani et al. 2017, §3.2)."""

    width: int
    heads: int
    head_size: int
    bias: bool = False  # on all four projections
    scale: float | None = None  # default: 1 / sqrt(head_size)
    init_fn: Initializer | None = None  # of all kernels; default: 1 / sqrt(inputs)
    query_init_fn: Initializer | None = None  # default: init_fn
    dropout: float = 0.0  # of the attention weights
    dtype: Any = jnp.float32

    def setup(self) -> None:
        shape, axes = (self.heads, self.head_size), ("embed", "heads", None)
        self.q = Linear(shape, axes, bias=self.bias, init_fn=self.query_init_fn or self.init_fn, dtype=self.dtype)
        self.k = Linear(shape, axes, bias=self.bias, init_fn=self.init_fn, dtype=self.dtype)
        self.v = Linear(shape, axes, bias=self.bias, init_fn=self.init_fn, dtype=self.dtype)
        self.o = Linear((self.width,), ("heads", None, "embed"), 2, self.bias, self.init_fn, self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def keys_values(self, x_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(k_BSHK, v_BSHK) of a sequence."""
        return self.k(x_BSD), self.v(x_BSD)

    def __call__(
        self, x_BTD: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, sight: Sight | None = None,
        bias_BHTS: jax.Array | None = None, train: bool = False,
    ) -> jax.Array:  # fmt: skip
        """y_BTD. sight: default, every query sees all keys. A query that sees no key gives zeros before W_O."""
        if sight is None:
            sight = same_document(*(jnp.ones(x.shape[:2], jnp.int32) for x in (x_BTD, k_BSHK)))
        drop = (lambda weights: self.drop(weights, deterministic=not train)) if self.dropout else None
        scale = self.head_size**-0.5 if self.scale is None else self.scale
        keys = Keys(jnp.swapaxes(k_BSHK, 1, 2), jnp.swapaxes(v_BSHK, 1, 2), sight.number_BS)
        y_BTHK, _ = attend(self.q(x_BTD), keys, sight.span, Score(scale, None, bias_BHTS, drop))
        return self.o(y_BTHK.astype(v_BSHK.dtype))


class FeedForward(nn.Module):
    """y = act(x W_up) W_down, or act(x W_gate) (x W_up) W_down when `gated` (Shazeer 2020, arXiv:2002.05202, §2)."""

    width: int
    hidden: int
    activation: str = "gelu"
    gated: bool = False
    bias: bool = False
    init_fn: Initializer | None = None
    dropout: float = 0.0  # of the hidden activations
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BTD: jax.Array, train: bool = False) -> jax.Array:
        def inward(name: str) -> jax.Array:
            return Linear((self.hidden,), ("embed", "mlp"), 1, self.bias, self.init_fn, self.dtype, name=name)(x_BTD)

        activation = _activations.find(self.activation)
        h_BTF = activation(inward("gate")) * inward("up") if self.gated else activation(inward("up"))
        h_BTF = nn.Dropout(self.dropout, deterministic=not train)(h_BTF)
        return Linear((self.width,), ("mlp", "embed"), 1, self.bias, self.init_fn, self.dtype, name="down")(h_BTF)


class TransformerLayer(nn.Module):
    """Attention, then a feed-forward, each with a residual connection; pre-norm, or as in BERT post-norm."""

    width: int
    heads: int
    hidden: int
    norm_first: bool = True
    norm_eps: float = 1e-6
    activation: str = "gelu"
    init_fn: Initializer | None = None
    dropout: float = 0.0  # of the branches and of the attention weights
    dtype: Any = jnp.float32

    @nn.nowrap
    def attention_map(self, **fields: Any) -> Callable[[jax.Array, Any, bool], jax.Array]:
        """(x_BTD, sight, train) -> y_BTD, the attention of this layer; fields: of `MultiHeadAttention`."""
        attention = MultiHeadAttention(dropout=self.dropout, **fields)
        return lambda x_BTD, sight, train: attention(x_BTD, *attention.keys_values(x_BTD), sight, train=train)

    @nn.compact
    def __call__(self, x_BTD: jax.Array, sight: Any, train: bool) -> jax.Array:
        """sight: what the tokens see, for `attention_map`; here a Sight, or None for all."""
        norms = {name: LayerNorm(self.norm_eps, self.dtype, name=f"norm_{name}") for name in ("attention", "mlp")}
        fields = dict(bias=True, init_fn=self.init_fn, dtype=self.dtype)
        sizes = dict(width=self.width, heads=self.heads, head_size=self.width // self.heads)
        attention = self.attention_map(name="attention", **sizes, **fields)
        mlp = FeedForward(self.width, self.hidden, self.activation, name="mlp", **fields)
        branches = {
            "attention": lambda h_BTD: attention(h_BTD, sight, train),
            "mlp": lambda h_BTD: mlp(h_BTD, train),
        }
        drop = nn.Dropout(self.dropout, deterministic=not train)
        for name, branch in branches.items():
            h_BTD = drop(branch(norms[name](x_BTD) if self.norm_first else x_BTD))
            x_BTD = constrain(x_BTD + h_BTD, ("batch", "time", None))
            x_BTD = x_BTD if self.norm_first else norms[name](x_BTD)
        return x_BTD
