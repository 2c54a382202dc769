"""Examples with a label: lines of text, arrays of images, folders of images.

    jsonl   lines (compressed or not) with the text under data.field and its label, text or a whole number, under data.label
    npz     one file with `images` [N, side, side, channels] or [N, side, side], uint8, and `labels` [N]
    images  a folder with a folder of images for each class (PNG, JPEG and other formats of Pillow; extra `images`)

A folder of .jsonl or .npz files, or of such folders of images, may have splits, which `jaxseq.data.splits` finds by name. Test
splits are skipped. Validation splits are used for validation; without them, every data.validation_every-th example is used.
Classes are numbered in the order of the sorted labels.
"""

import functools
import hashlib
import json
import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple, overload

import grain
import numpy as np
from ml_collections import ConfigDict

from jaxseq.data import files, folders
from jaxseq.data.corpora import _validates
from jaxseq.data.damage import Damage, describe
from jaxseq.data.folders import shown
from jaxseq.data.readers.jsonl import json_records
from jaxseq.data.splits import grouped, split_of
from jaxseq.errors import UserError
from jaxseq.plain_files import npy_header

Row = dict[str, np.ndarray]

LARGEST_IMAGE = 80_000_000  # pixels
LONGEST_IMAGE = 100  # maximum ratio of the sides
# OSError: Pillow's own errors and truncated files; SyntaxError and the others come from its format readers.
_NO_IMAGE = (OSError, ValueError, SyntaxError, EOFError, zlib.error, struct.error, IndexError, KeyError, TypeError, MemoryError)
_NO_ARRAYS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError,
              RuntimeError)  # fmt: skip


class Labelled(NamedTuple):
    """examples(i): row i without its label; raises UserError if it is unusable (`damage` may skip it). side: pixels, if all
    images have one size. held: [N] bool, the validation examples; None if the data has no splits."""

    name: str
    examples: Callable[[int], Row]
    labels: np.ndarray  # [N] int32
    classes: tuple[str, ...]
    stamp: list
    side: int | None = None
    channels: int | None = None
    damage: Damage = Damage()
    held: np.ndarray | None = None

    @property
    def fingerprint(self) -> str:
        text, held = json.dumps([self.stamp, self.classes]), b"" if self.held is None else self.held.tobytes()
        return hashlib.blake2b(text.encode() + self.labels.tobytes() + held, digest_size=16).hexdigest()


class Examples(grain.MapDataset):
    """Some of the examples, with `labels` [] int32 and `weights` [] float32: 1, or 0 if the image is skipped."""

    def __init__(self, labelled: Labelled, index: np.ndarray):
        super().__init__()
        self._labelled, self._index = labelled, index

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> grain.MapDataset[Row]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        at = int(self._index[index % len(self._index)])
        try:
            row, weight = self._labelled.examples(at), 1
        except UserError as error:
            self._labelled.damage.skip(error, at)
            files.say(f"{error}: skipped (data.skip_records={self._labelled.damage.allowed})")
            side, channels = self._labelled.side, self._labelled.channels
            row, weight = {"images": np.zeros((side, side, channels), np.float32)}, 0
        return row | {"labels": self._labelled.labels[at], "weights": np.float32(weight)}


def splits(labelled: Labelled, every: int) -> dict[str, Examples]:
    """{"train", "validation"}; see data.validation_every. Raises UserError when one would be empty, and for a class that only
    validates."""
    if labelled.held is not None:
        return _given(labelled, labelled.held)
    count = len(labelled.labels)
    if every < 0 or every == 1 or count < max(1, every):
        raise UserError(
            f"data.validation_every={every} does not split {count} examples; set it between 2 and {max(count, 2)}, or to 0"
        )
    held = _validates(count, every)
    return {"train": Examples(labelled, np.flatnonzero(~held)), "validation": Examples(labelled, np.flatnonzero(held))}


def _given(labelled: Labelled, held: np.ndarray) -> dict[str, Examples]:
    untrained = set(labelled.labels[held].tolist()) - set(labelled.labels[~held].tolist())
    if untrained:
        names = ", ".join(labelled.classes[number] for number in sorted(untrained)[:8])
        raise UserError(f"{labelled.name} has the class {names} in its validation split and not in train; add examples of it")
    return {"train": Examples(labelled, np.flatnonzero(~held)), "validation": Examples(labelled, np.flatnonzero(held))}


def _by_split(root: Path, names: Sequence[PurePath]) -> dict[str, list[PurePath]]:
    """{"train", "validation"}: names in a folder by split; reports skipped files."""
    groups = grouped(root, names)
    if left := [path.as_posix() for split in ("test", "unnamed") for path in groups[split]]:
        files.say(f"{root}: trains on {shown([path.as_posix() for path in groups['train']])}; skips {shown(left)}")
    return {split: groups[split] for split in ("train", "validation")}


def _held(counts: dict[str, int]) -> np.ndarray | None:
    """[N] bool: the validation examples, if examples are in the order of these splits."""
    return np.repeat([False, True], [counts["train"], counts["validation"]]) if counts["validation"] else None


def _numbered(labels: Sequence) -> tuple[np.ndarray, tuple[str, ...]]:
    """(class of each label, the sorted distinct labels)"""
    classes = sorted(set(labels))
    number = {label: i for i, label in enumerate(classes)}
    return np.asarray([number[label] for label in labels], np.int32), tuple(map(str, classes))


def text(config: ConfigDict, row: Callable[[str], Row]) -> Labelled:
    """Labelled lines; `row` turns a text into an example."""
    root = files.existing(config.path or "")
    labels, texts, counts, paths, damage = [], [], {}, [], Damage(config.skip_records)
    for split, found in _line_files(root, config.field).items():
        for path in found:
            for number, record in json_records(path, damage):
                try:
                    value, label = _labelled_text(f"{path} line {number}", record, config.field, config.label)
                except UserError as error:
                    damage.skip(error)
                    continue
                texts.append(value)
                labels.append(label)
        counts[split], paths = len(labels) - sum(counts.values()), [*paths, *found]
    if damage.messages():
        files.say(describe(str(root), damage.messages()))
    if len({type(label) for label in labels}) > 1:
        raise UserError(f"{root} has labels that are text and labels that are numbers; write one kind")
    if not labels:
        raise UserError(f"{root} has no lines; write one JSON object per line, with a text and a label")
    stamp = [*files.stamp(paths, root if root.is_dir() else None), config.field, config.label]
    return Labelled(str(root), lambda i: row(texts[i]), *_numbered(labels), stamp, damage=damage, held=_held(counts))


def _line_files(root: Path, field: str) -> dict[str, list[Path]]:
    """The files of labelled lines, by split."""
    if not root.is_dir():
        return {"train": [root], "validation": []}
    found = folders.open_folder(root, field, False)
    if line := found.describe():
        files.say(line)
    other = next((file.name for file in [*found.train, *found.validation] if file.kind != "jsonl"), None)
    if other:
        raise UserError(f"data.path={root} holds {other}, and labelled texts are lines of .jsonl; name a folder of those alone")
    return {split: [file.path for file in getattr(found, split)] for split in ("train", "validation")}


def _labelled_text(place: str, record: dict, field: str, label: str) -> tuple[str, str | int]:
    """(text, label) of a line."""
    for name in (field, label):
        if name not in record:
            have = ", ".join(map(str, list(record)[:8])) or "none"
            raise UserError(f"{place} has no field {name!r} (it has: {have}); set data.field or data.label")
    if not isinstance(record[field], str) or not isinstance(record[label], str | int):
        raise UserError(f"{place}: {field!r} must be text and {label!r} text or a whole number")
    return record[field], record[label]


def images(config: ConfigDict, side: int | None) -> Labelled:
    """Images [side, side, channels] float32 in [-1, 1]. side: the size that the model needs, if any."""
    path = files.existing(config.path or "")
    if not path.is_dir():
        return _arrays(path, side)
    arrays = [PurePath(found.name) for found in sorted(path.glob("*.npz"))]
    return _array_files(path, arrays, side) if arrays else _folder(path, side, config.skip_records)


def _scaled(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / 127.5 - 1


def _arrays(path: Path, side: int | None) -> Labelled:
    pixels, labels = _pixels(path, side)
    numbers, classes = _numbered(labels.tolist())
    stamp = files.stamp([path])
    return Labelled(str(path), lambda i: {"images": _scaled(pixels[i])}, numbers, classes, stamp, *pixels.shape[2:])


def _array_files(root: Path, names: list[PurePath], side: int | None) -> Labelled:
    chosen = _by_split(root, names)
    found = {split: [_pixels(root / name, side) for name in chosen[split]] for split in chosen}
    every = found["train"] + found["validation"]
    shapes = sorted({pixels.shape[1:] for pixels, _ in every})
    if len(shapes) > 1:
        raise UserError(f"the files of data.path={root} hold images of different shapes ({shapes}); make them alike")
    pixels, labels = (np.concatenate(part) for part in zip(*every, strict=True))
    numbers, classes = _numbered(labels.tolist())
    counts = {split: sum(len(labels) for _, labels in parts) for split, parts in found.items()}
    stamp = files.stamp([root / name for split in chosen for name in chosen[split]], root)
    images = lambda i: {"images": _scaled(pixels[i])}  # noqa: E731
    return Labelled(str(root), images, numbers, classes, stamp, *pixels.shape[2:], held=_held(counts))


def _pixels(path: Path, side: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(images [N, side, side, channels] uint8, labels [N]) of an .npz file."""
    files.regular(path)
    try:
        with zipfile.ZipFile(path) as members:
            pixels, labels = (_array(path, members, name) for name in ("images", "labels"))
    except _NO_ARRAYS as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} cannot be read as arrays `images` and `labels` ({reason}); save them with numpy.savez") from None
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    shape, kinds = pixels.shape, (pixels.dtype, labels.dtype.kind)
    if pixels.ndim != 4 or shape[1] != shape[2] or kinds[0] != np.uint8 or labels.shape != shape[:1] or kinds[1] not in "iu":
        raise UserError(
            f"{path} must hold images [N, side, side, channels] of uint8 and labels [N] of whole numbers; "
            f"it holds {pixels.dtype} {list(shape)} and {labels.dtype} {list(labels.shape)}"
        )
    if side is not None and shape[1] != side:
        raise UserError(f"{path} holds images of {shape[1]} pixels, but the model needs {side}; set model.size, or resize them")
    return pixels, labels


def _array(path: Path, members: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of a .npz. Its claimed size is checked against the file's size before memory is allocated."""
    info = members.getinfo(f"{name}.npy")
    with members.open(info) as stream:
        shape, fortran, dtype = npy_header(stream)
        claimed, most = math.prod(shape) * dtype.itemsize, max(files.EXPANSION_FREE, files.EXPANSION * info.compress_size)
        if claimed > most or info.file_size != stream.tell() + claimed:
            raise ValueError(f"{name} claims {claimed / 2**30:.3g} GiB, and the file holds {info.compress_size} bytes of it")
        found = np.frombuffer(stream.read(claimed), dtype)
    return found.reshape(shape, order="F" if fortran else "C")


def _folder(root: Path, side: int | None, skip: int) -> Labelled:
    chosen = {split: _images_of(found) for split, found in _split_folders(root).items()}
    found = chosen["train"] + chosen["validation"]
    if not found:
        raise UserError(f"data.path={root} holds no folder with images; make one for each class")
    if side is None:
        raise UserError("images of a folder are resized, and nothing says to what; set data.side")
    try:
        import PIL.Image
    except ImportError:
        raise UserError("a folder of images needs Pillow; pip install 'jaxseq[images]', or give an .npz file") from None
    numbers, classes = _numbered([path.parent.name for path in found])
    if all(split_of(PurePath(name, "x")) for name in classes):
        raise UserError(f"the folders of data.path={root} are splits ({', '.join(classes)}), not classes; name one of them")
    warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # such an image is refused
    read = functools.partial(_read_image, PIL.Image, side)
    stamp, held = files.stamp(found, root), _held({split: len(paths) for split, paths in chosen.items()})
    return Labelled(str(root), lambda i: {"images": read(found[i])}, numbers, classes, stamp, side, 3, Damage(skip), held)


def _images_of(classes: list[Path]) -> list[Path]:
    """The files of folders of classes."""
    found = sorted(path for folder in classes for path in folder.glob("*/*"))
    return [path for path in found if path.is_file() and not path.name.startswith(".")]


def _split_folders(root: Path) -> dict[str, list[Path]]:
    """{"train", "validation"}: folders with a folder for each class: `root` itself, unless all folders in it are named after
    splits and contain folders."""
    names = [PurePath(path.name, "x") for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if not names or not all(map(split_of, names)) or not any(_images_of([root / path.parent]) for path in names):
        return {"train": [root], "validation": []}
    return {split: [root / path.parent for path in paths] for split, paths in _by_split(root, names).items()}


def _read_image(library, side: int, path: Path) -> np.ndarray:
    """The central square of the image, with the shorter side scaled to `side`."""
    try:
        files.regular(path)
        with library.open(path) as image:  # reads the size but no pixels
            short, long = sorted(image.size)
            if short * long > LARGEST_IMAGE or long > LONGEST_IMAGE * short:
                raise ValueError(f"it has {image.width} x {image.height} pixels")
            image = image.convert("RGB")
    except (*_NO_IMAGE, library.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}); remove or replace it") from None
    scale = side / min(image.size)
    wide, high = (max(side, round(scale * size)) for size in image.size)
    left, top = (wide - side) // 2, (high - side) // 2
    image = image.resize((wide, high), library.Resampling.BILINEAR).crop((left, top, left + side, top + side))
    return _scaled(np.asarray(image))
