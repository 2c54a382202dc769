"""A bidirectional encoder of long documents whose attention is computed sparsely: Longformer (Beltagy et al. 2020,
arXiv:2004.05150) with a window and global tokens, and BigBird (Zaheer et al. 2020, arXiv:2007.14062) with global, near and random
blocks. Time and memory of its attention are linear in T."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxseq.errors import UserError
from jaxseq.models import _block_attention, _sparse_attention, _transformer, _window_attention, encoder
from jaxseq.models._network import check, scan
from jaxseq.models.encoder import Encoder, EncoderOutput

ATTENTIONS = ("window", "blocks")
RANDOM = ("drawn", "first")


class SparseEncoder(Encoder):
    """out = model.apply({"params": params}, tokens, pos=None, types=None, train=False, at=None, global_mask=None), EncoderOutput

    Everything but attention is as in Encoder. Tokens see a part of their document only:

    - window: those at a distance of at most `window` / 2 and the global tokens; a global token sees all tokens of its document,
      with projections of its own (`_window_attention`). Global are the first `global_tokens` tokens of each document, or those
      where global_mask [B, T] is true.
    - blocks: the first and the last block of `block_size` tokens, their own, the one before and after it, and `random_blocks`
      others (`_block_attention`). In training the random blocks are drawn. In evaluation `random` says which they are: the same
      ones (drawn), or each time the first block (first), as in transformers.

    The numbers of a document do not depend on what stands beside it in a row: padding and other documents have no effect. Rows
    with `pos` are slower than rows of one document each, where all sizes are known when compiling. There is no dropout of the
    attention weights. `first_position`: row of the table of positions for the first token of a document.
    """

    attention: str = "window"
    window: int = 512
    global_tokens: int = 0
    block_size: int = 64
    random_blocks: int = 3
    random: str = "drawn"
    first_position: int = 0

    @property
    def capacity(self) -> int | None:
        return None if super().capacity is None else self.max_positions - self.first_position

    def layer(self, *fields: Any) -> _transformer.TransformerLayer:
        if self.attention == "window":
            return _WindowLayer(*fields, window=self.window)
        return _BlockLayer(*fields, block_size=self.block_size, random_blocks=self.random_blocks)

    def embed(self, tokens_BT: jax.Array, pos_BT: jax.Array, types_BT: jax.Array | None, train: bool) -> jax.Array:
        return super().embed(tokens_BT, pos_BT + self.first_position, types_BT, train)

    def __call__(
        self, tokens: jax.Array, pos: jax.Array | None = None, types: jax.Array | None = None, train: bool = False,
        at: jax.Array | None = None, global_mask: jax.Array | None = None,
    ) -> EncoderOutput:  # fmt: skip
        if global_mask is not None and self.attention != "window":
            raise ValueError("attention in blocks has global blocks and no global tokens: leave out `global_mask`")
        x_BTD, segment_BT = self.begin(tokens, pos, types, train)
        if pos is None:
            x_BTD = self._layers(x_BTD, segment_BT, None, global_mask, train)
        else:  # move padding to the end of each row, so that neighbours in a document are neighbours in the row
            order_BT = jnp.argsort(segment_BT == 0, axis=1, stable=True)
            given = (None if x is None else _sparse_attention.take(x, order_BT) for x in (x_BTD, segment_BT, pos, global_mask))
            x_BTD = _sparse_attention.take(self._layers(*given, train), jnp.argsort(order_BT, axis=1))
        return self.finish(x_BTD, segment_BT, train, at)

    def _layers(self, x_BTD, segment_BT, pos_BT, global_BT, train: bool) -> jax.Array:
        if self.attention == "window":
            most = None
            if global_BT is None and self.global_tokens:
                global_BT = jnp.arange(x_BTD.shape[1])[None] if pos_BT is None else pos_BT
                global_BT = jnp.broadcast_to(global_BT < self.global_tokens, segment_BT.shape)
                most = self.global_tokens if pos_BT is None else None
            window = _window_attention.layout(segment_BT, global_BT, most)
            sight_of = lambda layer: window  # noqa: E731
        else:
            blocks = _block_attention.layout(segment_BT, self.block_size, self.random_blocks, pos_BT is not None)
            drawn = train or self.random == "drawn"
            sight_of = lambda layer: (blocks, layer, drawn)  # noqa: E731
        call = lambda block, x_BTD, layer: (block(x_BTD, sight_of(layer), train), None)  # noqa: E731
        numbers_L = jnp.arange(self.layers, dtype=jnp.int32)
        return scan(self.blocks, self.layers, x_BTD, numbers_L, call, self.remat, self.distinct or None)[0]


class _WindowLayer(_transformer.TransformerLayer):
    window: int = 512

    def attention_map(self, **fields: Any) -> Callable[[jax.Array, Any, bool], jax.Array]:
        attention = _window_attention.WindowAttention(window=self.window, **fields)
        return lambda x_BTD, sight, train: attention(x_BTD, sight)


class _BlockLayer(_transformer.TransformerLayer):
    block_size: int = 64
    random_blocks: int = 3

    def attention_map(self, **fields: Any) -> Callable[[jax.Array, Any, bool], jax.Array]:
        attention = _block_attention.BlockAttention(block_size=self.block_size, random_blocks=self.random_blocks, **fields)
        return lambda x_BTD, sight, train: attention(x_BTD, *sight)


def build(config: ConfigDict) -> SparseEncoder:
    """The model that `config.model` describes. Raises UserError for invalid values."""
    model = encoder.checked(config.model)
    check(model, attention=ATTENTIONS, random=RANDOM)
    if model["window"] < 2 or model["window"] % 2:
        raise UserError(f"model.window={model['window']} must be a positive even number, half of it on each side; change it")
    for name, least in {"block_size": 1, "random_blocks": 0, "global_tokens": 0, "first_position": 0}.items():
        if model[name] < least:
            raise UserError(f"model.{name}={model[name]} must be at least {least}; change it")
    return SparseEncoder(**model)


DEFAULTS = encoder.DEFAULTS | {
    "attention": "window",
    "window": 512,
    "global_tokens": 0,
    "block_size": 64,
    "random_blocks": 3,
    "random": "drawn",
    "first_position": 0,
    "max_positions": 4096,
}
