"""What a teacher knows, written to disk once: texts that it writes, and its logits on the training data."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxseq import data, paths, registry
from jaxseq.config import from_dict, to_dict
from jaxseq.errors import UserError
from jaxseq.generation import generate
from jaxseq.models.lm import LM
from jaxseq.train import load_variables
from jaxseq.train.objectives import _cached, next_token

ROWS = 8  # texts that are generated together
Say = Callable[[str], None]
log = logging.getLogger(__name__)


def texts(
    workdir: str | os.PathLike, out: str | os.PathLike, *, documents: int, prompt: int = 32, tokens: int = 128,
    temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0, overrides: dict[str, Any] | None = None,
    say: Say = log.info,
) -> dict[str, Any]:  # fmt: skip
    """Writes texts of the teacher as JSON lines, for sequence-level distillation (Kim & Rush 2016, arXiv:1606.07947, §3.2): a
    student that is trained on them learns the teacher's distribution of whole texts.

    Each text is a prompt, `prompt` tokens from a random place of the training data, and the teacher's continuation of at most
    `tokens` tokens. temperature 0 takes the most likely token each time, an approximation of the most likely text, which the
    paper finds by beam search; 1 samples from the teacher's distribution. The same arguments give the same file. overrides:
    config fields data.….

    Raises UserError for a workdir that is not that of a language model, and for too few training data.
    """
    target = paths.of(out)
    if target.exists():
        raise UserError(f"{out} exists; choose another file, or remove it")
    if min(documents, prompt, tokens) < 1:
        raise UserError(f"{documents} texts of {prompt} and {tokens} tokens: give 1 or more of each")
    model, params, config = _teacher(workdir, overrides)
    tokenizer = data.tokenizer(config.data)
    prompts = list(_prompts(data.corpus(config.data, tokenizer).train, documents, prompt, seed))
    lines = []
    for first in range(0, documents, ROWS):
        some = prompts[first : first + ROWS]
        found = generate(
            model, params, some, max_tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p,
            seeds=range(seed + first, seed + first + len(some)), tokenizer=tokenizer, form=config.train.form, rows=ROWS,
        )  # fmt: skip
        for ids, new in zip(some, found, strict=True):
            lines.append(json.dumps({config.data.field: tokenizer.decode([*ids[1:], *new])}))
        say(f"{len(lines)} of {documents} texts")
    paths.write(target, "".join(f"{line}\n" for line in lines))
    return {"path": str(out), "documents": documents, "teacher": str(workdir), "seed": seed}


def _prompts(documents: data.Documents, count: int, length: int, seed: int) -> Iterator[list[int]]:
    """`count` random pieces of `length` tokens, each after the first id of a document; every piece is as likely as any other."""
    pieces = np.maximum(np.asarray(documents.lengths) - length, 0)  # the first id of a document is not counted
    if not pieces.sum():
        raise UserError(f"no training document has {length} tokens; give more text, or lower the length of the prompts")
    ends = np.cumsum(pieces)
    for place in np.random.default_rng(seed).integers(0, ends[-1], count).tolist():
        i = int(np.searchsorted(ends, place, side="right"))
        start = place - int(ends[i] - pieces[i])
        yield [documents.start, *documents.piece(i, start, start + length).tolist()]


def logits(
    workdir: str | os.PathLike, out: str | os.PathLike, *, steps: int, top_k: int = 64, overrides: dict[str, Any] | None = None,
    say: Say = log.info,
) -> dict[str, Any]:  # fmt: skip
    """Writes the teacher's `top_k` largest logits for the first `steps` batches of training data to the folder `out`, for
    train.distill_cache. overrides: config fields data.… and train.…, those of the student's run.

    Raises UserError for a workdir that is not that of a language model.
    """
    model, params, config = _teacher(workdir, overrides)
    if steps < 1 or not 1 <= top_k <= model.vocab:
        raise UserError(f"{steps} steps and {top_k} logits: give 1 or more of each, at most {model.vocab} logits")
    train, teacher = config.train, _cached.digest(workdir)
    batches = registry.load("train.objectives", "next_token").task(config).batches(0, 1)
    header = _cached.Header(teacher, model.vocab, steps * train.batch, top_k, _cached.sequence(batches))
    model.check_length(train.length)
    folder = paths.of(out)
    paths.make_folder(folder, str(out))
    shape = header.rows, train.length, top_k
    create = np.lib.format.open_memmap
    files = [
        create(folder / name, "w+", dtype, shape)
        for name, dtype in zip((_cached.IDS, _cached.LOGITS), _cached.ARRAYS.values(), strict=True)
    ]

    @jax.jit
    def largest(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        variables = {"params": params}
        x_BTD, _, _ = next_token.hidden(model, variables, batch, jax.random.key(0), form=train.form, train=False)
        rows = lambda x_TD: jax.lax.top_k(next_token.logits(model, variables, x_TD[None])[0], top_k)  # noqa: E731
        values_BTK, ids_BTK = jax.lax.map(rows, x_BTD)  # one row at a time: logits of all would need much memory
        return ids_BTK, values_BTK.astype(jnp.float32)

    for step in range(steps):
        here = slice(step * train.batch, (step + 1) * train.batch)
        for file, array in zip(files, largest(params, next(batches)), strict=True):
            file[here] = array
        say(f"step {step + 1} of {steps}")
    for file in files:
        file.flush()
    _cached.write_header(folder, header)
    size = sum(file.nbytes for file in files)
    return {"path": str(out), "rows": header.rows, "top_k": top_k, "bytes": size, "teacher": str(workdir), "digest": teacher}


def _teacher(workdir: str | os.PathLike, overrides: dict[str, Any] | None) -> tuple[LM, Any, ConfigDict]:
    """(model, params, config with the overrides). Raises UserError unless it is a language model."""
    model, variables, config = load_variables(workdir)
    if not isinstance(model, LM):
        raise UserError(f"{workdir} holds a model of kind {config.model.kind}; only causal language models teach")
    plain = {"train.objective": "next_token", "train.distill_teacher": None, "train.init": None, "train.init_layers": ""}
    return model, variables["params"], from_dict(to_dict(config), **plain | (overrides or {}))
