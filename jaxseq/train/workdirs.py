"""The folder of a run: checks of its path, and DIR/config.json."""

import logging
import os
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxseq import paths, schemas
from jaxseq.config import from_file, to_dict
from jaxseq.data import tokenizer_files
from jaxseq.errors import UserError
from jaxseq.plain_files import json_text, read_object
from jaxseq.train import tokenizers

# Fields that may change when a run is resumed: its length, logging, devices, and what it does with bad steps and records. Fields
# that change the result of a good step may not.
HARMLESS = (
    "train.steps",
    "train.decay_steps",
    "train.log_every",
    "train.logger",
    "train.checkpoint_every",
    "train.keep",
    "train.eval_every",
    "train.skip",
    "train.rewind",
    "train.spike",
    "train.init",
    "train.init_layers",
    "train.distill_teacher",
    "train.distill_cache",
    "train.form",
    "model.remat",
    "data.prefetch",
    "data.cache",
    "data.skip_records",
    "data.workers",
    "mesh.",
    "eval.",
)
log = logging.getLogger(__name__)


def check_path(workdir: str | os.PathLike) -> None:
    """Raises UserError for a path from which checkpoints could not be read."""
    name = os.fspath(workdir)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"--workdir={ascii(name)} is not UTF-8, so checkpoints cannot be written there; rename it") from None
    if "\0" in name:
        raise UserError(f"--workdir={name!r} contains a NUL character; choose another name")
    path = paths.absolute(paths.of(name, f"--workdir={name}"))
    # Orbax finds files by patterns, in which these characters are wildcards.
    if wild := sorted(set(str(path)) & set("*?[]\\")):
        raise UserError(f"--workdir={name} has {' '.join(wild)} in its path, so checkpoints cannot be read there; rename it")
    if paths.is_remote(path):
        paths.check_bucket(path)


def flat(data: dict, prefix: str = "") -> dict[str, Any]:
    """Nested dict as {dotted key: leaf}."""
    leaves: dict[str, Any] = {}
    for key, value in data.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def differing(old: dict, new: dict) -> list[str]:
    """Dotted keys whose values differ between two configs, as JSON data."""
    old, new = flat(old), flat(new)
    missing = object()
    return sorted(key for key in old.keys() | new.keys() if old.get(key, missing) != new.get(key, missing))


def saved_config(workdir: str | os.PathLike) -> ConfigDict | None:
    """The config of the run in a workdir, with defaults for fields that it lacks; None if there is none.

    Raises UserError for a damaged config.json.
    """
    path = paths.of(workdir) / "config.json"
    return tokenizers.located(from_file(path), workdir) if path.exists() else None


def check_config(workdir: str | os.PathLike, config: ConfigDict, trained: bool) -> None:
    """Raises UserError if the workdir has checkpoints (`trained`) of a config that differs in more than HARMLESS fields."""
    saved = saved_config(workdir)
    keys = [] if saved is None else differing(to_dict(saved), to_dict(config))
    if saved is not None and tokenizer_files.same(saved.data.tokenizer, config.data.tokenizer):  # even if its file has moved
        keys = [key for key in keys if key != "data.tokenizer"]
    harmful = [key for key in keys if not key.startswith(HARMLESS)]
    if harmful and trained:
        raise UserError(
            f"{workdir} holds checkpoints of another config (differing: {', '.join(harmful)}); "
            "choose another --workdir, or use the values that it was started with"
        )
    for key in keys:
        log.info("continuing %s with another %s", workdir, key)


def write_config(workdir: str | os.PathLike, config: ConfigDict) -> None:
    """Writes DIR/config.json atomically, keeping the schema number of the version that started the run.

    Raises UserError if there is a damaged one, which is not overwritten.
    """
    if jax.process_index():
        return
    path = paths.of(workdir) / "config.json"
    begun = schemas.begun(read_object(path)) if path.exists() else schemas.SCHEMA
    data = to_dict(config) | ({schemas.BEGUN: begun} if begun != schemas.SCHEMA else {})
    paths.write(path, json_text(data, indent=1, sort_keys=True) + "\n")
