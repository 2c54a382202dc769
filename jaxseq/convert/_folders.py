"""Finds a folder's checkpoint files: those that the original library would open. Ambiguous folders are refused."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from jaxseq.convert._formats import SUFFIXES, one
from jaxseq.convert._tensors import Tensors
from jaxseq.errors import UserError
from jaxseq.plain_files import read_object, regular

INDEX_BYTES = 256 << 20
SHOWN = 8  # names in a message
# in the order in which transformers looks for them: each file or the index of its shards
ORDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# files that trainers write beside the weights
OTHERS = re.compile(r"(\..*|training_args|optimizer|scheduler|scaler|rng_state.*|random_states.*|adapter_model)\.\w+")
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.\w+)")
log = logging.getLogger(__name__)


class Joined(Tensors):
    """Tensors over several files; `parts` is {name: the tensors of the file that holds it}."""

    def shape(self, name: str) -> tuple[int, ...]:
        return self.parts[name].shape(name)

    def dtype(self, name: str) -> str:
        return self.parts[name].dtype(name)

    def __getitem__(self, name):
        return self.parts[name][name]


def tensors(folder: Path) -> Tensors:
    """The tensors of a folder. Raises UserError, naming the files found, if they are no checkpoint or more than one."""
    if found := [name for name in ORDER if (folder / name).exists()]:
        if len(found) > 1:
            log.warning("%s: %s is read, as transformers would; left out: %s", folder, found[0], ", ".join(found[1:]))
        path = folder / found[0]
        return _indexed(path) if path.suffix == ".json" else one(path)
    if (folder / "adapter_config.json").exists():
        raise UserError(_adapter(folder))
    for suffixes in (SUFFIXES[:1], SUFFIXES[1:5], SUFFIXES[5:6], SUFFIXES[6:]):
        files = [p for p in sorted(folder.iterdir()) if p.suffix in suffixes and not OTHERS.fullmatch(p.name)]
        if files:
            return _only(folder, files)
    inside = sorted(p.name for p in folder.iterdir() if p.is_dir() and any((p / name).exists() for name in ORDER))
    hint = f"give one of its folders: {_some(inside)}" if inside else "give the folder of a checkpoint"
    raise UserError(f"{folder} holds no {', '.join(SUFFIXES)} file of weights; {hint}")


def _only(folder: Path, files: list[Path]) -> Tensors:
    """The tensors of the only file, or of a complete set of shards without an index."""
    if len(files) == 1 and not SHARD.fullmatch(files[0].name):
        if files[0].suffix == ".gguf":
            raise UserError(f"a GGUF file carries its own config; give the file itself: {files[0]}")
        return one(files[0])
    sets = {(m[1], m[3], m[4]) for m in (SHARD.fullmatch(p.name) for p in files) if m}
    if len(sets) == 1 and all(SHARD.fullmatch(p.name) for p in files):
        ((stem, count, suffix),) = sets
        wanted = [folder / f"{stem}-{i + 1:05}-of-{count}{suffix}" for i in range(min(int(count), 9999))]
        if lost := [path.name for path in wanted if not path.exists()]:
            raise UserError(f"{folder} lacks {_some(lost)}; fetch them")
        return _joined(wanted)
    names = _some([path.name for path in files])
    raise UserError(f"{folder} holds several checkpoints and no index that says which to read: {names}; give one of these files")


def _joined(files: Iterable[Path]) -> Joined:
    parts: dict[str, Tensors] = {}
    for path in files:
        found = one(path)
        if twice := sorted(parts.keys() & set(found)):
            raise UserError(f"{path} holds {twice[0]}, as another file of the set does; fetch the set again with its index")
        parts |= dict.fromkeys(found, found)
    return Joined(parts)


def _indexed(index: Path) -> Joined:
    """Each tensor, read from the file that the index names; the file must be in the index's folder."""
    names = read_object(index, INDEX_BYTES).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise UserError(f"{index} is not an index: it has no weight_map of tensors and files; fetch it again")
    folder, files = index.parent, sorted(set(names.values()))
    if outside := [file for file in files if Path(file).name != file]:
        raise UserError(f"{index} names a file outside its folder: {outside[0]}; fetch it again")
    if lost := [str(folder / file) for file in files if not (folder / file).exists()]:
        raise UserError(f"{index} names files that are not there: {_some(lost)}; fetch them")
    opened = {file: one(regular(folder / file)) for file in files}
    if lost := sorted(name for name, file in names.items() if name not in opened[file]):
        raise UserError(f"{index} names tensors that its files lack: {_some(lost)}; fetch them again")
    return Joined({name: opened[file] for name, file in names.items()})


def _adapter(folder: Path) -> str:
    config = read_object(folder / "adapter_config.json")
    kind, base = config.get("peft_type"), config.get("base_model_name_or_path")
    what, of = f"{kind} weights" if kind else "weights of an adapter", f" ({base})" if base else ""
    return (
        f"{folder} holds {what}, which change a base model{of} and are not a model themselves; "
        "merge them into it (peft: merge_and_unload, then save_pretrained) and give that folder"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
