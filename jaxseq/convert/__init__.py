"""Reads and writes published weights: folders with config.json and safetensors, torch's .pth and .bin, GGUF.

Nothing in a file is executed: pickles are read by an unpickler that accepts only tensors.
"""

import contextlib
import difflib
import functools
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseq import paths, registry, weights
from jaxseq.convert import _fields, _files, _peft, _table, _tensors, _tokenizer
from jaxseq.convert._source import WeightSource
from jaxseq.convert._source import source as _source_of
from jaxseq.errors import UserError
from jaxseq.plain_files import json_text

__all__ = ["from_pretrained", "from_state_dict", "open_model", "save_pretrained", "source_names", "to_state_dict"]
log = logging.getLogger(__name__)


def source_names() -> tuple[str, ...]:
    """The names of all sources: "hf/llama", "blinkdl/rwkv4", …"""
    return tuple(name.replace("_", "/", 1) for name in registry.names("convert.sources"))


@functools.cache
def _source(name: str) -> WeightSource:
    file = name.replace("/", "_")
    if file not in registry.names("convert.sources"):
        raise UserError(f"there is no source {name!r}; choose one of: {', '.join(source_names())}")
    return _source_of(registry.load("convert.sources", file))


def abstract(model: nn.Module, mesh: Mesh | None = None) -> Any:
    """The model's parameters as ShapeDtypeStructs; for a model with running statistics, all its collections."""
    boxed = model.boxed()
    if mesh is None:
        shapes = jax.tree.map(lambda box: box.value, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata))
    else:
        from jaxseq.train.step import abstract_params  # the trainer's layout; imported late because it takes a second

        shapes = abstract_params(boxed, mesh)
    return shapes.get("params", {}) if set(shapes) <= {"params"} else shapes


def from_state_dict(
    source: str, config: Mapping, tensors: Mapping[str, Any], dtype: Any = None, mesh: Mesh | None = None
) -> tuple[nn.Module, Any]:
    """(model, params) from a checkpoint in memory, or from files through a lazy mapping.

    source: one of `source_names()`. config: the contents of their config.json. tensors: their names and arrays. dtype: of the
    parameters (default: float32). mesh: arrays are sharded over it by their logical axes, as in training (default: all on the
    first device).

    Raises UserError for an unknown source, for an unsupported config, and for tensors that are missing, unexpected or of the
    wrong shape; all of them are listed by name.
    """
    found, tensors = _source(source), _tensors.plain(_files.unwrapped(tensors))
    with _readable(source):
        theirs = _completed(found, dict(config), tensors)
        model = found.build(theirs)
        entries, aliases = found.entries(theirs), found.aliases(theirs)
        shapes = abstract(model, mesh)
    if found.rename:
        tensors = _tensors.Renamed(tensors, found.rename(set(tensors)))
    if dtype is not None:
        shapes = jax.tree.map(lambda leaf: leaf.update(dtype=_cast(leaf.dtype, dtype)), shapes)
    return model, _table.load(entries, tensors, shapes, _put, aliases)


def _cast(own, dtype):
    return dtype if jnp.issubdtype(own, jnp.floating) else own


def _put(leaf: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.device_put(leaf, getattr(like, "sharding", None))


@contextlib.contextmanager
def _readable(source: str):
    """Raises UserError if their config lacks a field or has one of the wrong type."""
    try:
        yield
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"the config has no field {error}, which {source} needs; give the checkpoint's own") from error
    except (TypeError, AttributeError, ValueError, ArithmeticError, AssertionError, IndexError) as error:
        first = str(error).partition("\n")[0]
        raise UserError(f"the config cannot be read as {source}: {first}; give the checkpoint's own config.json") from error


def to_state_dict(source: str, model: nn.Module, params: Any) -> dict[str, np.ndarray]:
    """The model as their names and arrays; `from_state_dict` restores `params` bit for bit. Compressed weights and adapters are
    merged into arrays. Raises UserError if the source cannot hold the model."""
    return dict(_table.dump(_source(source).entries(describe(source, model)), weights.merged(params)))


def describe(source: str, model: nn.Module) -> dict:
    """The source's config for our model. Raises UserError if the source cannot hold it."""
    theirs = _source(source).describe(model)
    if theirs is None:
        raise UserError(f"{source} cannot hold this model; it holds: {_source(source).title}")
    return theirs


def open_source(path: str | Path, source: str | None = None) -> tuple[str, dict, Mapping[str, Any]]:
    """(source, their config, lazy tensors) of a folder or file.

    Raises UserError if nothing there can be read, or if the files do not determine the source; the candidates are listed.
    """
    if source is not None:
        _source(source)  # an unknown source is reported before any error in the files
    theirs, tensors = _files.read(path)
    names = set(tensors)
    _whole_weights(path, theirs, names)
    found = [s for s in source_names() if _source(s).recognises(theirs, names)]
    if source is None:
        if len(found) != 1:
            raise UserError(f"{path} {_unknown(theirs, names, found)}")
        source = found[0]
    elif found and source not in found:
        log.warning("%s looks like %s and is read as %s; compare its outputs with its own library's", path, found[0], source)
    if not theirs:
        shapes = {name: tuple(tensors.shape(name)) for name in tensors}
        with _readable(source):
            theirs = _source(source).infer(shapes)
    return source, _completed(_source(source), theirs, tensors), tensors


def _whole_weights(path: str | Path, theirs: Mapping, names: set[str]) -> None:
    """Raises UserError for weights that are quantised or that are only an adapter."""
    if quantised := theirs.get("quantization_config"):
        method = quantised.get("quant_method", "an unnamed method") if isinstance(quantised, Mapping) else quantised
        raise UserError(
            f"{path} holds weights that are quantised (quantization_config: {_fields.shown(method)}), which is not supported; "
            "give the weights before quantisation"
        )
    if lora := sorted(name for name in names if ".lora_A." in name or ".lora_B." in name):
        raise UserError(
            f"{path} holds LoRA weights ({lora[0]} …), which change a base model; merge them into it with peft's merge_and_unload"
        )


def _unknown(theirs: Mapping, names: set[str], found: list[str]) -> str:
    """Why the source must be named, and which one is nearest."""
    if found:
        return f"could be of several sources: {', '.join(found)}; give one of them as --source"
    kind = theirs.get("model_type")
    what = f"is of model_type={_fields.shown(kind)}, which no source reads" if kind else "is of no known source (no model_type)"
    own = _patterns(names)
    tables = {s: _patterns(_table_names(s, theirs, names)) for s in source_names() if _source(s).config}
    shared = {source: len(own & table) for source, table in tables.items()}
    # Of sources with equally many, the one that lacks fewest.
    best = max(shared, key=lambda source: (shared[source], -len(tables[source])), default=None)
    if best and 2 * shared[best] >= len(own):
        near = f"the nearest is {best}, which has {shared[best]} of the {len(own)} kinds of tensors here"
        return f"{what}; {near}, but the model may compute something else: --source={best} reads it as that source"
    kinds = {source.partition("/")[2]: source for source in source_names()}
    alike = [kinds[name] for name in difflib.get_close_matches(str(kind), kinds, 1)] if kind else ()
    near = f"the nearest name is {alike[0]}" if alike else f"give one of these as --source: {', '.join(source_names())}"
    return f"{what}; {near}"


def _table_names(source: str, theirs: Mapping, names: set[str]) -> set[str]:
    """The tensors that a source expects with this config; empty if it cannot read the config."""
    found = _source(source)
    try:
        theirs = _completed(found, dict(theirs), dict.fromkeys(names))
        found.config(theirs)  # raises for a value that it does not support
        return {name for entry in found.entries(theirs) for _, row in entry.rows() for name in row}
    except Exception:  # the config of another source can cause any error
        return set()


def _patterns(names: set[str]) -> set[str]:
    return {re.sub(r"\d+", "N", name) for name in names}


def _completed(source: WeightSource, theirs: dict, tensors: Mapping[str, Any]) -> dict:
    """Their config, completed by the fields that follow only from the tensors."""
    _fields.check(theirs)
    return source.complete(theirs, tensors)


def from_pretrained(
    path: str | Path, source: str | None = None, dtype: Any = None, mesh: Mesh | None = None
) -> tuple[nn.Module, Any]:
    """(model, params) from a folder with config.json and safetensors (sharded or not), or from one checkpoint file.

    source, dtype, mesh: as in `from_state_dict`; by default the source is detected from the files.
    """
    source, theirs, tensors = open_source(path, source)
    return from_state_dict(source, theirs, tensors, dtype, mesh)


def open_model(
    path: str | Path, source: str | None = None, dtype: Any = None, mesh: Mesh | None = None
) -> tuple[str, dict, ConfigDict, nn.Module, Any]:
    """(source, their config, our config, model, params) of a whole model: `from_pretrained` with what a workdir needs.

    Raises UserError for a source of single layers, which have no config.
    """
    source, theirs, tensors = open_source(path, source)
    if not _source(source).config:
        raise UserError(f"{source} is a single layer, not a model; open it with jaxseq.convert.from_state_dict")
    model, params = from_state_dict(source, theirs, tensors, dtype, mesh)  # raises the errors of the config
    return source, theirs, _source(source).config(theirs), model, params


def tokenizer(path: str | Path, source: str, theirs: Mapping, file: str | None = None) -> dict[str, bytes]:
    """{name: contents} of a checkpoint's tokenizer, or of `file`, and of the small files beside it.

    theirs: their config, as returned by `open_model` and `open_source`. See `jaxseq.convert._tokenizer`.
    """
    return _tokenizer.found(path, _source(source), theirs, file)


def save_pretrained(path: str | Path, model: nn.Module, params: Any, source: str | None = None) -> str:
    """Writes config.json and safetensors in the format of the source's own library; returns the source. Compressed weights and
    adapters are merged into arrays.

    source: by default the one that can hold the model, by rank if there are several. Raises UserError if there is none, or more
    than one of the same rank.
    """
    source = _holder(model) if source is None else source
    theirs = describe(source, model)
    folder = Path(path)
    paths.make_folder(folder, str(folder))
    _files.write(folder, _table.dump(_source(source).entries(theirs), weights.merged(params)))
    write_config(folder / "config.json", theirs)
    return source


def save_adapter(path: str | Path, model: nn.Module, params: Any, source: str | None = None) -> str:
    """Writes the adapters of `params` (train.lora_rank) in the layout of PEFT, for a base model in the source's format; returns
    the source.

    Raises UserError as `save_pretrained`, and for adapters that this layout cannot hold.
    """
    source = _holder(model) if source is None else source
    _peft.write(Path(path), _source(source).entries(describe(source, model)), params)
    return source


def _holder(model: nn.Module) -> str:
    """The source that is meant if none is named."""
    found = [s for s in source_names() if s.startswith(_WRITABLE) and _source(s).describe(model) is not None]
    ranks = [_source(s).rank for s in found]
    found = [s for s, rank in zip(found, ranks, strict=True) if rank == min(ranks)]
    if len(found) != 1:
        what = "several sources hold this model" if found else "no source holds this model"
        raise UserError(f"{what}; name one of: {', '.join(found or source_names())}")
    return found[0]


def write_config(path: Path, theirs: Mapping) -> None:
    """Writes their config.json."""
    path.write_text(json_text(theirs, indent=2) + "\n", encoding="utf-8")


_WRITABLE = ("hf/",)  # sources whose format is a folder with config.json; others are used only if named
