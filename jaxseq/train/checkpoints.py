"""Checkpoints of a run: DIR/config.json and DIR/checkpoints/STEP with the items params, optimizer, data and config.

Orbax writes in the background and commits a step by renaming, so a killed process leaves whole checkpoints only.
Everything is restored into an explicit abstract target with shardings: what was saved on eight devices opens on one,
and the other way round. A config here is data: JSON, never evaluated.
"""

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

import jaxseq
from jaxseq.config import from_dict, to_dict
from jaxseq.errors import UserError
from jaxseq.train import mesh as meshes
from jaxseq.train.step import Trainer, TrainState, abstract_params

# What may change between a run and its continuation: how long, how it is watched, where it runs; not what it computes.
HARMLESS = (
    "train.steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep",
    "train.eval_every",
    "train.init",
    "train.form",
    "model.remat",
    "data.prefetch",
    "data.workers",
    "mesh.",
    "eval.",
)
log = logging.getLogger(__name__)


def folder(workdir: str | os.PathLike) -> Path:
    return Path(workdir).absolute() / "checkpoints"


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


def write_config(workdir: str | os.PathLike, config) -> None:
    """Writes DIR/config.json in one move. Raises UserError when the workdir belongs to a run of another config."""
    path = Path(workdir) / "config.json"
    data = to_dict(config)
    if path.exists():
        keys = differing(_read_json(path), data)
        harmful = [key for key in keys if not key.startswith(HARMLESS)]
        if harmful and steps(workdir):
            raise UserError(
                f"{workdir} holds checkpoints of another config (differing: {', '.join(harmful)}); "
                "choose another --workdir, or give the values that it was started with"
            )
        for key in keys:
            log.info("continuing %s with another %s", workdir, key)
    if jax.process_index():
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
    draft.replace(path)


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error.msg}, line {error.lineno}); restore it or choose another workdir") from None


def steps(workdir: str | os.PathLike) -> list[int]:
    """Steps of the whole checkpoints in a workdir, ascending."""
    if not folder(workdir).is_dir():
        return []
    with _manager(workdir, create=False) as manager:
        return sorted(manager.all_steps())


def _manager(workdir: str | os.PathLike, **options) -> ocp.CheckpointManager:
    handlers = {"params": ocp.StandardCheckpointHandler(), "optimizer": ocp.StandardCheckpointHandler()}
    handlers |= {"data": ocp.JsonCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
    options = ocp.CheckpointManagerOptions(**options)
    return ocp.CheckpointManager(folder(workdir), options=options, item_handlers=handlers)


class Checkpoints:
    """The checkpoints of one run, written in the background; use as a context manager."""

    def __init__(self, workdir: str | os.PathLike, keep: int):
        self.manager = _manager(workdir, max_to_keep=max(keep, 1), cleanup_tmp_directories=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self.manager.close()

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def save(self, state: TrainState, data: Any, config) -> None:
        """Starts writing `state`, once the previous write is done. `state.ok` must hold: a bad state is never saved."""
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.optimizer)))
        if shutil.disk_usage(self.manager.directory).free < needed:
            # Better than to let it fail in the middle: the threads below print a traceback each.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.manager.directory))
        self.manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave(state.optimizer),
                data=ocp.args.JsonSave({"step": step, "batches": data}),
                config=ocp.args.JsonSave(to_dict(config)),
            ),
        )

    def wait(self) -> None:
        """Returns when the last save is on disk; raises what went wrong with it."""
        self.manager.wait_until_finished()

    def restore(self, trainer: Trainer, step: int) -> tuple[TrainState, Any]:
        """(state, data iterator state) of a step, laid out as `trainer` says whatever it was saved from."""
        abstract = trainer.abstract
        saved = set(self.manager.item_metadata(step).keys())
        if not {"optimizer", "data"} <= saved:
            raise UserError(
                f"{self.manager.directory} holds weights and no optimiser state; train from them in a new --workdir "
                f"with --config.train.init={self.manager.directory.parent}"
            )
        items = self.manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                optimizer=ocp.args.StandardRestore(abstract.optimizer),
                data=ocp.args.JsonRestore(),
            ),
        )
        fresh = jax.device_put((jax.numpy.int32(step), jax.numpy.asarray(True)), abstract.step.sharding)
        return TrainState(*fresh, items["params"], items["optimizer"]), items["data"]["batches"]


def save_params(workdir: str | os.PathLike, config, params: Any, step: int = 0) -> None:
    """A workdir of weights alone, such as an imported model: `load`, evaluation and `train.init` open it."""
    Path(workdir).mkdir(parents=True, exist_ok=True)
    write_config(workdir, config)
    args = ocp.args.Composite(params=ocp.args.StandardSave(params), config=ocp.args.JsonSave(to_dict(config)))
    with _manager(workdir) as manager:
        manager.save(step, args=args)


def restore_params(workdir: str | os.PathLike, abstract: Any, step: int | None = None) -> Any:
    """The parameters of a workdir in the shardings of `abstract` (ShapeDtypeStructs).

    Raises UserError when there is no such checkpoint, or naming the leaves whose shapes are not those of `abstract`.
    """
    step = _find(workdir, step)
    with _manager(workdir, create=False) as manager:
        saved = _shapes(manager.item_metadata(step)["params"])
        wanted = _shapes(abstract)
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
        return manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract)))["params"]


def _find(workdir: str | os.PathLike, step: int | None) -> int:
    known = steps(workdir)
    if not known:
        raise UserError(f"{workdir} holds no checkpoint; give the --workdir of a run that has saved one")
    if step is not None and step not in known:
        raise UserError(f"{workdir} holds no checkpoint of step {step}; choose one of {', '.join(map(str, known))}")
    return known[-1] if step is None else step


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}


def path_name(path: Iterable) -> str:
    """A pytree path as 'a/b/c'."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def load(workdir: str | os.PathLike, step: int | None = None, devices=None):
    """(model, params, config) of a workdir's checkpoint, the latest by default.

    The parameters lie on the first device, or spread over `devices` by the config's logical axes with everything on
    fsdp. Raises UserError when there is no such workdir or checkpoint.
    """
    workdir = Path(workdir)
    if not (workdir / "config.json").exists():
        raise UserError(f"{workdir} is no workdir of a run: it has no config.json; give the --workdir of a training run")
    step = _find(workdir, step)
    with _manager(workdir, create=False) as manager:
        if "config" not in set(manager.item_metadata(step).keys()):
            raise UserError(f"{folder(workdir)}/{step} has no config; choose another checkpoint or workdir")
        config = from_dict(manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"])
    model = jaxseq.build(config)
    sizes = dict.fromkeys(meshes.AXES, 1) | {"fsdp": -1}
    mesh = meshes.make_mesh(sizes, devices or jax.local_devices()[:1])
    abstract = abstract_params(model.boxed()["params"], mesh)
    return model, restore_params(workdir, abstract, step), config
