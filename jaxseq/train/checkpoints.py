"""Checkpoints of a run: DIR/config.json and DIR/checkpoints/STEP with the items params, optimizer, data, config and, if the
model has any, collections (batch_stats).

If some parameters are frozen, params holds the others; the frozen ones are written once, to DIR/frozen.

Orbax writes in the background and commits a step by a rename, so a killed process leaves complete checkpoints only. Later
damage is detected by `digests`; a damaged checkpoint is skipped, and the newest intact one is used. Arrays are restored with
the shardings of the current mesh: a checkpoint saved on eight devices opens on one, and the reverse. Configs are stored as
JSON and are never executed.
"""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from jaxseq import paths
from jaxseq.config import to_dict
from jaxseq.errors import UserError, interrupted
from jaxseq.train import digests
from jaxseq.train.step import Trainer, TrainState

T = TypeVar("T")
FINISHED = "commit_success.txt"  # Orbax's, in a bucket
COPY = 64 << 20  # size in bytes up to which a state on the CPU is copied, so that training goes on
log = logging.getLogger(__name__)


def folder(workdir: str | os.PathLike) -> Path:
    return paths.absolute(workdir) / "checkpoints"


def steps(workdir: str | os.PathLike) -> list[int]:
    """Steps of the complete checkpoints in a workdir, ascending.

    A complete checkpoint is a folder whose name is its step; in a bucket it also holds the file FINISHED. The folder is listed
    without an Orbax manager: managers wait for all processes, and would wait forever if some found the folder and others not.
    """
    where = folder(workdir)
    found = [path for path in where.iterdir() if path.name.isdecimal() and path.is_dir()] if where.is_dir() else []
    return sorted(int(path.name) for path in found if not paths.is_remote(where) or (path / FINISHED).exists())


def saved(workdir: str | os.PathLike) -> list[int]:
    """`steps`. Raises UserError if there are none."""
    if not (known := steps(workdir)):
        raise UserError(f"{workdir} holds no checkpoint; give the --workdir of a run that has saved one")
    return known


def manager(
    workdir: str | os.PathLike, arrays: Callable[[], Any] = ocp.StandardCheckpointHandler, **options: Any
) -> ocp.CheckpointManager:
    """Orbax's manager of a workdir's checkpoints. arrays: makes the handler of an item of arrays."""
    handlers: dict[str, Any] = {name: arrays() for name in ("params", "optimizer", "collections")}
    handlers |= {"data": ocp.JsonCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
    chosen = ocp.CheckpointManagerOptions(**options)
    return ocp.CheckpointManager(folder(workdir), options=chosen, item_handlers=handlers)


def writer(
    workdir: str | os.PathLike, at_once: int | None = None, compressed: bool = False, **options: Any
) -> ocp.CheckpointManager:  # fmt: skip
    """A manager that writes checkpoints and their digests. at_once: maximum bytes of arrays held until written. compressed:
    for weights with many zeros; others hardly compress, and the copies would stay in memory until written."""

    def arrays():
        impl = ocp.BasePyTreeCheckpointHandler(save_concurrent_bytes=at_once, use_compression=compressed)
        return ocp.PyTreeCheckpointHandler(handler_impl=impl)

    def seal() -> None:  # called when all files are written, before the checkpoint is committed
        for draft in _drafts(folder(workdir)) if jax.process_index() == 0 else ():
            digests.write(draft)

    sealing = ocp.options.AsyncOptions(post_finalization_callback=seal)
    return manager(workdir, arrays, async_options=sealing, **options)


def _drafts(checkpoints: Path) -> list[Path]:
    """Checkpoints that are not committed. Orbax commits one by a rename, in a bucket by the file FINISHED."""
    if paths.is_remote(checkpoints):
        return [path for path in checkpoints.iterdir() if path.name.isdigit() and not (path / FINISHED).exists()]
    return [path for path in checkpoints.glob("*.orbax-checkpoint-tmp*") if path.is_dir()]


@contextlib.contextmanager
def _opened(step_folder: Path) -> Iterator[None]:
    """The context for reading a checkpoint. Raises Damaged if a digest differs, or if there are none and reading fails."""
    reason = ""
    if jax.process_index() == 0:
        try:
            digests.check(step_folder)
        except digests.Damaged as error:
            reason = str(error)
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(bool(reason)):
        reason = reason or "the first process found it damaged"
    if reason:
        raise digests.Damaged(reason)
    try:
        yield
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        if digests.has(step_folder) or interrupted(error):
            raise
        raise digests.Damaged((str(error) or type(error).__name__).splitlines()[0][:200]) from error


def newest(workdir: str | os.PathLike, read: Callable[[int], T], step: int | None = None) -> tuple[int, T, list[int]]:
    """(step, read(step), damaged later steps) of the newest intact checkpoint, or of checkpoint `step` if given.

    Logs a warning for each damaged checkpoint. Raises UserError that names all of them if no checkpoint is intact.
    """
    known = saved(workdir)
    if step is not None and step not in known:
        raise UserError(f"{workdir} holds no checkpoint of step {step}; choose one of {', '.join(map(str, known))}")
    damaged: dict[int, str] = {}
    for number in reversed(known) if step is None else (step,):
        try:
            with _opened(folder(workdir) / str(number)):
                return number, read(number), list(damaged)
        except digests.Damaged as error:
            damaged[number] = str(error)
            if number != known[0] and step is None:
                log.warning("%s: the checkpoint of step %d is damaged (%s), using an older one", workdir, number, error)
    others = [str(number) for number in known if number not in damaged]
    mend = f"try --step={others[-1]}" if others else "restore a copy of one, or start again in another folder"
    told = "; ".join(f"step {number}: {reason}" for number, reason in damaged.items())
    raise UserError(f"{folder(workdir)} has no intact checkpoint ({told}); {mend}")


def copied_at_once(abstract: TrainState) -> int | None:
    """`at_once` of Checkpoints for states of these shapes and shardings: all, unless the state is large and on the CPU.

    On the CPU the copy would take memory that the steps need. Other devices do not share memory with the host.
    """
    leaves = jax.tree.leaves(abstract)
    on_cpu = all(device.platform == "cpu" for device in leaves[0].sharding.device_set)
    if not on_cpu or sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) <= COPY:
        return None
    return max(COPY, *(leaf.size * leaf.dtype.itemsize + 1 for leaf in leaves))


class Checkpoints:
    """The checkpoints of one run; use as a context manager.

    at_once: None copies the whole state, and training goes on while the copy is written. Otherwise the number of bytes to copy at
    a time, more than the size of the largest array; `save` then returns when everything is on disk.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int, at_once: int | None = None):
        self.workdir, self.at_once = workdir, at_once
        self.manager = writer(workdir, at_once, max_to_keep=max(keep, 1), cleanup_tmp_directories=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self.manager.close()

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def reached(self, step: int) -> bool:
        """Whether the newest checkpoint is intact and of `step` or later."""
        latest = self.latest()
        if latest is None or latest < step:
            return False
        with contextlib.suppress(digests.Damaged), _opened(folder(self.workdir) / str(latest)):
            return True
        return False

    def save(self, state: TrainState, data: dict[str, Any], config: ConfigDict) -> None:
        """Waits for the previous write, then writes `state`, the result of a good step; in the background if `at_once` is None.

        data: JSON data that a resumed run needs besides the state.
        """
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.frozen, state.collections, state.optimizer)))
        if not paths.is_remote(self.manager.directory) and shutil.disk_usage(self.manager.directory).free < needed:
            # Checked here, because on a full disk each of Orbax's threads prints a traceback.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.manager.directory))
        self.manager.save(
            step,
            args=ocp.args.Composite(
                optimizer=ocp.args.PyTreeSave(state.optimizer),
                data=ocp.args.JsonSave({"step": step, **data}),
                config=ocp.args.JsonSave(to_dict(config)),
                **variable_items(ocp.args.PyTreeSave, state.params, state.collections),
            ),
        )
        if self.at_once is not None:
            self.wait()

    def wait(self) -> None:
        """Returns when the last save is on disk; raises its error if it failed."""
        self.manager.wait_until_finished()

    def resume(self, trainer: Trainer) -> tuple[TrainState, dict[str, Any]] | None:
        """(state, data as given to `save`) of the newest intact checkpoint; None if there are no checkpoints.

        Later damaged checkpoints are renamed, because the run will save these steps again.
        """
        if self.latest() is None:
            return None
        _, found, damaged = newest(self.workdir, lambda step: self.restore(trainer, step))
        for step in damaged if jax.process_index() == 0 else ():
            here = self.manager.directory / str(step)
            aside = next(path for n in range(1000) if not (path := here.with_name(f"{step}.damaged{n or ''}")).exists())
            here.rename(aside)
            log.warning("%s was renamed to %s; delete it if you do not need it", here, aside.name)
        if damaged:
            self.manager.reload()
        return found

    def restore(self, trainer: Trainer, step: int) -> tuple[TrainState, dict[str, Any]]:
        """(state, data) of a step, with the shardings of `trainer`."""
        abstract = trainer.abstract
        with manager(self.workdir, create=False) as opened:
            saved = set(opened.item_metadata(step).keys())
            if not {"optimizer", "data"} <= saved:
                raise UserError(
                    f"{opened.directory} holds weights without optimiser state; to train from them use a new --workdir "
                    f"and --config.train.init={opened.directory.parent}"
                )
            items = opened.restore(
                step,
                args=ocp.args.Composite(
                    optimizer=ocp.args.StandardRestore(abstract.optimizer),
                    data=ocp.args.JsonRestore(),
                    **variable_items(ocp.args.StandardRestore, abstract.params, abstract.collections),
                ),
            )
        frozen = restore_frozen(self.workdir, abstract.frozen)
        count, ok = jax.device_put((jax.numpy.int32(step), jax.numpy.asarray(True)), abstract.step.sharding)
        collections = items.get("collections", {})
        state = TrainState(count, ok, items["params"], items["optimizer"], collections, frozen, trainer.constants())
        return state, items["data"]


def variable_items(make: Callable[[Any], Any], params: Any, collections: dict) -> dict[str, Any]:
    """Orbax's arguments for the items of a model's variables; no item for collections if there are none."""
    return {"params": make(params)} | ({"collections": make(collections)} if collections else {})


def _frozen(workdir: str | os.PathLike) -> Path:
    return paths.absolute(workdir) / "frozen"


def save_frozen(workdir: str | os.PathLike, frozen: Any) -> None:
    """Writes the parameters of a run that are not trained, if any."""
    if frozen is None:
        return
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(frozen))
    with writer(_frozen(workdir), at_once=largest + 1) as opened:
        if opened.latest_step() is None:
            opened.save(0, args=ocp.args.Composite(**variable_items(ocp.args.PyTreeSave, frozen, {})))


def has_frozen(workdir: str | os.PathLike) -> bool:
    return folder(_frozen(workdir)).is_dir()


def restore_frozen(workdir: str | os.PathLike, abstract: Any) -> Any:
    """What `save_frozen` wrote, with the shardings of `abstract`; None if that is None. Raises UserError if it is damaged."""
    if abstract is None:
        return None

    def read(step: int) -> Any:
        with manager(_frozen(workdir), create=False) as opened:
            items = variable_items(ocp.args.StandardRestore, abstract, {})
            return opened.restore(step, args=ocp.args.Composite(**items))["params"]

    return newest(_frozen(workdir), read)[1]
