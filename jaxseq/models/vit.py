"""Vision Transformer: an image is a sequence of patches (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict, config_dict

from jaxseq.errors import UserError
from jaxseq.layers import LayerNorm, Linear, constrain, normal, param, xavier_uniform
from jaxseq.mixers import _activations
from jaxseq.models import _transformer
from jaxseq.models._network import DTYPES, REMAT, Network, check, fields, scan
from jaxseq.ops import _time


class ViTOutput(NamedTuple):
    """Output of `ViT`."""

    hidden: jax.Array  # [B, 1 + patches, D] after the final norm: the class token, then the patches row by row
    classes: jax.Array | None  # [B, classes] logits from the class token; None without a classifier
    pooled: jax.Array | None = None  # [B, D], tanh of a projection of the class token; None without a pooler


def patches(images_BYXI: jax.Array, side: int) -> jax.Array:
    """[B, N, side, side, C]: patches of side x side pixels, row by row."""
    rows, columns = (size // side for size in images_BYXI.shape[1:3])
    x = images_BYXI.reshape(images_BYXI.shape[0], rows, side, columns, side, images_BYXI.shape[3])
    return x.swapaxes(2, 3).reshape(images_BYXI.shape[0], rows * columns, side, side, images_BYXI.shape[3])


class ViT(Network):
    """out = model.apply({"params": params}, images, train=False), a ViTOutput

    images [B, size, size, channels], with values in [-1, 1], as the objective `classification` provides them. z = [class;
    patches E] + positions, then pre-norm layers of attention over all patches and a feed-forward, a norm, and a linear
    classifier on the class token (§3.1, eq. 1 to 4; as in fine-tuning, without the hidden layer of pre-training).

    In training the same dropout probability applies to embeddings, branches and attention weights; pass rngs={"dropout": key}.
    """

    size: int
    patch: int
    width: int
    layers: int
    heads: int
    hidden: int
    channels: int = 3
    classes: int = 0  # 0: no classifier
    pooler: bool = False  # add the hidden layer of pre-training (§3.1), whose output is `pooled`
    norm_eps: float = 1e-6
    activation: str = "gelu"
    dropout: float = 0.0
    remat: str = "none"
    dtype: Any = jnp.float32

    optional: ClassVar[tuple[str, ...]] = ("pool", "classifier")  # heads that fine-tuning may add or leave out

    @nn.nowrap
    def example(self) -> tuple[jax.Array]:
        """Example inputs for `init`."""
        return (jnp.zeros((1, self.size, self.size, self.channels), self.dtype),)

    def setup(self) -> None:
        length, axes = 1 + (self.size // self.patch) ** 2, (None, None, None, "embed")
        self.patches = Linear((self.width,), axes, 3, bias=True, dtype=self.dtype)
        self.class_D = param(self, "class", jax.nn.initializers.zeros, (self.width,), ("embed",), decay=False)
        self.position_SD = param(self, "position", normal(0.02), (length, self.width), (None, "embed"), decay=False)
        fields = True, self.norm_eps, self.activation, xavier_uniform(), self.dropout, self.dtype
        self.blocks = _transformer.TransformerLayer(self.width, self.heads, self.hidden, *fields)
        self.final_norm = LayerNorm(self.norm_eps, self.dtype)
        self.drop = nn.Dropout(self.dropout)
        if self.pooler:
            self.pool = Linear((self.width,), ("embed", "mlp"), bias=True, dtype=self.dtype)
        if self.classes:
            zeros = jax.nn.initializers.zeros  # as in the paper's code: all classes are equally likely
            self.classifier = Linear((self.classes,), ("embed", "vocab"), bias=True, init_fn=zeros, dtype=self.dtype)

    def __call__(self, images: jax.Array, train: bool = False) -> ViTOutput:
        chex.assert_rank(images, 4)
        if images.shape[1:] != (self.size, self.size, self.channels):
            given, wanted = ("x".join(map(str, s)) for s in (images.shape[1:], (self.size, self.size, self.channels)))
            raise UserError(f"this model reads images of {wanted} and was given {given}; resize them, or set model.size")
        x_BND = self.patches(patches(images, self.patch))
        class_B1D = jnp.broadcast_to(self.class_D.astype(x_BND.dtype), (x_BND.shape[0], 1, self.width))
        x_BTD = jnp.concatenate([class_B1D, x_BND], axis=1) + self.position_SD.astype(x_BND.dtype)
        x_BTD = constrain(self.drop(x_BTD, deterministic=not train), ("batch", None, None))
        call = lambda block, x_BTD, _: (block(x_BTD, None, train), None)  # noqa: E731
        x_BTD, _ = scan(self.blocks, self.layers, x_BTD, None, call, self.remat)
        x_BTD = self.final_norm(x_BTD)
        classes_BN = self.classifier(x_BTD[:, 0]).astype(_time.accumulation_dtype(x_BTD)) if self.classes else None
        pooled_BD = jnp.tanh(self.pool(x_BTD[:, 0])) if self.pooler else None
        return ViTOutput(x_BTD, classes_BN, pooled_BD)


def build(config: ConfigDict) -> ViT:
    """The model that `config.model` describes. Raises UserError for invalid values."""
    model = fields(config.model)
    check(model, remat=REMAT, dtype=DTYPES)
    _activations.find(model["activation"])
    for whole, part in (("size", "patch"), ("width", "heads")):
        if model[part] < 1 or model[whole] % model[part]:
            raise UserError(f"model.{whole}={model[whole]} is not a multiple of model.{part}={model[part]}; change one of them")
    return ViT(**model | {"dtype": DTYPES[model["dtype"]], "classes": model["classes"] or 0})


DEFAULTS = {
    "size": 32,  # pixels per side
    "patch": 4,
    "channels": 3,
    "classes": config_dict.placeholder(int),  # empty: the number of labels in the data
    "pooler": False,
    "width": 128,
    "layers": 4,
    "heads": 4,
    "hidden": 512,
    "norm_eps": 1e-6,
    "activation": "gelu",
    "dropout": 0.0,
    "remat": "none",
    "dtype": "float32",
}
