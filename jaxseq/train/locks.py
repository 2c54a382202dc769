"""Locks: a second training run in the same folder is refused, with an error that names the first."""

import contextlib
import datetime
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxseq import paths
from jaxseq.errors import UserError

LOCK = ".lock"
BEAT = 20.0  # seconds between two renewals of a lock in a bucket
PATIENCE = 60.0  # seconds without a renewal after which its owner counts as dead
log = logging.getLogger(__name__)


@contextlib.contextmanager
def claimed(workdir: Path | Any) -> Iterator[Callable[[], None]]:
    """Makes the folder and locks it against other training runs until the end of the context or of this process.

    Yields a function to call before each write: it raises UserError if another run has taken over the lock because this process
    did not renew it in time (this cannot happen with local folders). New folders that are empty at the end are removed. Only the
    first of several processes takes the lock. Raises UserError if the folder cannot be made or written, or is locked.
    """
    if jax.process_index():
        yield lambda: None
    elif paths.is_remote(workdir):
        lock = ObjectLock(workdir)
        try:
            yield lock.check
        finally:
            lock.release()
    else:
        with _claimed(workdir):
            yield lambda: None


@contextlib.contextmanager
def _claimed(workdir: Path) -> Iterator[None]:
    made = [folder for folder in (workdir / "checkpoints", workdir, *workdir.absolute().parents) if not folder.exists()]
    paths.make_folder(workdir, f"--workdir={workdir}")
    lock = _lock(workdir)
    try:
        yield
    finally:
        if lock is not None:
            (workdir / LOCK).unlink(missing_ok=True)  # before the lock is released: no other process can lock a deleted file
            os.close(lock)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _lock(workdir: Path) -> int | None:
    """The descriptor of the lock file, locked until it is closed; None if the file system does not support locks."""
    path = workdir / LOCK
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = " ".join(os.read(lock, 500).decode("utf-8", "replace").split()) or "unknown"
            os.close(lock)
            raise UserError(_taken(workdir, owner)) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): make sure that no other training runs there", workdir, error.strerror)
            os.close(lock)
            return None
        if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
            break
        os.close(lock)  # its owner deleted the file after it was opened here
    os.truncate(lock, 0)
    os.write(lock, f"{_self()}\n".encode())
    return lock


def _self() -> str:
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}"


def _taken(workdir: Any, owner: str) -> str:
    return f"another training run uses {workdir} ({owner}); wait for it, stop it, or choose another --workdir"


def machine() -> str:
    """An identifier shared by the processes that see each other's process ids; "" if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


class ObjectLock:
    """A lock in a bucket: an object that its owner rewrites every BEAT seconds.

    A write fails if another process has written since. A lock is taken over at once if its process is known to be dead, else
    if it has not changed for PATIENCE seconds. The waiting process measures this: clocks of machines are not compared.
    """

    def __init__(self, workdir: Any):
        self.workdir, self.blob, self.generation = workdir, paths.blob(workdir / LOCK), 0
        self.content = json.dumps({"owner": _self(), "machine": machine(), "process": os.getpid(), "token": uuid.uuid4().hex})
        self.lost, self.ended, self.beaten = False, threading.Event(), time.monotonic()
        self.writing = threading.Lock()
        self._take()
        self.thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self.thread.start()

    def check(self) -> None:
        """Raises UserError if another run has taken over the lock."""
        if time.monotonic() - self.beaten > PATIENCE / 2:  # this process was suspended: is the lock still ours?
            self._renew()
        if self.lost:
            raise UserError(
                f"another training run took over {self.workdir}, as this one did not renew its lock for {PATIENCE:.0f} s; "
                "nothing more is written there: let the other run continue"
            )

    def release(self) -> None:
        from google.api_core.exceptions import GoogleAPIError

        self.ended.set()
        self.thread.join()
        if not self.lost:
            with contextlib.suppress(GoogleAPIError, OSError):  # it expires anyway
                self.blob.delete(if_generation_match=self.generation)

    def _take(self) -> None:
        seen = 0  # the generation of an object that does not exist
        while not self._write(seen):
            seen = self._abandoned()

    def _abandoned(self) -> int:
        """The generation of a lock whose owner is dead; 0 if the lock is gone. Raises UserError if the owner is alive."""
        seen, owner = self._read()
        name, since = owner.get("owner", "unknown"), time.monotonic()
        if seen and not _dead(owner):
            log.info("%s is locked by %s: waiting up to %.0f s to see if it is running", self.workdir, name, PATIENCE)
        while seen and not _dead(owner) and time.monotonic() - since < PATIENCE:
            time.sleep(PATIENCE / 60)
            now, _ = self._read()
            if now == 0:
                return 0
            if now != seen:
                raise UserError(_taken(self.workdir, name))
        if seen:
            log.warning("%s was locked by %s, which is no longer running", self.workdir, name)
        return seen

    def _read(self) -> tuple[int, dict]:
        """(generation, contents) of the lock; (0, {}) if there is none."""
        from google.api_core.exceptions import NotFound

        found = self.blob.bucket.get_blob(self.blob.name)
        if found is None:
            return 0, {}
        generation = found.generation  # before the download, which may reset it
        try:
            content = json.loads(found.download_as_bytes())
        except (ValueError, NotFound):
            content = {}
        return generation, content if isinstance(content, dict) else {}

    def _write(self, generation: int) -> bool:
        """Writes the lock if it still has this generation; whether it is ours now."""
        from google.api_core.exceptions import PreconditionFailed

        fresh = self.blob.bucket.blob(self.blob.name)
        try:
            fresh.upload_from_string(self.content, if_generation_match=generation)
            self.generation = fresh.generation
        except PreconditionFailed:
            found, content = self._read()
            if content.get("token") != json.loads(self.content)["token"]:
                return False
            self.generation = found  # our own write succeeded, and only its response was lost
        self.beaten = time.monotonic()
        return True

    def _beat(self) -> None:
        from google.api_core.exceptions import GoogleAPIError

        while not self.ended.wait(BEAT) and not self.lost:
            try:
                self._renew()
            except (GoogleAPIError, OSError) as error:
                log.warning("%s: the lock was not renewed (%s); retrying", self.workdir, error)

    def _renew(self) -> None:
        with self.writing:
            if not self.lost:
                self.lost = not self._write(self.generation)


def _dead(owner: dict) -> bool:
    """Whether the process of a lock is known to be dead."""
    if not owner.get("machine") or owner["machine"] != machine() or not isinstance(owner.get("process"), int):
        return False
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
