"""How well a model compresses held-out documents: bits per byte, which no tokenizer can flatter, and perplexity.

A document is the targets ids[1:] + [boundary]: each of its tokens and the end of the text. Documents longer than
eval.length are streamed in pieces through one jitted function, the state carried from piece to piece, so that a model
is judged with all the context that its state can hold. Documents of similar length share a batch; what a document
scores does not depend on its company.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseq.errors import UserError
from jaxseq.ops._time import PAD


class Document(NamedTuple):
    id: str
    ids: np.ndarray  # [T] int32, boundary in front
    n_bytes: int


class Piece(NamedTuple):
    """One piece of a batch of documents: arrays [B, T]; targets under pos = PAD are not scored."""

    tokens: np.ndarray
    targets: np.ndarray
    pos: np.ndarray


def token_nats(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(-log p(target), log of the normaliser), both [B, T] float32 or wider; logits of any dtype."""
    logits_BTV = logits_BTV.astype(jnp.promote_types(logits_BTV.dtype, jnp.float32))
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    chosen_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return log_z_BT - chosen_BT, log_z_BT


def evaluate(model, params, config, corpus, split: str = "validation", *, mesh: Mesh | None = None) -> dict[str, Any]:
    """Scores the first eval.documents documents of a split (0: all of them) and returns JSON-able figures.

    Reads config.eval (batch: documents at a time; length: tokens a piece; documents; carry_state: False scores each
    piece from an empty state and position 0, as training rows are) and config.train.form. With `mesh`, documents are
    split over data and fsdp.

    Returns:
      bits_per_byte, nats_per_token, perplexity over all documents together, tokens, bytes, split, carry_state, and
      documents: [{id, bytes, tokens, nats}] in the corpus' order. Deterministic.
    """
    settings = config.eval
    for name in ("batch", "length"):
        if settings[name] < 1:
            raise UserError(f"eval.{name}={settings[name]} is not positive; set it to 1 or more")
    if settings.documents < 0:
        raise UserError(f"eval.documents={settings.documents} is negative; set it to 0 for all documents")
    found = itertools.islice(corpus.documents(split), settings.documents or None)
    documents = [Document(str(name), np.asarray(ids, np.int32), int(n_bytes)) for name, ids, n_bytes in found]
    score = Scorer(model, params, config.train.form, settings.carry_state, mesh)
    nats = np.zeros(len(documents))
    for group in groups(documents, settings.batch):
        rows = [documents[index] for index in group]
        rows += [Document("", rows[0].ids[:0], 0)] * (settings.batch - len(rows))
        nats[group] = score(rows, settings.length)[: len(group)]
    tokens = sum(len(document.ids) for document in documents)
    n_bytes = sum(document.n_bytes for document in documents)
    total = math.fsum(nats)
    return {
        "split": split,
        "carry_state": bool(settings.carry_state),
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


def groups(documents: list[Document], batch: int) -> Iterator[list[int]]:
    """Indices of documents to score together: the longest first, so that the largest program is met at once."""
    order = sorted(range(len(documents)), key=lambda index: (-len(documents[index].ids), index))
    return (order[start : start + batch] for start in range(0, len(order), batch))


def pieces(rows: list[Document], length: int, carry_state: bool) -> Iterator[Piece]:
    """Cuts documents into pieces of `length` tokens; `pos` counts on over the pieces, or restarts at each."""
    for start in range(0, max(len(row.ids) for row in rows), length):
        tokens = np.zeros((len(rows), length), np.int32)
        targets = np.zeros((len(rows), length), np.int32)
        pos = np.full((len(rows), length), PAD, np.int32)
        for index, row in enumerate(rows):
            ids = row.ids[start : start + length]
            tokens[index, : len(ids)] = ids
            # What follows the last token of a document is the boundary, which is also its first id.
            targets[index, : len(ids)] = np.append(row.ids, row.ids[:1])[start + 1 : start + 1 + len(ids)]
            pos[index, : len(ids)] = np.arange(len(ids)) + (start if carry_state else 0)
        yield Piece(tokens, targets, pos)


@functools.partial(jax.jit, static_argnames=("model", "form", "carry_state", "mesh"), donate_argnames="state")
def score_piece(model, form, carry_state: bool, mesh: Mesh | None, params, state, tokens_BT, targets_BT, pos_BT):
    """(nats [B, T], zero under padding; the state after the piece, or None where none is carried)."""
    logits_BTV, state = model.apply({"params": params}, tokens_BT, state=state, pos=pos_BT, form=form)
    nats_BT, _ = token_nats(logits_BTV, targets_BT)
    nats_BT = jnp.where(pos_BT == PAD, 0.0, nats_BT)
    if mesh is not None:  # so that each of several processes can read all of it
        nats_BT = jax.lax.with_sharding_constraint(nats_BT, NamedSharding(mesh, PartitionSpec()))
    return nats_BT, state if carry_state else None


class Scorer(NamedTuple):
    """Nats of whole documents, piece by piece; compiled once for each size of the state."""

    model: Any
    params: Any
    form: str
    carry_state: bool
    mesh: Mesh | None

    def __call__(self, rows: list[Document], length: int) -> np.ndarray:
        """Nats [B] float64 of each row's document."""
        longest = max(len(row.ids) for row in rows)
        state = self.model.init_state(len(rows), context(longest, length)) if self.carry_state else None
        parts = []
        for piece in pieces(rows, length, self.carry_state):
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


def context(longest: int, length: int) -> int:
    """Slots of the state: the longest document in pieces, rounded up to a power of two: few programs are compiled."""
    return length * 2 ** math.ceil(math.log2(max(longest / length, 1)))
