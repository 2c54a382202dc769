"""One label for a whole image or text: cross entropy under label smoothing (Szegedy et al. 2016, arXiv:1512.00567, §7).

Images if the model has `channels`, else text: [begin] text [end], cut to train.length tokens. See `jaxseq.data.labelled`
for the data. In speeds per token, an example counts as one token.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseq import data
from jaxseq.data import batching, labelled
from jaxseq.errors import UserError
from jaxseq.evaluation.bits_per_byte import Between, token_nats
from jaxseq.train.objectives import _held_out, _task


def loss(
    model: nn.Module, variables: dict[str, Any], batch: dict[str, jax.Array], rng: jax.Array, *, form: Any, train: bool
) -> tuple[jax.Array, dict[str, jax.Array], dict]:
    """Sum over examples of (1 - s) nats of the label + s mean nats of all classes, s = batch["smoothing"], 0 in evaluation.

    Sums: `tokens` (examples), `nats` (of the label alone), `accuracy`. batch: `images` [B, rows, columns, channels], or
    `tokens` and `pos` [B, T]; `labels` int32 and `weights` float32 [B]. The model returns logits [B, classes], or an
    object with these as `classes`.
    """
    inputs = (batch["images"],) if "images" in batch else (batch["tokens"], batch["pos"])
    out, extra, changed = _task.apply(model, variables, *inputs, rng=rng, train=train)
    logits_BV = getattr(out, "classes", out)
    nats_B, log_z_B = token_nats(logits_BV, batch["labels"])
    weighted = functools.partial(_task.masked_sum, batch["weights"])
    examples = jnp.sum(batch["weights"])
    smoothing_B = batch["smoothing"]
    total = weighted((1 - smoothing_B) * nats_B + smoothing_B * (log_z_B - jnp.mean(logits_BV, axis=-1, dtype=log_z_B.dtype)))
    right_B = jnp.argmax(logits_BV, axis=-1) == batch["labels"]
    sums = {"tokens": examples, "nats": weighted(nats_B), "accuracy": weighted(right_B.astype(jnp.float32))}
    return total + extra * examples, sums, changed


def of_images(config: ConfigDict) -> bool:
    return "channels" in config.model


def shapes(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    batch, model = config.train.batch, config.model
    if of_images(config):
        side = config.data.side or model.get("size")
        if not side:
            raise UserError("the size of the images is not known; set data.side")
        inputs = {"images": jax.ShapeDtypeStruct((batch, side, side, model.channels), jnp.float32)}
    else:
        inputs = dict.fromkeys(("tokens", "pos"), jax.ShapeDtypeStruct((batch, config.train.length), jnp.int32))
    numbers = dict.fromkeys(("weights", "smoothing"), jax.ShapeDtypeStruct((batch,), jnp.float32))
    return inputs | {"labels": jax.ShapeDtypeStruct((batch,), jnp.int32)} | numbers


def tokens(config: ConfigDict) -> int:
    return config.train.batch


class Classification(_task.Task):
    """Fills in model.classes (the number of labels) and, for images of one size, data.side."""

    def __init__(self, config):
        self.config = config = config.copy_and_resolve_references()
        if not config.data.path:
            raise UserError("train.objective=classification needs labelled data; set data.path")
        if config.data.stream:
            raise UserError("data.stream=true is for text without labels; leave it out")
        if not 0 <= config.train.smoothing < 1:
            raise UserError(f"train.smoothing={config.train.smoothing} is outside [0, 1); give a fraction such as 0.1")
        self.labelled = self._images() if of_images(config) else self._text()
        count = len(self.labelled.classes)
        if config.model.get("classes") is None:
            with config.unlocked():
                config.model.classes = count
        elif config.model.classes < count:
            raise UserError(
                f"model.classes={config.model.classes}, and {self.labelled.name} has {count}; raise it or leave it empty"
            )
        self.splits = labelled.splits(self.labelled, config.data.validation_every)

    def _images(self):
        model, settings = self.config.model, self.config.data
        found = labelled.images(settings, model.get("size") or settings.side)
        if found.channels != model.channels:
            raise UserError(f"{found.name} has {found.channels} channels, the model {model.channels}; set model.channels")
        with self.config.unlocked():
            settings.side = found.side
        return found

    def _text(self):
        if "classes" not in self.config.model:
            raise UserError(f"model.kind={self.config.model.kind} has no classifier; choose one that has, such as encoder")
        if self.config.train.length < 2:
            raise UserError(f"train.length={self.config.train.length} has no token left for the text; set at least 3")
        self.tokenizer = data.tokenizer(self.config.data)
        more = int(self.config.model.get("masked_head", False) and self.tokenizer.find("[MASK]", "<mask>") is None)
        self.config = _task.with_vocab(self.config, self.tokenizer, more)
        return labelled.text(self.config.data, self._row)

    def _row(self, text: str) -> dict[str, np.ndarray]:
        length, end = self.config.train.length, self.tokenizer.boundary
        begin = self.tokenizer.find("[CLS]", "<s>")
        ids = [end if begin is None else begin, *self.tokenizer.encode(text)[: length - 2], end]
        free = length - len(ids)
        pos_T = np.pad(np.arange(len(ids), dtype=np.int32), (0, free), constant_values=-1)
        return {"tokens": np.pad(np.asarray(ids, np.int32), (0, free)), "pos": pos_T}

    def _smoothed(self, row, random):
        return row | {"smoothing": np.asarray(self.config.train.smoothing, np.float32)}

    @property
    def validates(self) -> bool:
        return len(self.splits["validation"]) > 0

    def damaged(self) -> int:
        return len(self.labelled.damage.messages())

    def batches(self, process_index: int, process_count: int) -> batching.RowBatches:
        identity = {"corpus": self.labelled.fingerprint, "length": self.config.train.length}
        share = process_index, process_count
        return batching.RowBatches(self.splits["train"], identity, self.config, *share, self._smoothed)

    def scored(self, split: str) -> int:
        """How many examples `evaluate` scores: the first eval.documents (0: all), and at most eval.tokens (0: any number)."""
        settings, count = self.config.eval, len(self.splits[split])
        return min(count, settings.documents or count, settings.tokens or count)

    def sizes(self) -> dict[str, dict[str, int | None]]:
        sizes: dict[str, dict[str, int | None]] = {
            split: {"documents": len(part), "tokens": len(part)} for split, part in self.splits.items()
        }
        return sizes | {"validation": sizes["validation"] | {"scored": self.scored("validation")}}

    def evaluate(
        self, model: nn.Module, variables: dict[str, Any], split: str = "validation", *, mesh: Mesh | None = None,
        between: Between = _task.nothing,
    ) -> dict[str, Any]:  # fmt: skip
        """The objective's figures over the first examples, see `scored`, unsmoothed."""
        examples = self.splits[split]
        rows = (examples[i] | {"smoothing": np.zeros((), np.float32)} for i in range(self.scored(split)))
        batch = self.config.eval.batch
        return {"split": split} | _held_out.score(loss, model, variables, rows, batch, "", mesh, between)

    def describe(self, result: dict[str, Any]) -> str:
        return f"{super().describe(result)}, over {result['rows']:,} {'images' if of_images(self.config) else 'texts'}"


task = Classification
