"""Checkpoints of a run: DIR/config.json and DIR/checkpoints/STEP with the items params, optimizer, data and config, and
collections where the model has any (batch_stats).

Orbax writes in the background and commits a step by renaming, so a killed process leaves whole checkpoints only; see
`digests` for what happens to them later. Of damaged ones the newest that is whole is taken. Everything is restored into
an explicit abstract target with shardings: what was saved on eight devices opens on one, and the other way round. A
config here is data: JSON, never evaluated.
"""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

import jaxseq
from jaxseq import paths
from jaxseq.config import from_dict, to_dict
from jaxseq.errors import UserError
from jaxseq.train import digests, locks, tokenizers, workdirs
from jaxseq.train import mesh as meshes
from jaxseq.train.step import Trainer, TrainState, abstract_params

T = TypeVar("T")
FINISHED = "commit_success.txt"  # Orbax's, in a bucket
log = logging.getLogger(__name__)


def folder(workdir: str | os.PathLike) -> Path:
    return paths.absolute(workdir) / "checkpoints"


def steps(workdir: str | os.PathLike) -> list[int]:
    """Steps of the whole checkpoints in a workdir, ascending.

    Orbax gives a checkpoint the name of its step when it is whole, and in a bucket puts a file into it then. It is not asked:
    its managers wait for all processes, and one that comes late, when another has made the folder, would wait for what that one
    does not do.
    """
    where = folder(workdir)
    found = [path for path in where.iterdir() if path.name.isdecimal() and path.is_dir()] if where.is_dir() else []
    return sorted(int(path.name) for path in found if not paths.is_remote(where) or (path / FINISHED).exists())


def saved(workdir: str | os.PathLike) -> list[int]:
    """`steps`, of which there must be one. Raises UserError."""
    if not (known := steps(workdir)):
        raise UserError(f"{workdir} holds no checkpoint; give the --workdir of a run that has saved one")
    return known


def _manager(workdir: str | os.PathLike, arrays=ocp.StandardCheckpointHandler, **options) -> ocp.CheckpointManager:
    handlers: dict[str, Any] = {name: arrays() for name in ("params", "optimizer", "collections")}
    handlers |= {"data": ocp.JsonCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
    options = ocp.CheckpointManagerOptions(**options)
    return ocp.CheckpointManager(folder(workdir), options=options, item_handlers=handlers)


def _writer(workdir: str | os.PathLike, at_once: int | None = None, **options) -> ocp.CheckpointManager:
    """A manager that writes, with digests. at_once: bytes of arrays that it may hold before they are on disk."""

    def arrays():  # compressed copies would stay in memory until they are on disk, and weights hardly compress
        impl = ocp.BasePyTreeCheckpointHandler(save_concurrent_bytes=at_once, use_compression=False)
        return ocp.PyTreeCheckpointHandler(handler_impl=impl)

    def seal() -> None:  # all is written, and does not yet count as a checkpoint
        for draft in _drafts(folder(workdir)) if jax.process_index() == 0 else ():
            digests.write(draft)

    sealing = ocp.options.AsyncOptions(post_finalization_callback=seal)
    return _manager(workdir, arrays, async_options=sealing, **options)


def _drafts(checkpoints: Path) -> list[Path]:
    """Checkpoints that are not finished: Orbax renames one then, and puts a file into one in a bucket."""
    if paths.is_remote(checkpoints):
        return [path for path in checkpoints.iterdir() if path.name.isdigit() and not (path / FINISHED).exists()]
    return [path for path in checkpoints.glob("*.orbax-checkpoint-tmp*") if path.is_dir()]


@contextlib.contextmanager
def _opened(step_folder: Path) -> Iterator[None]:
    """Within it a checkpoint is read. Raises Damaged when it is not what was saved, or cannot be read and has no digests."""
    reason = ""
    if jax.process_index() == 0:
        try:
            digests.check(step_folder)
        except digests.Damaged as error:
            reason = str(error)
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(bool(reason)):
        reason = reason or "so says the first process"
    if reason:
        raise digests.Damaged(reason)
    try:
        yield
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        if digests.has(step_folder):
            raise
        raise digests.Damaged((str(error) or type(error).__name__).splitlines()[0][:200]) from error


def newest(workdir: str | os.PathLike, read: Callable[[int], T], step: int | None = None) -> tuple[int, T, list[int]]:
    """(step, read(step), the damaged steps after it) of the newest checkpoint that can be read, or of `step` alone.

    Each that cannot is told in a line. Raises UserError that names them all when none is left.
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
                log.warning("%s: the checkpoint of step %d is damaged (%s), taking an older one", workdir, number, error)
    others = [str(number) for number in known if number not in damaged]
    mend = f"--step={others[-1]} may be whole" if others else "copy a whole one there, or begin anew in another folder"
    told = "; ".join(f"step {number}: {reason}" for number, reason in damaged.items())
    raise UserError(f"{folder(workdir)} holds no checkpoint that is whole ({told}); {mend}")


class Checkpoints:
    """The checkpoints of one run, written in the background; use as a context manager."""

    def __init__(self, workdir: str | os.PathLike, keep: int):
        self.workdir = workdir
        self.manager = _writer(workdir, max_to_keep=max(keep, 1), cleanup_tmp_directories=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self.manager.close()

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def reached(self, step: int) -> bool:
        """Whether the newest checkpoint is of `step`, or later, and whole."""
        latest = self.latest()
        if latest is None or latest < step:
            return False
        with contextlib.suppress(digests.Damaged), _opened(folder(self.workdir) / str(latest)):
            return True
        return False

    def save(self, state: TrainState, data: dict[str, Any], config) -> None:
        """Starts writing `state`, once the previous write is done. The last step must have been judged good: a bad state is
        never saved. data: JSON-able, what else a run goes on from."""
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves((state.variables, state.optimizer)))
        if not paths.is_remote(self.manager.directory) and shutil.disk_usage(self.manager.directory).free < needed:
            # Better than to let it fail in the middle: the threads below print a traceback each.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.manager.directory))
        self.manager.save(
            step,
            args=ocp.args.Composite(
                optimizer=ocp.args.PyTreeSave(state.optimizer),
                data=ocp.args.JsonSave({"step": step, **data}),
                config=ocp.args.JsonSave(to_dict(config)),
                **_variables(ocp.args.PyTreeSave, state.params, state.collections),
            ),
        )

    def wait(self) -> None:
        """Returns when the last save is on disk; raises what went wrong with it."""
        self.manager.wait_until_finished()

    def resume(self, trainer: Trainer) -> tuple[TrainState, dict[str, Any]] | None:
        """(state, what `save` was given as data) of the newest checkpoint that is whole; None where there is none at all.

        Damaged ones after it are put aside under another name: the run will come to these steps again.
        """
        if self.latest() is None:
            return None
        _, found, damaged = newest(self.workdir, lambda step: self.restore(trainer, step))
        for step in damaged if jax.process_index() == 0 else ():
            here = self.manager.directory / str(step)
            aside = next(path for n in range(1000) if not (path := here.with_name(f"{step}.damaged{n or ''}")).exists())
            here.rename(aside)
            log.warning("%s is kept as %s; remove it when you have no use for it", here, aside.name)
        if damaged:
            self.manager.reload()
        return found

    def restore(self, trainer: Trainer, step: int) -> tuple[TrainState, dict[str, Any]]:
        """(state, data) of a step, laid out as `trainer` says whatever it was saved from."""
        abstract = trainer.abstract
        with _manager(self.workdir, create=False) as manager:
            saved = set(manager.item_metadata(step).keys())
            if not {"optimizer", "data"} <= saved:
                raise UserError(
                    f"{manager.directory} holds weights and no optimiser state; train from them in a new --workdir "
                    f"with --config.train.init={manager.directory.parent}"
                )
            items = manager.restore(
                step,
                args=ocp.args.Composite(
                    optimizer=ocp.args.StandardRestore(abstract.optimizer),
                    data=ocp.args.JsonRestore(),
                    **_variables(ocp.args.StandardRestore, abstract.params, abstract.collections),
                ),
            )
        fresh = jax.device_put((jax.numpy.int32(step), jax.numpy.asarray(True)), abstract.step.sharding)
        variables = items["params"], items["optimizer"], items.get("collections", {})
        return TrainState(*fresh, *variables), items["data"]


def _variables(make, params: Any, collections: dict) -> dict[str, Any]:
    """Orbax's arguments for the items of a model's variables: no item for collections that are not there."""
    return {"params": make(params)} | ({"collections": make(collections)} if collections else {})


def save_params(workdir: str | os.PathLike, config, params: Any, step: int = 0) -> None:
    """A workdir of weights alone, such as an imported model: `load`, evaluation and `train.init` open it.

    params: of a model with more collections all of them, {"params": …, "batch_stats": …}.
    """
    workdirs.check_path(workdir)
    variables = params if "params" in params else {"params": params}
    collections = {name: value for name, value in variables.items() if name != "params"}
    items = _variables(ocp.args.PyTreeSave, variables["params"], collections)
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(variables))
    with locks.claimed(paths.of(workdir)):
        workdirs.check_config(workdir, config, trained=bool(steps(workdir)))
        config = tokenizers.kept(config, workdir)
        workdirs.write_config(workdir, config)
        with _writer(workdir, at_once=largest + 1) as manager:
            manager.save(step, args=ocp.args.Composite(config=ocp.args.JsonSave(to_dict(config)), **items))


def restore_variables(workdir: str | os.PathLike, abstract: dict, step: int | None = None, heads: Iterable[str] = ()) -> dict:
    """A workdir's {"params": …, "batch_stats": … if any} in the shardings of `abstract` (ShapeDtypeStructs).

    heads: modules at the top of params that may be missing on either side (a fine-tuned model's new classifier, the
    language model's head that it does without). A missing one is missing in what is returned too.

    Raises UserError when there is no such checkpoint, or naming the leaves whose shapes are not those of `abstract`.
    """
    return newest(workdir, lambda number: _restore_variables(workdir, abstract, number, heads), step)[1]


def _restore_variables(workdir: str | os.PathLike, abstract: dict, step: int, heads: Iterable[str] = ()) -> dict:
    with _manager(workdir, create=False) as manager:
        metadata = manager.item_metadata(step)
        items = {"params": dict(metadata["params"])} | dict(metadata.get("collections") or {})
        free = items["params"].keys() ^ abstract["params"].keys()
        free &= set(heads)
        for name in sorted(free):
            log.info("%s: %s", workdir, f"{name} is left out" if name in items["params"] else f"{name} is new")
        abstract = abstract | {"params": {name: x for name, x in abstract["params"].items() if name not in free}}
        saved = _shapes({name: items["params"][name] for name in items["params"] if name not in free})
        saved |= _shapes({name: items[name] for name in items if name != "params"})
        wanted = _shapes(abstract["params"]) | _shapes({name: abstract[name] for name in abstract if name != "params"})
        wrong = [
            f"{name} is {saved.get(name, 'missing')}, wanted {wanted.get(name, 'none')}"
            for name in sorted(saved.keys() | wanted.keys())
            if saved.get(name) != wanted.get(name)
        ]
        if wrong:
            more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
            raise UserError(
                f"the weights in {workdir} do not fit this model: {'; '.join(wrong[:8])}{more}; "
                "give the config.model that they were trained with"
            )
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        unread = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one)  # noqa: E731
        left = {name: jax.tree.map(unread, items["params"][name]) for name in free if name in items["params"]}
        collections = {name: value for name, value in abstract.items() if name != "params"}
        args = _variables(ocp.args.StandardRestore, abstract["params"] | left, collections)
        found = manager.restore(step, args=ocp.args.Composite(**args))
        params = {name: value for name, value in found["params"].items() if name not in left}
        return {"params": params} | dict(found.get("collections") or {})


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}


def path_name(path: Iterable) -> str:
    """A pytree path as 'a/b/c'."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def load(workdir: str | os.PathLike, step: int | None = None, devices=None):
    """(model, params, config) of a workdir's checkpoint, the latest by default; see `load_variables`.

    params: of a model with more collections all of them, {"params": …, "batch_stats": …}.
    """
    model, variables, config = load_variables(workdir, step, devices)
    return model, variables["params"] if variables.keys() == {"params"} else variables, config


def load_variables(workdir: str | os.PathLike, step: int | None = None, devices=None):
    """(model, variables, config) of a workdir's checkpoint; variables, {"params": …} and what else the model has
    ("batch_stats"), are what `model.apply` takes.

    The parameters lie on the first device, or spread over `devices` by the config's logical axes with everything on
    fsdp. Raises UserError when there is no such workdir or checkpoint, or its config.json is damaged.
    """
    workdirs.check_path(workdir)
    workdir = paths.of(workdir)
    if workdirs.saved_config(workdir) is None:
        raise UserError(f"{workdir} is no workdir of a run: it has no config.json; give the --workdir of a training run")

    def read(number: int):
        with _manager(workdir, create=False) as manager:
            if "config" not in set(manager.item_metadata(number).keys()):
                raise UserError(f"{folder(workdir)}/{number} has no config; choose another checkpoint or workdir")
            config = from_dict(manager.restore(number, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"])
        config = tokenizers.located(config, workdir)
        model = jaxseq.build(config)
        sizes = dict.fromkeys(meshes.AXES, 1) | {"fsdp": -1}
        mesh = meshes.make_mesh(sizes, devices or jax.local_devices()[:1])
        return model, _restore_variables(workdir, abstract_params(model.boxed(), mesh), number), config

    return newest(workdir, read, step)[1]
