"""Bits per byte and perplexity on held-out documents. Bits per byte can be compared between tokenizers.

The targets of a document are ids[1:] + [boundary]: each of its tokens and the end of the text. Documents longer than
eval.length go through one jitted function in pieces, with the state carried from piece to piece. A model whose state does not
grow is evaluated with the whole preceding text as context. Full attention restarts after train.length tokens, because its cost
grows with the context and later positions were never trained; eval.context sets another number, for any model. Documents of
similar length share a batch; the score of a document does not depend on the other documents.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxseq import forms
from jaxseq.data.corpora import Corpus
from jaxseq.data.streaming import StreamedCorpus
from jaxseq.errors import UserError
from jaxseq.models.lm import LM, LMState
from jaxseq.ops._time import PAD
from jaxseq.shards import beside

Between = Callable[[], None]

# Attention over a whole book costs its length squared and says little about a model trained on short rows.
CONTEXT = 1024


class EncodedDocument(NamedTuple):
    id: str
    ids: np.ndarray  # [T] int32, beginning with the tokenizer's start token
    n_bytes: int
    end: int = 0  # the target after the last token: the tokenizer's boundary


class Piece(NamedTuple):
    """One piece of a batch of documents: arrays [B, T]; targets at pos = PAD are not scored."""

    tokens: np.ndarray
    targets: np.ndarray
    pos: np.ndarray


def token_nats(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(-log p(target), log of the normaliser), both [B, T] float32 or wider; logits of any dtype."""
    logits_BTV = logits_BTV.astype(jnp.promote_types(logits_BTV.dtype, jnp.float32))
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    chosen_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return log_z_BT - chosen_BT, log_z_BT


def nothing() -> None:
    pass


def evaluate(
    model: LM, params: Any, config: ConfigDict, corpus: Corpus | StreamedCorpus, split: str = "validation", *,
    mesh: Mesh | None = None, between: Between = nothing,
) -> dict[str, Any]:  # fmt: skip
    """Scores the first eval.documents documents of a split (0: all of them) and returns JSON-able figures.

    Reads config.train.form and these fields of config.eval:
      batch: documents per batch
      length: tokens per piece
      documents: see above
      carry_state: False scores each piece from an empty state and position 0, like a training row
      context: tokens after which the state is reset (0: never; None: train.length if the state grows, else never)
    With `mesh`, documents are split over data and fsdp. `between` is called before each piece of each group of documents; an
    exception that it raises ends the evaluation.

    Returns:
      bits_per_byte, nats_per_token, perplexity over all documents together, tokens, bytes, split, carry_state, context, and
      documents: [{id, bytes, tokens, nats}] in the corpus' order. Deterministic.
    """
    settings = config.eval
    check(model, config)
    found = itertools.islice(corpus.documents(split), settings.documents or None)
    end = corpus.tokenizer.boundary
    documents = [EncodedDocument(str(name), np.asarray(ids, np.int32), int(n_bytes), end) for name, ids, n_bytes in found]
    check(model, config, max((len(document.ids) for document in documents), default=0))
    batch = min(settings.batch, len(documents))
    anew = restart(model, config)
    platform = mesh.devices.flat[0].platform if mesh else None
    plan = forms.plan(config.train.form, "prefill", platform)
    score = Scorer(model, params, plan, settings.length, anew, settings.carry_state, mesh, between)
    nats = np.zeros(len(documents))
    for group in groups(documents, batch):
        rows = [documents[index] for index in group]
        rows += [EncodedDocument("", rows[0].ids[:0], 0)] * (batch - len(rows))
        nats[group] = score(rows)[: len(group)]
    tokens = sum(len(document.ids) for document in documents)
    n_bytes = sum(document.n_bytes for document in documents)
    total = math.fsum(nats)
    return {
        "split": split,
        "carry_state": bool(settings.carry_state),
        "context": anew,
        "bits_per_byte": total / math.log(2) / max(n_bytes, 1),
        "nats_per_token": total / max(tokens, 1),
        "perplexity": math.exp(min(total / max(tokens, 1), 700.0)),
        "tokens": tokens,
        "bytes": n_bytes,
        "documents": [
            {"id": document.id, "bytes": document.n_bytes, "tokens": len(document.ids), "nats": float(value)}
            for document, value in zip(documents, nats, strict=True)
        ],
    }


def check(model: LM, config: ConfigDict, longest: int = 0) -> None:
    """Raises UserError for settings out of range, and for a model that cannot read `longest` tokens with these settings."""
    settings = config.eval
    for name in ("batch", "length"):
        if settings[name] < 1:
            raise UserError(f"eval.{name}={settings[name]} is not positive; set it to 1 or more")
    for name, zero in (("documents", "for all documents"), ("context", "to carry the state over whole documents")):
        if (settings[name] or 0) < 0:
            raise UserError(f"eval.{name}={settings[name]} is negative; set it to 0 {zero}")
    tokens = min(longest, restart(model, config) or longest)
    if model.capacity is not None and tokens > model.capacity:
        raise UserError(
            f"this model has learned {model.capacity} positions and cannot be scored on {tokens} tokens in a row; "
            f"set eval.length={model.capacity} eval.context={model.capacity}, or less"
        )


def groups(documents: list[EncodedDocument], batch: int) -> Iterator[list[int]]:
    """Indices of documents to score together, the longest first, so that running out of memory shows at once."""
    order = sorted(range(len(documents)), key=lambda index: (-len(documents[index].ids), index))
    return (order[start : start + batch] for start in range(0, len(order), batch))


def restart(model: LM, config: ConfigDict) -> int | None:
    """The number of tokens, a multiple of eval.length, after which the state is reset; None: never."""
    settings = config.eval
    if not settings.carry_state:
        return settings.length
    grows = jax.eval_shape(lambda: model.remaining_capacity(model.init_state(1, 1))) is not None
    context = (config.train.length if grows else 0) if settings.context is None else settings.context
    return settings.length * max(1, context // settings.length) if context else None


def pieces(rows: list[EncodedDocument], length: int, restart: int | None) -> Iterator[Piece]:
    """Cuts documents into pieces of `length` tokens; `pos` counts the tokens since the last restart."""
    for start in range(0, max(len(row.ids) for row in rows), length):
        tokens = np.zeros((len(rows), length), np.int32)
        targets = np.zeros((len(rows), length), np.int32)
        pos = np.full((len(rows), length), PAD, np.int32)
        for index, row in enumerate(rows):
            ids = row.ids[start : start + length]
            tokens[index, : len(ids)] = ids
            targets[index, : len(ids)] = np.append(row.ids, row.end)[start + 1 : start + 1 + len(ids)]
            pos[index, : len(ids)] = np.arange(len(ids)) + (start % restart if restart else start)
        yield Piece(tokens, targets, pos)


@functools.partial(jax.jit, static_argnames=("model", "form", "carry_state", "mesh"), donate_argnames="state")
def score_piece(
    model: LM, form: Any, carry_state: bool, mesh: Mesh | None, params: Any, state: LMState | None,
    tokens_BT: jax.Array, targets_BT: jax.Array, pos_BT: jax.Array,
) -> tuple[jax.Array, LMState | None]:  # fmt: skip
    """(nats [B, T], zero at padding; the state after the piece, or None if it is not carried)."""
    logits_BTV, state = model.apply({"params": params}, tokens_BT, state=state, pos=pos_BT, form=form)
    nats_BT, _ = token_nats(logits_BTV, targets_BT)
    nats_BT = jnp.where(pos_BT == PAD, 0.0, nats_BT)
    if mesh is not None:  # replicated, so that every process can read all of it
        nats_BT = jax.lax.with_sharding_constraint(nats_BT, NamedSharding(mesh, PartitionSpec()))
    return nats_BT, state if carry_state else None


class Scorer(NamedTuple):
    """Computes nats of whole documents piece by piece; compiled once for each state size."""

    model: Any
    params: Any
    form: str
    length: int
    restart: int | None
    carry_state: bool
    mesh: Mesh | None
    between: Between = nothing

    def __call__(self, rows: list[EncodedDocument]) -> np.ndarray:
        """Nats [B] float64 of each row's document."""
        longest = min(max(len(row.ids) for row in rows), self.restart or math.inf)
        state = None
        if self.carry_state:
            state = beside(self.params, self.model.init_state(len(rows), slots(longest, self.length)))
        parts = []
        for piece in pieces(rows, self.length, self.restart):
            self.between()
            jax.block_until_ready(parts[-2:-1])  # a few queued pieces keep the device busy; more would delay a stop
            nats_BT, state = score_piece(
                self.model, self.form, self.carry_state, self.mesh, self.params, state, *self.place(piece)
            )
            parts.append(nats_BT)
        return np.sum([np.asarray(part, np.float64).sum(1) for part in jax.device_get(parts)], axis=0)

    def place(self, piece: Piece) -> Iterable[jax.Array]:
        if self.mesh is None:
            return piece
        rows = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        spec = PartitionSpec(("data", "fsdp")) if piece.tokens.shape[0] % rows == 0 else PartitionSpec()
        sharding = NamedSharding(self.mesh, spec)
        return [jax.make_array_from_callback(array.shape, sharding, array.__getitem__) for array in piece]


def slots(longest: int, length: int) -> int:
    """State slots for the longest document: its number of pieces is rounded up to a power of two, to compile few programs."""
    return length * 2 ** math.ceil(math.log2(max(longest / length, 1)))
