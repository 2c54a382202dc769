"""An encoder whose sequence becomes shorter from block to block: the Funnel Transformer (Dai et al. 2020, arXiv:2006.03236)."""

import functools
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict, config_dict

from jaxseq import compat, weights
from jaxseq.errors import UserError
from jaxseq.layers import LayerNorm, Linear, constrain, lookup, normal, param
from jaxseq.mixers import _activations
from jaxseq.models import _pooled_attention, _transformer
from jaxseq.models._network import BYTE_VOCAB, DTYPES, REMAT, Network, check, fields, scan
from jaxseq.models._pooled_attention import FunnelLayer, Resolution
from jaxseq.models.encoder import EncoderOutput
from jaxseq.ops import _time

INIT = jax.nn.initializers.variance_scaling(0.5, "fan_avg", "normal")  # variance 1 / (inputs + outputs)
RELATIVE_INIT = jax.nn.initializers.uniform(0.1)  # U(0, 0.1), of the released code


class Funnel(Network):
    """out = model.apply({"params": params}, tokens, pos=None, types=None, train=False, at=None), an EncoderOutput

    Arguments as those of Encoder. At the start of each block but the first, the queries of its first layer are the means of two
    neighbours (`pool`: or the largest values), and the keys are the tokens before; so every block has half as many tokens as the
    one before it. The first token of a row, [CLS], stands alone in each level, and the last token of a level is dropped.

    With `decoder` the last block's tokens are repeated, added to the output of the first block, and these layers follow;
    then `hidden` has a value for every token. Without, `hidden` [B, T', D] are the last block's tokens. `classes` is a classifier
    on the first token, for models without a decoder; `pooled` is its hidden layer.

    A row is one document, with padding after it; padding has no effect, and tokens that are pooled with padding are not attended
    to. In a row of several documents tokens see only their own document, but a document that begins at another place of the row
    is pooled in other pairs, and only the row's first token stands alone: the results are not those of the document by itself.

    `blocks`: the layers of each block, "4 4 4"; `repeats`: how often each of these layers is applied, "1 2 2", default once.
    """

    vocab: int
    width: int
    blocks: str
    heads: int
    hidden: int  # of the feed-forward
    repeats: str = ""
    head_size: int | None = None  # default: width / heads
    decoder: int = 2  # layers after the tokens of the last block are repeated; 0: they are not
    pool: str = "mean"
    norm_eps: float = 1e-9
    activation: str = "gelu_tanh"
    dropout: float = 0.0
    masked_head: bool = True
    classes: int = 0
    remat: str = "none"
    dtype: Any = jnp.float32

    optional: ClassVar[tuple[str, ...]] = ("masked_bias", "pooler", "classifier")  # heads that fine-tuning may add or leave out

    @nn.nowrap
    def example(self) -> tuple[jax.Array]:
        """Example inputs for `init`."""
        return (jnp.zeros((1, 4 * 2 ** len(self.blocks.split())), jnp.int32),)

    @nn.nowrap
    def counts(self) -> list[tuple[int, int]]:
        """(layers, how often each is applied) of each block."""
        layers = self.blocks.split()
        return [(int(n), int(times)) for n, times in zip(layers, self.repeats.split() or ["1"] * len(layers), strict=True)]

    @nn.compact
    def __call__(
        self, tokens: jax.Array, pos: jax.Array | None = None, types: jax.Array | None = None, train: bool = False,
        at: jax.Array | None = None,
    ) -> EncoderOutput:  # fmt: skip
        chex.assert_rank(tokens, 2)
        if pos is None:
            pos = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        document_BT = _transformer.segments(pos)
        embedding_VD = param(self, "embedding", normal(1.0), (self.vocab, self.width), ("vocab", "embed"), contracts=(-1,))
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x_BTD = lookup(embedding_VD, jnp.where(document_BT > 0, tokens, 0))
        x_BTD = drop(LayerNorm(self.norm_eps, self.dtype, name="first_norm")(x_BTD))
        first = Resolution(document_BT, document_BT, jnp.zeros_like(tokens) if types is None else types)
        x_BTD, level = self._layers(constrain(x_BTD, ("batch", "time", None)), first, train)
        x_BTD = _time.select(level.document_BT > 0, x_BTD)
        logits_BMV = None
        if self.masked_head:
            wanted_BMD = x_BTD if at is None else jnp.take_along_axis(x_BTD, at[..., None], axis=1)
            logits_BMV = self._masked(wanted_BMD, embedding_VD)
        if not self.classes:
            return EncoderOutput(x_BTD, logits_BMV, None, None)
        linear = functools.partial(Linear, bias=True, init_fn=INIT, dtype=self.dtype)
        pooled_BD = jnp.tanh(linear((self.width,), ("embed", "mlp"), name="pooler")(x_BTD[:, 0]))
        classes_BN = linear((self.classes,), ("embed", None), name="classifier")(drop(pooled_BD))
        return EncoderOutput(x_BTD, logits_BMV, pooled_BD, classes_BN.astype(_time.accumulation_dtype(x_BTD)))

    def _layers(self, x_BTD: jax.Array, first: Resolution, train: bool) -> tuple[jax.Array, Resolution]:
        """The output of all layers and its level."""
        sizes = self.width, self.heads, self.head_size or self.width // self.heads, self.hidden
        fields = self.norm_eps, self.activation, RELATIVE_INIT, INIT, self.dropout, self.dtype
        layer = functools.partial(FunnelLayer, *sizes, *fields)

        def apply(name, x_BTD, level, repeats, distinct=None):
            """`repeats` layers of one level."""
            call = lambda block, x_BTD, _: (block(x_BTD, x_BTD, level, level, train), None)  # noqa: E731
            return scan(layer(name=name), repeats, x_BTD, None, call, self.remat, distinct)[0] if repeats else x_BTD

        level, shallow_BTD = first, x_BTD
        for i, (count, times) in enumerate(self.counts()):
            if i:
                pooled = _pooled_attention.pool(x_BTD, level, self.pool) if x_BTD.shape[1] > 2 else (x_BTD, level)
                shorter, source_BSD, before = layer(name=f"pool_{i}"), x_BTD, level
                x_BTD, level = pooled
                x_BTD = shorter(x_BTD, source_BSD, level, before, train)
                for _ in range(times - 1):
                    x_BTD = shorter(x_BTD, x_BTD, level, level, train)
            rest = count - (i > 0)
            x_BTD = apply(f"blocks_{i}", x_BTD, level, rest * times, rest)
            shallow_BTD = shallow_BTD if i else x_BTD
        if not self.decoder:
            return x_BTD, level
        x_BTD = shallow_BTD + _pooled_attention.unpool(x_BTD, level.document_BT, first.document_BT, level.stride)
        return apply("upper", x_BTD, first, self.decoder), first

    def _masked(self, x_BMD: jax.Array, embedding_VD: Any) -> jax.Array:
        acc = _time.accumulation_dtype(x_BMD)
        bias_V = param(self, "masked_bias", jax.nn.initializers.zeros, (self.vocab,), ("vocab",), decay=False)
        logits_BMV = compat.einsum("bmd,vd->bmv", x_BMD, weights.dense(embedding_VD, self.dtype), dtype=acc)
        return constrain(logits_BMV + bias_V, ("batch", "time", "vocab"))


def build(config: ConfigDict) -> Funnel:
    """The model that `config.model` describes. Raises UserError for invalid values."""
    model = fields(config.model)
    check(model, pool=_pooled_attention.POOLS, remat=REMAT, dtype=DTYPES)
    _activations.find(model["activation"])
    layers, repeats = _numbers(model, "blocks"), _numbers(model, "repeats")
    if not layers or (repeats and len(repeats) != len(layers)):
        raise UserError(
            f"model.blocks={model['blocks']!r} and model.repeats={model['repeats']!r} must have a number for each block; "
            "write them like '4 4 4' and '1 2 2', or leave model.repeats empty"
        )
    if not model["head_size"] and model["width"] % model["heads"]:
        raise UserError(f"model.width={model['width']} is not a multiple of model.heads={model['heads']}; change one of them")
    if model["width"] % 2:
        raise UserError(f"model.width={model['width']} must be even, for pairs of a sine and a cosine; change it")
    model["vocab"] = model["vocab"] or BYTE_VOCAB + 1  # and one id for the mask
    model["classes"] = model["classes"] or 0
    if bool(model["decoder"]) == (model["classes"] > 0) and (model["classes"] or model["masked_head"]):
        raise UserError(
            "a masked head needs a decoder and a classifier none; set model.decoder, or set it to 0 with "
            "model.masked_head=false"
        )
    return Funnel(**model | {"dtype": DTYPES[model["dtype"]]})


def _numbers(model: dict[str, Any], field: str) -> list[int]:
    """The numbers of a text, each at least 1."""
    words = model[field].split()
    if not all(word.isdecimal() and 0 < int(word) < 1000 for word in words):
        raise UserError(f"model.{field}={model[field]!r} must be numbers from 1 to 999, one for each block, such as '4 4 4'")
    return [int(word) for word in words]


DEFAULTS = {
    "vocab": config_dict.placeholder(int),  # empty: the tokenizer's, plus the ids that the objective adds
    "width": 128,
    "blocks": "2 2 2",
    "repeats": "",
    "heads": 4,
    "head_size": config_dict.placeholder(int),  # empty: width / heads
    "hidden": 512,
    "decoder": 2,
    "pool": "mean",
    "norm_eps": 1e-9,
    "activation": "gelu_tanh",
    "dropout": 0.0,
    "masked_head": True,
    "classes": config_dict.placeholder(int),  # empty: as many as labels in the data, if any
    "remat": "none",
    "dtype": "float32",
}
