"""Reads checkpoint folders and files as lazy mappings {name: array} (`_tensors`), and writes safetensors folders."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxseq.convert import _folders, _formats, _gguf
from jaxseq.convert._tensors import Renamed, Tensors
from jaxseq.plain_files import json_text, read_object, regular

SHARD_BYTES = 4 << 30
INDEX = "model.safetensors.index.json"
log = logging.getLogger(__name__)


def read(path: str | Path) -> tuple[dict, Tensors]:
    """(the contents of config.json, or the metadata in the file, or {}; lazy tensors)."""
    path = Path(path)
    if path.is_dir():
        return _config(path), unwrapped(_folders.tensors(path))
    path = regular(path)
    if path.suffix == ".gguf":
        return _gguf.open(path)
    return _config(path.parent), unwrapped(_formats.one(path))


def _config(folder: Path) -> dict:
    path = folder / "config.json"
    return read_object(path) if path.exists() else {}


_WRAPPERS = {"_orig_mod.": "torch.compile", "module.": "torch's data parallelism"}


def unwrapped(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tensors without the prefix that a training wrapper puts before every name."""
    names = {name: name for name in tensors}
    while found := [p for p in _WRAPPERS if names and all(name.startswith(p) for name in names)]:
        log.warning("every name begins with %s, of a model saved inside %s; it is left out", found[0], _WRAPPERS[found[0]])
        names = {name.removeprefix(found[0]): old for name, old in names.items()}
    return tensors if all(new == old for new, old in names.items()) else Renamed(tensors, names)


def write(folder: Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes one model.safetensors, or shards of at most SHARD_BYTES with an index; replaces a checkpoint in the folder."""
    from safetensors.numpy import save_file

    for old in (*folder.glob("model*.safetensors"), *folder.glob(INDEX)):
        old.unlink()
    shards: list[list[str]] = []
    part: dict[str, np.ndarray] = {}

    def flush():
        draft = folder / f"model-{len(shards)}.safetensors"
        save_file(part, draft, metadata={"format": "pt"})
        draft.chmod(0o644)  # the library creates files that other users cannot read
        shards.append(list(part))
        part.clear()

    total = 0
    for name, tensor in tensors:
        if part and sum(x.nbytes for x in part.values()) + tensor.nbytes > SHARD_BYTES:
            flush()
        part[name] = tensor
        total += tensor.nbytes
    flush()
    if len(shards) == 1:
        (folder / "model-0.safetensors").replace(folder / "model.safetensors")
        return
    weight_map = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        (folder / f"model-{i}.safetensors").replace(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json_text(index, indent=2) + "\n", encoding="utf-8")
