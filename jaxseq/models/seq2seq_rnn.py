"""A recurrent encoder and decoder of tokens without attention (Sutskever et al. 2014, arXiv:1409.3215; Cho et al. 2014)."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.layers import Linear, normal, param
from jaxseq.models._network import DTYPES, Network, check, fields
from jaxseq.models.rnn import CELLS, GatedLayer, GatedState
from jaxseq.ops import _time


class Seq2SeqRNN(Network):
    """logits, state = model.apply({"params": params}, tokens, state, pos, source, source_pos, form="recurrent", train=False)

    source [B, S] int32 is the input of the encoder, whose final state is the initial state of the decoder. tokens [B, T] int32
    are the inputs of the decoder, logits [B, T, V] its outputs. To continue from a state, omit `source`. pos and source_pos: see
    `jaxseq.ops`; a source may only have padding at the end. Encoder and decoder have one layer each.
    """

    cell: str  # gru or lstm
    source_vocab: int
    vocab: int
    width: int  # of both embeddings
    hidden: int
    dtype: Any = jnp.float32

    @nn.nowrap
    def example(self) -> tuple[jax.Array, None, None, jax.Array]:
        """Example inputs for `init`."""
        tokens_BT = jnp.zeros((1, 2), jnp.int32)
        return tokens_BT, None, None, tokens_BT

    @nn.nowrap
    def init_state(self, batch: int, context: int | None = None) -> GatedState:
        return CELLS[self.cell].init_state(batch, 1, self.hidden, self.dtype)

    def setup(self) -> None:
        std = normal(self.width**-0.5)
        self.source_embedding_VD = param(self, "source_embedding", std, (self.source_vocab, self.width), ("vocab", "embed"))
        self.embedding_VD = param(self, "embedding", std, (self.vocab, self.width), ("vocab", "embed"))
        self.encoder, self.decoder = (GatedLayer(self.cell, self.hidden, dtype=self.dtype) for _ in range(2))
        self.head = Linear((self.vocab,), ("mlp", "vocab"), bias=True, dtype=self.dtype)

    def _look_up(self, table_VD, tokens_BT, pos_BT):
        return table_VD[jnp.where(_time.valid(pos_BT), tokens_BT, 0)].astype(self.dtype)

    def encode(self, source: jax.Array, pos: jax.Array | None = None, form: Any = "recurrent") -> GatedState:
        """The state of the encoder after the source."""
        chex.assert_rank(source, 2)
        pos_BT = _time.positions(pos, source)
        return self.encoder(self._look_up(self.source_embedding_VD, source, pos_BT), None, pos_BT, form)[1]

    def __call__(
        self, tokens: jax.Array, state: GatedState | None = None, pos: jax.Array | None = None,
        source: jax.Array | None = None, source_pos: jax.Array | None = None, form: Any = "recurrent",
        train: bool = False,
    ) -> tuple[jax.Array, GatedState]:  # fmt: skip
        chex.assert_rank(tokens, 2)
        if source is not None:
            state = self.encode(source, source_pos, form)
        pos_BT = _time.positions(pos, tokens)
        h_BTK, state = self.decoder(self._look_up(self.embedding_VD, tokens, pos_BT), state, pos_BT, form)
        logits_BTV = self.head(h_BTK).astype(_time.accumulation_dtype(h_BTK))
        return _time.select(_time.valid(pos_BT), logits_BTV), state


@functools.partial(jax.jit, static_argnames=("model", "start", "stop", "steps"))
def greedy(
    model: Seq2SeqRNN, params: Any, source: jax.Array, start: int, stop: int, steps: int, source_pos: jax.Array | None = None
) -> jax.Array:
    """Greedy decoding: tokens [B, steps], each the likeliest next token. From the first `stop` on, all tokens are `stop`."""

    def step(carry, _):
        token_B1, state = carry
        logits_B1V, state = model.apply({"params": params}, token_B1, state)
        token_B1 = jnp.where(token_B1 == stop, stop, jnp.argmax(logits_B1V, axis=-1).astype(jnp.int32))
        return (token_B1, state), token_B1[:, 0]

    state = model.apply({"params": params}, source, source_pos, method="encode")
    first_B1 = jnp.full((source.shape[0], 1), start, jnp.int32)
    return jax.lax.scan(step, (first_B1, state), length=steps)[1].T


def build(config: ConfigDict) -> Seq2SeqRNN:
    """The model that `config.model` describes. Raises UserError for an unknown cell or dtype."""
    model = fields(config.model)
    check(model, cell=[name for name, op in CELLS.items() if hasattr(op, "GATES")], dtype=DTYPES)
    return Seq2SeqRNN(**model | {"dtype": DTYPES[model["dtype"]]})


DEFAULTS = {
    "cell": "gru",
    "source_vocab": 257,
    "vocab": 257,
    "width": 128,
    "hidden": 128,
    "dtype": "float32",
}
