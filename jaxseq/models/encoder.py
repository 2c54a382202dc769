"""A bidirectional encoder of tokens with a masked-language-model head: BERT (Devlin et al. 2019, arXiv:1810.04805), and ALBERT,
whose layers share weights and whose embedding is factorised (Lan et al. 2019, arXiv:1909.11942, §3.1)."""

import functools
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict, config_dict

from jaxseq import compat, weights
from jaxseq.errors import UserError
from jaxseq.layers import Initializer, LayerNorm, Linear, constrain, lookup, normal, param
from jaxseq.mixers import _activations
from jaxseq.models import _positions, _transformer
from jaxseq.models._network import BYTE_VOCAB, DTYPES, REMAT, Network, check, fields, scan
from jaxseq.ops import _time


class EncoderOutput(NamedTuple):
    """Values are zero at padding, and None if the model has no such head. Under jit unused values are not computed."""

    hidden: jax.Array  # [B, T, D]
    logits: jax.Array | None  # [B, T, V] or [B, M, V], the masked-language-model head
    pooled: jax.Array | None  # [B, D], tanh of a projection of the first token
    classes: jax.Array | None  # [B, classes]


class Encoder(Network):
    """out = model.apply({"params": params}, tokens, pos=None, types=None, train=False, at=None), an EncoderOutput

    tokens, types [B, T] int32. pos [B, T] int32: position of a token in its document; 0 begins a document, -1 is padding and may
    be anywhere. Tokens attend only to their own document. Default: one document per row, no padding. types: segment types (BERT's
    sentence A or B), default 0. at [B, M] int32: compute logits only at these positions. `positions` added to the embedding are
    learned (a table), sinusoidal (Vaswani et al. 2017) or none. There is no `form` and no state, because attention is
    bidirectional.

    In training the same dropout probability applies to embeddings, branches and attention weights; pass rngs={"dropout": key}.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    hidden: int  # of the feed-forward
    distinct: int = 0  # layers with weights of their own, each applied layers / distinct times in succession; 0: all
    embedding_width: int = 0  # of the embedding and the masked head, with a linear map to the width; 0: the width
    max_positions: int = 512
    positions: str = "learned"
    types: int = 2  # rows of the table of segment types; 0: none
    norm_first: bool = False
    norm_eps: float = 1e-12
    activation: str = "gelu"  # exact GELU
    dropout: float = 0.0
    masked_head: bool = True
    pooler: bool = False
    classes: int = 0  # of a classifier on `pooled`; 0: no classifier
    init_std: float = 0.02
    remat: str = "none"
    dtype: Any = jnp.float32

    optional: ClassVar[tuple[str, ...]] = ("masked", "pool", "classifier")  # heads that fine-tuning may add or leave out

    @property
    def capacity(self) -> int | None:
        return self.max_positions if self.positions == "learned" else None

    @nn.nowrap
    def example(self) -> tuple[jax.Array]:
        """Example inputs for `init`."""
        return (jnp.zeros((1, 2), jnp.int32),)

    def setup(self) -> None:
        std, width = normal(self.init_std), self.embedding_width or self.width
        self.embedding_VD = param(self, "embedding", std, (self.vocab, width), ("vocab", "embed"), contracts=(-1,))
        self.position_SD = _positions.table(self, self.positions, self.max_positions, width, std)
        if self.types:
            self.type_ND = param(self, "type", std, (self.types, width), (None, "embed"), decay=False)
        norm = functools.partial(LayerNorm, self.norm_eps, self.dtype)
        linear = functools.partial(Linear, bias=True, init_fn=std, dtype=self.dtype)
        self.first_norm = norm()
        if self.embedding_width:
            self.project_in = linear((self.width,), (None, "embed"))
        self.drop = nn.Dropout(self.dropout)
        fields = self.norm_first, self.norm_eps, self.activation, std, self.dropout, self.dtype
        self.blocks = self.layer(self.width, self.heads, self.hidden, *fields)
        if self.norm_first:
            self.final_norm = norm()
        if self.masked_head:
            self.masked = _MaskedHead(self.vocab, width, self.activation, self.norm_eps, std, self.dtype)
        if self.pooler:
            self.pool = linear((self.width,), ("embed", "mlp"))
        if self.classes:
            self.classifier = linear((self.classes,), ("embed", None))

    @nn.nowrap
    def layer(self, *fields: Any) -> _transformer.TransformerLayer:
        return _transformer.TransformerLayer(*fields)

    def __call__(
        self, tokens: jax.Array, pos: jax.Array | None = None, types: jax.Array | None = None, train: bool = False,
        at: jax.Array | None = None,
    ) -> EncoderOutput:  # fmt: skip
        x_BTD, segment_BT = self.begin(tokens, pos, types, train)
        sight = _transformer.same_document(segment_BT, segment_BT)
        call = lambda block, x_BTD, _: (block(x_BTD, sight, train), None)  # noqa: E731
        x_BTD, _ = scan(self.blocks, self.layers, x_BTD, None, call, self.remat, self.distinct or None)
        return self.finish(x_BTD, segment_BT, train, at)

    def begin(
        self, tokens: jax.Array, pos: jax.Array | None, types: jax.Array | None, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """(input of the layers [B, T, D], document of each token [B, T], see `_transformer.segments`)"""
        chex.assert_rank(tokens, 2)
        self.check_positions(tokens, pos)
        if pos is None:
            pos = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        segment_BT = _transformer.segments(pos)
        return self.embed(jnp.where(segment_BT > 0, tokens, 0), pos, types, train), segment_BT

    def finish(self, x_BTD: jax.Array, segment_BT: jax.Array, train: bool, at: jax.Array | None) -> EncoderOutput:
        """The outputs from that of the layers."""
        x_BTD = self.final_norm(x_BTD) if self.norm_first else x_BTD
        x_BTD = _time.select(segment_BT > 0, x_BTD)
        wanted_BMD = x_BTD if at is None else jnp.take_along_axis(x_BTD, at[..., None], axis=1)
        logits_BMV = self.masked(wanted_BMD, self.embedding_VD) if self.masked_head else None
        if not self.pooler:
            return EncoderOutput(x_BTD, logits_BMV, None, None)
        first_B11 = jnp.argmax(segment_BT > 0, axis=1)[:, None, None]
        pooled_BD = jnp.tanh(self.pool(jnp.take_along_axis(x_BTD, first_B11, axis=1)[:, 0]))
        classes_BN = self.classifier(self.drop(pooled_BD, deterministic=not train)) if self.classes else None
        classes_BN = classes_BN if classes_BN is None else classes_BN.astype(_time.accumulation_dtype(x_BTD))
        return EncoderOutput(x_BTD, logits_BMV, pooled_BD, classes_BN)

    def embed(self, tokens_BT: jax.Array, pos_BT: jax.Array | None, types_BT: jax.Array | None, train: bool) -> jax.Array:
        x_BTD = _positions.add(lookup(self.embedding_VD, tokens_BT), pos_BT, self.positions, self.position_SD)
        if self.types:
            x_BTD += constrain(self.type_ND, (None, None))[jnp.zeros_like(tokens_BT) if types_BT is None else types_BT]
        x_BTD = self.drop(self.first_norm(x_BTD), deterministic=not train)
        return constrain(self.project_in(x_BTD) if self.embedding_width else x_BTD, ("batch", "time", None))


class _MaskedHead(nn.Module):
    """logits = norm(act(x W + b)) E^T + c with the embedding E (Devlin et al. 2019 and the released code)."""

    vocab: int
    width: int
    activation: str
    norm_eps: float
    init_fn: Initializer
    dtype: Any

    @nn.compact
    def __call__(self, x_BTD: jax.Array, embedding_VD: jax.Array) -> jax.Array:
        acc, axes = _time.accumulation_dtype(x_BTD), ("embed", "mlp")
        x_BTD = Linear((self.width,), axes, bias=True, init_fn=self.init_fn, dtype=self.dtype, name="transform")(x_BTD)
        x_BTD = LayerNorm(self.norm_eps, self.dtype, name="norm")(_activations.find(self.activation)(x_BTD))
        bias_V = param(self, "bias", jax.nn.initializers.zeros, (self.vocab,), ("vocab",), decay=False)
        logits_BTV = compat.einsum("btd,vd->btv", x_BTD, weights.dense(embedding_VD, self.dtype), dtype=acc)
        return constrain(logits_BTV + bias_V, ("batch", "time", "vocab"))


def build(config: ConfigDict) -> Encoder:
    """The model that `config.model` describes. Raises UserError for invalid values."""
    return Encoder(**checked(config.model))


def checked(section: ConfigDict) -> dict[str, Any]:
    """The fields of the network. Raises UserError for invalid values."""
    model = fields(section)
    check(model, positions=_positions.KINDS, remat=REMAT, dtype=DTYPES)
    _activations.find(model["activation"])
    if model["width"] % model["heads"]:
        raise UserError(f"model.width={model['width']} is not a multiple of model.heads={model['heads']}; change one of them")
    if model["distinct"] and model["layers"] % model["distinct"]:
        raise UserError(f"model.distinct={model['distinct']} is no divisor of model.layers={model['layers']}; choose one")
    model["vocab"] = model["vocab"] or BYTE_VOCAB + 1  # and one id for the mask
    model["classes"] = model["classes"] or 0
    model["pooler"] = model["pooler"] or model["classes"] > 0
    return model | {"dtype": DTYPES[model["dtype"]]}


DEFAULTS = {
    "vocab": config_dict.placeholder(int),  # empty: the tokenizer's, plus the ids that the objective adds
    "width": 128,
    "layers": 4,
    "heads": 4,
    "hidden": 512,
    "distinct": 0,
    "embedding_width": 0,
    "max_positions": 512,
    "positions": "learned",
    "types": 2,
    "norm_first": False,
    "norm_eps": 1e-12,
    "activation": "gelu",
    "dropout": 0.0,
    "masked_head": True,
    "pooler": False,
    "classes": config_dict.placeholder(int),  # empty: as many as labels in the data, if any
    "init_std": 0.02,
    "remat": "none",
    "dtype": "float32",
}
