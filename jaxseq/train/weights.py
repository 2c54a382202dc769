"""Weights in the checkpoints of a workdir, without optimiser state: saved, restored, and loaded with their model."""

import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

import jaxseq
from jaxseq import paths, weights
from jaxseq.config import from_dict, to_dict
from jaxseq.errors import UserError
from jaxseq.train import checkpoints, locks, tokenizers, workdirs
from jaxseq.train import mesh as meshes
from jaxseq.train.step import abstract_params
from jaxseq.train.structure import boxed, settled

SHOWN = 8  # names of wrong leaves in a message
log = logging.getLogger(__name__)


def save_params(
    workdir: str | os.PathLike, config: ConfigDict, params: Any, step: int = 0, compressed: bool = False
) -> None:
    """Writes a workdir of weights without optimiser state, such as an imported model, for `load`, evaluation and `train.init`.

    params: the parameters, or all collections of a model with more of them, {"params": …, "batch_stats": …}. compressed: see
    `checkpoints.writer`.
    """
    workdirs.check_path(workdir)
    variables = params if "params" in params else {"params": params}
    collections = {name: value for name, value in variables.items() if name != "params"}
    items = checkpoints.variable_items(ocp.args.PyTreeSave, variables["params"], collections)
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(variables))
    with locks.claimed(paths.of(workdir)):
        workdirs.check_config(workdir, config, trained=bool(checkpoints.steps(workdir)))
        config = tokenizers.kept(config, workdir)
        workdirs.write_config(workdir, config)
        with checkpoints.writer(workdir, at_once=largest + 1, compressed=compressed) as writer:
            writer.save(step, args=ocp.args.Composite(config=ocp.args.JsonSave(to_dict(config)), **items))


def restore_variables(workdir: str | os.PathLike, abstract: dict, step: int | None = None, heads: Iterable[str] = ()) -> dict:
    """A workdir's {"params": …, "batch_stats": … if any} with the shardings of `abstract` (ShapeDtypeStructs).

    heads: top-level modules of params that the checkpoint or `abstract` may lack (such as a fine-tuned model's new classifier, or
    the language model's head that it drops). Only heads that both have are returned.

    Raises UserError if there is no such checkpoint, or for leaves whose shapes differ from `abstract`, naming them.
    """
    return checkpoints.newest(workdir, lambda number: _restored(workdir, abstract, number, heads), step)[1]


def _restored(workdir: str | os.PathLike, abstract: dict, step: int, heads: Iterable[str] = ()) -> dict:
    frozen = None
    if checkpoints.has_frozen(workdir):
        params, frozen = weights.parted(abstract["params"])
        abstract, frozen = abstract | {"params": params}, checkpoints.restore_frozen(workdir, frozen)
    with checkpoints.manager(workdir, create=False) as manager:
        metadata = manager.item_metadata(step)
        saved = {"params": dict(metadata["params"])} | dict(metadata.get("collections") or {})
        free = (saved["params"].keys() ^ abstract["params"].keys()) & set(heads)
        for name in sorted(free):
            log.info("%s: %s", workdir, f"{name} is not loaded" if name in saved["params"] else f"{name} is new")
        params = _without(abstract["params"], free)
        _check_shapes(workdir, saved | {"params": _without(saved["params"], free)}, abstract | {"params": params})
        # Orbax restores whole trees only: what the checkpoint has in addition is read and dropped.
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one)  # noqa: E731
        dropped = {name: jax.tree.map(place, saved["params"][name]) for name in free & saved["params"].keys()}
        items = checkpoints.variable_items(ocp.args.StandardRestore, params | dropped, _without(abstract, {"params"}))
        found = manager.restore(step, args=ocp.args.Composite(**items))
        params = weights.joined(_without(found["params"], dropped), frozen)
        return {"params": params} | dict(found.get("collections") or {})


def initial(source: str | os.PathLike, config: ConfigDict, model: nn.Module, mesh: Mesh) -> dict:
    """The variables of the workdir `source` for a run of `config` that starts from them (train.init), without the types of
    training.

    Compressed weights and adapters of `source` are merged into arrays unless the config has the same config.model.weights.
    Raises UserError as `restore_variables`, and if the config has types of weights that the source does not have.
    """
    saved = workdirs.saved_config(source)
    own = config if saved is None else saved
    found = restore_variables(source, abstract_params(boxed(own, model), mesh), heads=model.optional)
    types, params = settled(own, found["params"])
    if types != config.model.weights:
        if config.model.weights:
            raise UserError(f"the weights in {source} are not compressed as this config says; take --config={source}")
        log.info("the compressed weights of %s are merged into plain weights", source)
        params = jax.jit(weights.merged)(params)
    return found | {"params": params}


def _without(tree: dict, names: Iterable[str]) -> dict:
    return {name: value for name, value in tree.items() if name not in names}


def _check_shapes(workdir: str | os.PathLike, saved: dict, wanted: dict) -> None:
    """Raises UserError that names leaves that are missing or have another shape."""
    old, new = _shapes(saved), _shapes(wanted)
    wrong = [
        f"{name} is {old.get(name, 'missing')}, expected {new.get(name, 'none')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise UserError(
            f"the weights in {workdir} do not fit this model: {'; '.join(wrong[:SHOWN])}{more}; "
            "use the config.model that they were trained with"
        )


def _shapes(variables: dict) -> dict[str, tuple[int, ...]]:
    """{"a/b/c": shape}; names of parameters are without "params/"."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    names = (jax.tree_util.keystr(path, simple=True, separator="/").removeprefix("params/") for path, _ in leaves)
    return {name: tuple(leaf.shape) for name, (_, leaf) in zip(names, leaves, strict=True)}


def load(
    workdir: str | os.PathLike, step: int | None = None, devices: Sequence[meshes.Device] | None = None
) -> tuple[nn.Module, Any, ConfigDict]:
    """(model, params, config) of a workdir's checkpoint, the latest by default; see `load_variables`.

    params: the parameters, or all collections of a model with more of them, {"params": …, "batch_stats": …}.
    """
    model, variables, config = load_variables(workdir, step, devices)
    return model, variables["params"] if variables.keys() == {"params"} else variables, config


def load_variables(
    workdir: str | os.PathLike, step: int | None = None, devices: Sequence[meshes.Device] | None = None
) -> tuple[nn.Module, dict[str, Any], ConfigDict]:
    """(model, variables, config) of a workdir's checkpoint. `variables`, {"params": …, "batch_stats": … if any}, is the
    first argument of `model.apply`.

    The parameters are on the first device, or sharded over `devices` along the mesh axis fsdp. Raises UserError if there is no
    such workdir or checkpoint, or if config.json is damaged.
    """
    workdirs.check_path(workdir)
    workdir = paths.of(workdir)
    if workdirs.saved_config(workdir) is None:
        raise UserError(f"{workdir} is not the workdir of a run: it has no config.json; give the --workdir of a training run")

    def read(number: int):
        with checkpoints.manager(workdir, create=False) as manager:
            if "config" not in set(manager.item_metadata(number).keys()):
                raise UserError(f"{checkpoints.folder(workdir)}/{number} has no config; choose another checkpoint or workdir")
            config = from_dict(manager.restore(number, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"])
        config = tokenizers.located(config, workdir)
        model = jaxseq.build(config)
        sizes = dict.fromkeys(meshes.AXES, 1) | {"fsdp": -1}
        mesh = meshes.make_mesh(sizes, devices or jax.local_devices()[:1])
        return model, _restored(workdir, abstract_params(boxed(config, model), mesh), number), config

    return checkpoints.newest(workdir, read, step)[1]
