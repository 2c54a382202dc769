"""Paths of runs: local folders, and gs://bucket/folder on Google Cloud Storage (extra `gcs`).

A local path is a pathlib path; one in a bucket is an `epath.Path` of etils, with the same methods. A bucket has no folders, no
moves (a rename copies) and no appends; this module handles these differences.
"""

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from jaxseq.errors import UserError, is_disk_full

GS = "gs://"
EXTRA = "pip install 'jaxseq[gcs]'"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # pathlib reduces two slashes to one


def is_remote(path: str | os.PathLike) -> bool:
    return os.fspath(path).startswith(GS)


def of(name: str | os.PathLike, what: str = "") -> Any:
    """The path of that name: pathlib's, or epath's for gs://. what: the field and value to name, such as "--out=s3://a/b".

    Raises UserError for any other scheme (else a folder `s3:` would be created), and if gs:// cannot be used.
    """
    text = os.fspath(name)
    if not is_remote(text):
        return Path(local(text, what))
    bucket, _, folder = text.removeprefix(GS).partition("/")
    if not bucket or not folder.strip("/") or "#" in text:
        raise UserError(f"{what or text} is not a folder in a bucket; write it like gs://bucket/folder, without #")
    _configure()
    from etils import epath

    return epath.Path(text.rstrip("/"))


def local(name: str, what: str = "") -> str:
    """`name`. Raises UserError if it is a URL."""
    if scheme := _SCHEME.match(name):
        raise UserError(f"{what or name} is not a local path, and {scheme[1]}:// is not supported there; copy or mount the files")
    return name


@functools.cache
def _configure() -> None:
    """Called before the first path: disables the cache of listings, because others (tensorstore, other processes) also write."""
    try:
        import fsspec
        import gcsfs  # noqa: F401
        import google.cloud.storage  # noqa: F401
    except ImportError as error:
        raise UserError(f"gs:// needs the package {error.name}; {EXTRA}") from None
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


@functools.cache
def _client() -> Any:
    from google.cloud import storage

    return storage.Client(project=None)


def blob(path: Any) -> Any:
    """The object of a path in a bucket, for conditional writes, which only the store's own library supports."""
    bucket, _, name = os.fspath(path).removeprefix(GS).partition("/")
    return _client().bucket(bucket).blob(name)


def check_bucket(path: Any) -> None:
    """Raises UserError if the bucket of a path does not exist or cannot be accessed."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    bucket = os.fspath(path).removeprefix(GS).partition("/")[0]
    try:
        next(iter(_client().list_blobs(bucket, max_results=1)), None)
    except GoogleAuthError:
        mend = "run `gcloud auth application-default login`, or name a key in GOOGLE_APPLICATION_CREDENTIALS"
        raise UserError(f"{path} cannot be opened: there are no credentials for Google Cloud; {mend}") from None
    except (GoogleAPIError, OSError) as error:
        reason = " ".join(str(getattr(error, "message", None) or error).split())[:200]
        raise UserError(f"{path} cannot be opened ({reason}); make the bucket {GS}{bucket}, or get the right to use it") from None


def absolute(path: str | os.PathLike) -> Any:
    path = of(path)
    return path if is_remote(path) else path.absolute()


def check_folder(path: Path, what: str) -> None:
    """Raises UserError for a local folder that cannot be made or written. what: as for `make_folder`."""
    nearest = next((folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder)), path)
    if not nearest.is_dir():
        raise UserError(f"{what} is a file or inside a file; choose a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{what} cannot be written: {nearest} is not writable; choose a folder that you may write")


def make_folder(path: Path, what: str) -> None:
    """Makes a local folder with its parents. what: the field and value to name, such as "--out=runs/x".

    Raises UserError if it cannot be made or written.
    """
    check_folder(path, what)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(f"{what} cannot be made ({error.strerror}); choose a folder that you may write") from None


def size(path: Any) -> int:
    """Size of an existing file in bytes."""
    return path.stat().length if is_remote(path) else path.stat().st_size


def write(path: Any, data: bytes | str, *, mode: int | None = None, sync: bool = False) -> None:
    """Writes a file atomically: readers see the old content or all of `data`.

    mode: of a local file, such as 0o644. sync: the file is on disk when this returns.
    """
    data = data.encode() if isinstance(data, str) else data
    if is_remote(path):
        blob(path).upload_from_string(data)
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    if mode is not None:
        draft.chmod(mode)
    draft.replace(path)


def checksums(folder: Any) -> dict[str, str]:
    """{path below a folder in a bucket: CRC-32C}, as stored by the bucket; no file is read."""
    bucket, _, prefix = os.fspath(folder).removeprefix(GS).partition("/")
    found = _client().list_blobs(bucket, prefix=f"{prefix}/")
    return {one.name.removeprefix(f"{prefix}/"): one.crc32c for one in found if not one.name.endswith("/")}


def files(folder: Any) -> Iterator[str]:
    """The files below a folder, as paths below it."""
    if is_remote(folder):
        yield from checksums(folder)
    else:
        yield from (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())


def appending(path: Any) -> BinaryIO:
    """A binary file opened for appending. In a bucket, data are stored at `flush`."""
    return Growing(path) if is_remote(path) else path.open("ab")


def sync(file: BinaryIO) -> None:
    """Makes the data written to a file of `appending` durable."""
    file.flush()
    if not isinstance(file, Growing):
        os.fsync(file.fileno())


class Growing:
    """An object to append to: data are buffered until `flush`, which composes them with the stored object."""

    def __init__(self, path: Any):
        self._blob, self._part = blob(path), blob(path.with_name(f".{path.name}.part"))
        self._blob = self._blob.bucket.get_blob(self._blob.name) or self._blob
        self._size, self._kept, self.closed = self._blob.size or 0, bytearray(), False

    def write(self, data: bytes) -> int:
        self._kept += data
        return len(data)

    def flush(self) -> None:
        if not self._kept:
            return
        data = bytes(self._kept)
        if self._size:
            self._part.upload_from_string(data)
            self._join(self._size + len(data))
        else:
            self._blob.upload_from_string(data)
        self._size += len(data)
        del self._kept[: len(data)]

    def _join(self, size: int) -> None:
        """Appends the part exactly once: a retried request, whose first response was lost, must not append it again."""
        from google.api_core.exceptions import PreconditionFailed

        bucket, name, known = self._blob.bucket, self._blob.name, self._blob.generation
        joined = bucket.blob(name)
        try:
            joined.compose([bucket.blob(name), bucket.blob(self._part.name)], if_generation_match=known)
        except PreconditionFailed:
            joined.reload()
            if joined.size != size:
                raise
        self._blob = joined

    def close(self) -> None:
        if self.closed:
            return
        self.flush()
        self.closed = True
        from google.api_core.exceptions import NotFound

        with contextlib.suppress(NotFound):
            self._part.delete()
