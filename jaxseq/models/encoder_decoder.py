"""Encoder-decoders with relative positions: T5 (Raffel et al. 2020, arXiv:1910.10683), T5 v1.1 (gated GELU, untied head),
and Switch Transformer (Fedus et al. 2022, arXiv:2101.03961), T5 with experts in every other layer."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict, config_dict

from jaxseq import compat, weights
from jaxseq.errors import UserError
from jaxseq.layers import constrain, lookup, normal, param
from jaxseq.mixers import _activations
from jaxseq.models import _transformer
from jaxseq.models._coder import Dimensions, KeysValues, Look, Stack, put
from jaxseq.models._network import BYTE_VOCAB, DTYPES, REMAT, Network, check
from jaxseq.models._transformer import Sight
from jaxseq.ops import _attend, _time
from jaxseq.ops._attend import Span


class DecoderState(NamedTuple):
    """State of decoding: keys and values of the source for cross-attention, and those of the tokens so far."""

    source: tuple[KeysValues, ...]  # one pair per layer of a unit, with leaves [units, B, S, H, K]
    source_segment_BS: jax.Array  # int32; 0: padding
    kept: tuple[KeysValues, ...]  # leaves [units, B, context, H, K]
    kept_pos_BS: jax.Array  # int32
    kept_segment_BS: jax.Array  # int32; 0: empty
    count_B: jax.Array  # int32: number of tokens stored
    next_pos_B: jax.Array  # int32
    segment_B: jax.Array  # int32: of the last token


class EncoderDecoder(Network):
    """logits = model.apply({"params": params}, source, tokens, source_pos=None, pos=None, train=False)

    source [B, S] and tokens [B, T] int32 -> logits [B, T, V] of the token that follows each of `tokens`, in the accumulation
    dtype. source_pos, pos: position of a token in its document; 0 begins a document, -1 is padding and may be anywhere (logits
    are zero there). The n-th document of `tokens` in a row attends to the n-th document of its source. Default: one document.

    Step-by-step decoding gives the same result and encodes the source once (any number of tokens per call; padding is skipped):

        state = model.apply(variables, source, source_pos, context=64, method="start")  # capacity: 64 tokens
        logits, state = model.apply(variables, tokens, state, pos=None, method="decode")

    `encode(source, source_pos, train)` returns the encoder's output [B, S, D], zero at padding. Scores are not scaled by
    1 / sqrt(K). The relative position bias is a parameter of the stack, not of its first layer. `tied`: the head is the
    transposed embedding; `scaled_head`: the head's input is multiplied by width^-1/2. In training pass rngs={"dropout": key}.
    """

    vocab: int
    encoder_layers: int
    decoder_layers: int
    shape: Dimensions
    tied: bool = True
    scaled_head: bool = True

    @property
    def dtype(self) -> Any:
        return self.shape.dtype

    @property
    def residual_dtype(self) -> Any:
        return jnp.promote_types(self.dtype, jnp.float32)

    @nn.nowrap
    def example(self) -> tuple[jax.Array, jax.Array]:
        """Example inputs for `init`."""
        return jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2), jnp.int32)

    def setup(self) -> None:
        table, axes = (self.vocab, self.shape.width), ("vocab", "embed")
        self.embedding_VD = param(self, "embedding", normal(1.0), table, axes, contracts=(-1,))
        if not self.tied:
            self.head_VD = param(self, "head", normal(self.shape.width**-0.5), table, axes, contracts=(-1,))
        self.encoder = Stack(self.shape, self.encoder_layers, False)
        self.decoder = Stack(self.shape, self.decoder_layers, True)

    def __call__(
        self, source: jax.Array, tokens: jax.Array, source_pos: jax.Array | None = None, pos: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:  # fmt: skip
        chex.assert_rank([source, tokens], 2)
        source_pos, pos = _positions(source, source_pos), _positions(tokens, pos)
        source_segment_BS, segment_BT = _transformer.segments(source_pos), _transformer.segments(pos)
        source_BSD = self.encode(source, source_pos, train)
        index_BT = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        own = _causal(segment_BT, index_BT, jax.lax.cummax(jnp.where(pos == _time.START, index_BT, 0), axis=1))
        cross = _transformer.same_document(segment_BT, source_segment_BS)
        look = Look(pos, Sight(own, own.high_BT), self.decoder.relative(pos, pos), cross)
        x_BTD, _ = self.decoder(self._embed(tokens, segment_BT), look, source_BSD, train=train)
        return self._logits(x_BTD, segment_BT)

    def encode(self, source: jax.Array, source_pos: jax.Array | None = None, train: bool = False) -> jax.Array:
        source_pos = _positions(source, source_pos)
        segment_BS = _transformer.segments(source_pos)
        sight = _transformer.same_document(segment_BS, segment_BS)
        look = Look(source_pos, sight, self.encoder.relative(source_pos, source_pos))
        x_BSD, _ = self.encoder(self._embed(source, segment_BS), look, train=train)
        return _time.select(segment_BS > 0, x_BSD)

    def start(self, source: jax.Array, source_pos: jax.Array | None = None, *, context: int) -> DecoderState:
        """The state before the first token, with slots for `context` tokens."""
        source_pos, batch = _positions(source, source_pos), source.shape[0]
        pairs = self.decoder.keys_values(self.encode(source, source_pos))
        empty = lambda x: jnp.zeros((*x.shape[:2], context, *x.shape[3:]), x.dtype)  # noqa: E731
        number = functools.partial(jnp.zeros, dtype=jnp.int32)
        kept_S = number((batch, context)), number((batch, context))
        segments = _transformer.segments(source_pos)
        return DecoderState(pairs, segments, jax.tree.map(empty, pairs), *kept_S, *(number((batch,)) for _ in range(3)))

    def decode(self, tokens: jax.Array, state: DecoderState, pos: jax.Array | None = None) -> tuple[jax.Array, DecoderState]:
        """(logits [B, T, V], state after the tokens). Outside jit, raises UserError if the state has too few slots."""
        if pos is None:
            pos = state.next_pos_B[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        valid_BT, context = _time.valid(pos), state.kept_pos_BS.shape[1]
        count_BT = jnp.cumsum(valid_BT, axis=1, dtype=jnp.int32)
        _check_capacity(state.count_B + count_BT[:, -1], context) if tokens.shape[1] else None
        slot_BT = jnp.where(valid_BT, state.count_B[:, None] + count_BT - 1, context)
        segment_BT = _continued(pos, state.segment_B)
        kept_pos_BS = put(state.kept_pos_BS, pos, slot_BT)
        kept_segment_BS = put(state.kept_segment_BS, segment_BT, slot_BT)
        first_BT = jnp.argmax(kept_segment_BS[:, None] == segment_BT[:, :, None], axis=2)
        number_BS = jnp.where(kept_segment_BS > 0, jnp.arange(context), -1)
        sight = Sight(_causal(segment_BT, slot_BT, first_BT), number_BS)
        cross = _transformer.same_document(segment_BT, state.source_segment_BS)
        look = Look(pos, sight, self.decoder.relative(pos, kept_pos_BS), cross, slot_BT)
        x_BTD, kept = self.decoder(self._embed(tokens, segment_BT), look, state=(state.source, state.kept))
        last_B = jnp.max(segment_BT, axis=1, initial=0)
        next_pos_B = jnp.max(jnp.where(segment_BT == last_B[:, None], pos + 1, 0), axis=1, initial=0)
        next_pos_B = jnp.where(last_B > 0, next_pos_B, state.next_pos_B)
        counts = state.count_B + jnp.sum(valid_BT, axis=1, dtype=jnp.int32), next_pos_B, jnp.maximum(last_B, state.segment_B)
        after = DecoderState(state.source, state.source_segment_BS, kept, kept_pos_BS, kept_segment_BS, *counts)
        return self._logits(x_BTD, segment_BT), after

    def _embed(self, tokens_BT: jax.Array, segment_BT: jax.Array) -> jax.Array:
        x_BTD = lookup(self.embedding_VD, jnp.where(segment_BT > 0, tokens_BT, 0))
        return constrain(x_BTD.astype(self.residual_dtype), ("batch", "time", None))

    def _logits(self, x_BTD: jax.Array, segment_BT: jax.Array) -> jax.Array:
        x_BTD = _time.select(segment_BT > 0, x_BTD)
        x_BTD = x_BTD * self.shape.width**-0.5 if self.scaled_head else x_BTD
        head_VD = weights.dense(self.embedding_VD if self.tied else self.head_VD, self.dtype)
        logits_BTV = compat.einsum("btd,vd->btv", x_BTD, head_VD, dtype=self.residual_dtype)
        return constrain(logits_BTV, ("batch", "time", "vocab"))


def _positions(tokens: jax.Array, pos: jax.Array | None) -> jax.Array:
    if pos is None:
        return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    chex.assert_equal_shape([tokens, pos])
    return pos


def _causal(segment_BT: jax.Array, number_BT: jax.Array, first_BT: jax.Array) -> Span:
    """A token sees the tokens of its document from the first up to itself; padding (segment 0) sees nothing."""
    real_BT = segment_BT > 0
    return Span(jnp.where(real_BT, first_BT, _attend.NEVER), jnp.where(real_BT, number_BT, -1))


def _continued(pos_BT: jax.Array, segment_B: jax.Array) -> jax.Array:
    """`_transformer.segments` for tokens that continue a row whose last document number is segment_B."""
    segment_B1 = segment_B[:, None]
    first_BT = _transformer.segments(pos_BT)
    return jnp.where((segment_B1 > 0) & (first_BT > 0), _time.segments(pos_BT) + segment_B1, first_BT)


def _check_capacity(count_B: jax.Array, context: int) -> None:
    if not isinstance(count_B, jax.core.Tracer) and (short := int(np.max(np.asarray(count_B), initial=0)) - context) > 0:
        raise UserError(f'the state has {short} slots too few for these tokens; make it larger: method="start", context=N')


def build(config: ConfigDict) -> EncoderDecoder:
    """The model that `config.model` describes. Raises UserError for invalid values."""
    model = config.model.to_dict()
    check(model, remat=REMAT, dtype=DTYPES)
    _activations.find(model["activation"])
    every, layers = model["sparse_every"], (model["encoder_layers"], model["decoder_layers"])
    if every < 0 or any(count % max(every, 1) for count in layers):
        raise UserError(f"model.sparse_every={every} does not divide the {layers[0]} and {layers[1]} layers; choose another")
    if model["buckets"] % 4 or not model["buckets"] // 2 < model["max_distance"]:
        raise UserError(f"model.buckets={model['buckets']} is not a multiple of 4 or too large for model.max_distance; lower it")
    experts = {name[len("expert_") :]: model[name] for name in model if name.startswith("expert_")}
    moe = dict(experts=model["experts"], hidden=model["hidden"], gated=model["gated"], activation=model["activation"], top_k=1)
    own = {
        "head_size": model["head_size"] or model["width"] // model["heads"],
        "experts": tuple(sorted((moe | dict(normalize=False) | experts).items())),
        "depth": sum(layers),
        "dtype": DTYPES[model["dtype"]],
    }
    shape = Dimensions(**{name: own.get(name, model.get(name)) for name in Dimensions._fields})
    return EncoderDecoder(model["vocab"] or BYTE_VOCAB, *layers, shape, model["tied"], model["scaled_head"])


DEFAULTS = {
    "vocab": config_dict.placeholder(int),  # empty: the tokenizer's, plus the ids that the objective adds
    "width": 128,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "heads": 4,
    "head_size": config_dict.placeholder(int),  # empty: width / heads
    "hidden": 512,
    "activation": "relu",
    "gated": False,
    "buckets": 32,  # of relative positions, for both directions together
    "max_distance": 128,  # larger distances are in the last bucket
    "tied": True,
    "scaled_head": True,
    "norm_eps": 1e-6,
    "dropout": 0.0,
    "sparse_every": 0,  # 2: every second layer has a mixture of experts, 0: none
    "experts": 4,
    "expert_capacity_factor": config_dict.placeholder(float),  # in training; empty: no token is dropped
    "expert_balance_loss": 0.01,
    "expert_z_loss": 0.0,
    "expert_jitter": 0.0,
    "remat": "none",
    "dtype": "float32",
}
