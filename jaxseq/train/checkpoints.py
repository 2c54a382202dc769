"""Checkpoints of a run: DIR/config.json and DIR/checkpoints/STEP with the items params, optimizer, data and config, and
collections where the model has any (batch_stats).

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
        keys = differing(to_dict(from_dict(_read_json(path))), data)  # with the defaults of fields that are newer than the file
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


def _manager(workdir: str | os.PathLike, arrays=ocp.StandardCheckpointHandler, **options) -> ocp.CheckpointManager:
    handlers: dict[str, Any] = {name: arrays() for name in ("params", "optimizer", "collections")}
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
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves((state.variables, state.optimizer)))
        if shutil.disk_usage(self.manager.directory).free < needed:
            # Better than to let it fail in the middle: the threads below print a traceback each.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.manager.directory))
        self.manager.save(
            step,
            args=ocp.args.Composite(
                optimizer=ocp.args.StandardSave(state.optimizer),
                data=ocp.args.JsonSave({"step": step, "batches": data}),
                config=ocp.args.JsonSave(to_dict(config)),
                **_variables(ocp.args.StandardSave, state.params, state.collections),
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
                optimizer=ocp.args.StandardRestore(abstract.optimizer),
                data=ocp.args.JsonRestore(),
                **_variables(ocp.args.StandardRestore, abstract.params, abstract.collections),
            ),
        )
        fresh = jax.device_put((jax.numpy.int32(step), jax.numpy.asarray(True)), abstract.step.sharding)
        variables = items["params"], items["optimizer"], items.get("collections", {})
        return TrainState(*fresh, *variables), items["data"]["batches"]


def _variables(make, params: Any, collections: dict) -> dict[str, Any]:
    """Orbax's arguments for the items of a model's variables: no item for collections that are not there."""
    return {"params": make(params)} | ({"collections": make(collections)} if collections else {})


def save_params(workdir: str | os.PathLike, config, params: Any, step: int = 0) -> None:
    """A workdir of weights alone, such as an imported model: `load`, evaluation and `train.init` open it.

    params: of a model with more collections all of them, {"params": …, "batch_stats": …}.
    """
    Path(workdir).mkdir(parents=True, exist_ok=True)
    write_config(workdir, config)
    variables = params if "params" in params else {"params": params}
    collections = {name: value for name, value in variables.items() if name != "params"}
    items = _variables(ocp.args.PyTreeSave, variables["params"], collections)
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(variables))

    def arrays():  # compressed copies would stay in memory until they are on disk, and weights hardly compress
        impl = ocp.BasePyTreeCheckpointHandler(save_concurrent_bytes=largest + 1, use_compression=False)
        return ocp.PyTreeCheckpointHandler(handler_impl=impl)

    with _manager(workdir, arrays) as manager:
        manager.save(step, args=ocp.args.Composite(config=ocp.args.JsonSave(to_dict(config)), **items))


def restore_variables(workdir: str | os.PathLike, abstract: dict, step: int | None = None, heads: Iterable[str] = ()) -> dict:
    """A workdir's {"params": …, "batch_stats": … if any} in the shardings of `abstract` (ShapeDtypeStructs).

    heads: modules at the top of params that may be missing on either side (a fine-tuned model's new classifier, the
    language model's head that it does without). A missing one is missing in what is returned too.

    Raises UserError when there is no such checkpoint, or naming the leaves whose shapes are not those of `abstract`.
    """
    step = _find(workdir, step)
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
    """(model, params, config) of a workdir's checkpoint, the latest by default; see `load_variables`.

    params: of a model with more collections all of them, {"params": …, "batch_stats": …}.
    """
    model, variables, config = load_variables(workdir, step, devices)
    return model, variables["params"] if variables.keys() == {"params"} else variables, config


def load_variables(workdir: str | os.PathLike, step: int | None = None, devices=None):
    """(model, variables, config) of a workdir's checkpoint; variables, {"params": …} and what else the model has
    ("batch_stats"), are what `model.apply` takes.

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
    return model, restore_variables(workdir, abstract_params(model.boxed(), mesh), step), config
