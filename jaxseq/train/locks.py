"""One training a folder: the second is refused in a line that names the first."""

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
BEAT = 20.0  # seconds between two signs of life of who holds an object
PATIENCE = 60.0  # seconds without one after which it counts as dead
log = logging.getLogger(__name__)


@contextlib.contextmanager
def claimed(workdir: Path | Any) -> Iterator[Callable[[], None]]:
    """Makes the folder, and keeps every other training out of it until the end, or until this process is dead.

    Yields a function to call before anything is written there: it raises UserError when another training has taken the
    folder meanwhile, as this process gave no sign of life (it cannot happen to local folders). Folders that were made and are
    still empty at the end are removed again. Of several processes the first alone claims it. Raises UserError when the folder
    cannot be made or written, or another training has it.
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
    _make(workdir)
    lock = _lock(workdir)
    try:
        yield
    finally:
        if lock is not None:
            (workdir / LOCK).unlink(missing_ok=True)  # before it is let go, so that nobody holds a removed one
            os.close(lock)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _make(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--workdir={workdir} is a file, or lies below one; name a folder") from None
    except PermissionError:
        raise UserError(f"--workdir={workdir} cannot be made here; choose a folder that you may write") from None
    if not os.access(workdir, os.W_OK):
        raise UserError(f"--workdir={workdir} cannot be written; choose a folder that you may write")


def _lock(workdir: Path) -> int | None:
    """The open lock file, which holds the lock as long as it is open; None where the file system has no locks."""
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
            log.warning("%s cannot be locked (%s): see to it that no other training runs there", workdir, error.strerror)
            os.close(lock)
            return None
        if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
            break
        os.close(lock)  # its owner removed it in between
    os.truncate(lock, 0)
    os.write(lock, f"{_self()}\n".encode())
    return lock


def _self() -> str:
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}"


def _taken(workdir: Any, owner: str) -> str:
    return f"another training runs in {workdir} ({owner}); wait for it, stop it, or choose another --workdir"


def machine() -> str:
    """What two processes have in common that see each other's process numbers; "" where it cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


class ObjectLock:
    """A lock in a bucket: an object that only one can create, written anew every BEAT seconds by whoever holds it.

    Each write is on the condition that nobody else has written since. A lock whose process is known to be dead is taken over
    at once, one that does not change for PATIENCE seconds after that time: no clock of any machine is asked.
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
        """Raises UserError when another has the lock."""
        if time.monotonic() - self.beaten > PATIENCE / 2:  # this process was held up: is it still ours?
            self._renew()
        if self.lost:
            raise UserError(
                f"another training has taken {self.workdir} over, as this one gave no sign of life for {PATIENCE:.0f} s; "
                "nothing more is written there: let that one go on"
            )

    def release(self) -> None:
        from google.api_core.exceptions import GoogleAPIError

        self.ended.set()
        self.thread.join()
        if not self.lost:
            with contextlib.suppress(GoogleAPIError, OSError):  # it grows old and counts no longer
                self.blob.delete(if_generation_match=self.generation)

    def _take(self) -> None:
        seen = 0  # the generation of an object that there is not
        while not self._write(seen):
            seen = self._abandoned()

    def _abandoned(self) -> int:
        """The generation of a lock whose owner is dead; 0 when it is there no longer. Raises UserError when it is alive."""
        seen, owner = self._read()
        name, since = owner.get("owner", "unknown"), time.monotonic()
        if seen and not _dead(owner):
            log.info("%s is claimed by %s: waiting up to %.0f s for a sign of life", self.workdir, name, PATIENCE)
        while seen and not _dead(owner) and time.monotonic() - since < PATIENCE:
            time.sleep(PATIENCE / 60)
            now, _ = self._read()
            if now == 0:
                return 0
            if now != seen:
                raise UserError(_taken(self.workdir, name))
        if seen:
            log.warning("%s was claimed by %s, which is dead", self.workdir, name)
        return seen

    def _read(self) -> tuple[int, dict]:
        """(generation, contents) of the lock; 0 when there is none."""
        from google.api_core.exceptions import NotFound

        found = self.blob.bucket.get_blob(self.blob.name)
        if found is None:
            return 0, {}
        generation = found.generation  # before the download, which may forget it
        try:
            content = json.loads(found.download_as_bytes())
        except (ValueError, NotFound):
            content = {}
        return generation, content if isinstance(content, dict) else {}

    def _write(self, generation: int) -> bool:
        """Whether the lock, of that generation, is ours now."""
        from google.api_core.exceptions import PreconditionFailed

        fresh = self.blob.bucket.blob(self.blob.name)
        try:
            fresh.upload_from_string(self.content, if_generation_match=generation)
            self.generation = fresh.generation
        except PreconditionFailed:
            found, content = self._read()
            if content.get("token") != json.loads(self.content)["token"]:
                return False
            self.generation = found  # the answer to our own write was lost
        self.beaten = time.monotonic()
        return True

    def _beat(self) -> None:
        from google.api_core.exceptions import GoogleAPIError

        while not self.ended.wait(BEAT) and not self.lost:
            try:
                self._renew()
            except (GoogleAPIError, OSError) as error:
                log.warning("%s: the lock was not renewed (%s), trying again", self.workdir, error)

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
