"""The folder of a run: whether it can be one, who trains in it, and DIR/config.json."""

import contextlib
import datetime
import fcntl
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxseq import schemas
from jaxseq.config import from_file, to_dict
from jaxseq.data import tokenizer_files
from jaxseq.errors import UserError
from jaxseq.plain_files import json_text, read_object
from jaxseq.train import tokenizers

# What may change between a run and its continuation: how long, how it is watched, where it runs, whether it may go on past what
# is bad; not what it computes of what is good.
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
    "train.form",
    "model.remat",
    "data.prefetch",
    "data.cache",
    "data.skip_records",
    "data.workers",
    "mesh.",
    "eval.",
)
LOCK = ".lock"
log = logging.getLogger(__name__)


def check_path(workdir: str | os.PathLike) -> None:
    """Raises UserError for a path that checkpoints could not be read back from."""
    name = os.fspath(workdir)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"--workdir={ascii(name)} is not UTF-8, and checkpoints could not be written there; rename it") from None
    if "\0" in name:
        raise UserError(f"--workdir={name!r} holds a NUL character; choose another name")
    if scheme := re.match(r"([a-z][a-z0-9+.-]*)://", name):
        raise UserError(f"--workdir={name}: {scheme[1]}:// is not supported; name a folder of this machine, mounted or local")
    # Orbax looks files up by patterns, in which these stand for others.
    if wild := sorted(set(str(Path(name).absolute())) & set("*?[]\\")):
        raise UserError(f"--workdir={name} holds {' '.join(wild)} in its path, which checkpoints cannot be read with; rename it")


@contextlib.contextmanager
def claimed(workdir: Path) -> Iterator[None]:
    """Makes the folder, and keeps every other training out of it until the end, or until this process is dead.

    Folders that were made and are still empty at the end are removed again. Of several processes the first alone claims
    it. Raises UserError when the folder cannot be made or written, or another training has it.
    """
    if jax.process_index():
        yield
        return
    made = [folder for folder in (workdir / "checkpoints", workdir, *workdir.absolute().parents) if not folder.exists()]
    _make(workdir)
    lock = _lock(workdir)
    try:
        yield
    finally:
        if lock is not None:
            (workdir / LOCK).unlink(missing_ok=True)  # before it is let go, so that nobody holds a removed one
            os.close(lock)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _make(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--workdir={workdir} is a file, or lies below one; name a folder") from None
    except PermissionError:
        raise UserError(f"--workdir={workdir} cannot be made here; choose a folder that you may write") from None
    if not os.access(workdir, os.W_OK):
        raise UserError(f"--workdir={workdir} cannot be written; choose a folder that you may write")


def _lock(workdir: Path) -> int | None:
    """The open lock file, which holds the lock as long as it is open; None where the file system has no locks."""
    path = workdir / LOCK
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = " ".join(os.read(lock, 500).decode("utf-8", "replace").split()) or "unknown"
            os.close(lock)
            raise UserError(
                f"another training runs in {workdir} ({owner}); wait for it, stop it, or choose another --workdir"
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): see to it that no other training runs there", workdir, error.strerror)
            os.close(lock)
            return None
        if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
            break
        os.close(lock)  # its owner removed it in between
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    os.truncate(lock, 0)
    os.write(lock, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode())
    return lock


def flat(data: dict, prefix: str = "") -> dict[str, Any]:
    """Nested dict as {dotted key: leaf}."""
    leaves: dict[str, Any] = {}
    for key, value in data.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def differing(old: dict, new: dict) -> list[str]:
    """Dotted keys whose values differ between two configs given as JSON data."""
    old, new = flat(old), flat(new)
    missing = object()
    return sorted(key for key in old.keys() | new.keys() if old.get(key, missing) != new.get(key, missing))


def saved_config(workdir: str | os.PathLike):
    """The config of the run in a workdir, with the defaults of fields that are newer than it; None where there is none.

    Raises UserError for a config.json that is damaged.
    """
    path = Path(workdir) / "config.json"
    return tokenizers.located(from_file(path), workdir) if path.exists() else None


def check_config(workdir: str | os.PathLike, config, trained: bool) -> None:
    """Raises UserError when a workdir that was trained in belongs to a run of another config."""
    saved = saved_config(workdir)
    keys = [] if saved is None else differing(to_dict(saved), to_dict(config))
    if saved is not None and tokenizer_files.same(saved.data.tokenizer, config.data.tokenizer):  # wherever its file lies now
        keys = [key for key in keys if key != "data.tokenizer"]
    harmful = [key for key in keys if not key.startswith(HARMLESS)]
    if harmful and trained:
        raise UserError(
            f"{workdir} holds checkpoints of another config (differing: {', '.join(harmful)}); "
            "choose another --workdir, or give the values that it was started with"
        )
    for key in keys:
        log.info("continuing %s with another %s", workdir, key)


def write_config(workdir: str | os.PathLike, config) -> None:
    """Writes DIR/config.json in one move. It goes on to tell the schema of the version that began the run.

    Raises UserError where one is there and damaged: what it tells is not written over.
    """
    if jax.process_index():
        return
    path = Path(workdir) / "config.json"
    begun = schemas.begun(read_object(path)) if path.exists() else schemas.SCHEMA
    data = to_dict(config) | ({schemas.BEGUN: begun} if begun != schemas.SCHEMA else {})
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json_text(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    draft.replace(path)
