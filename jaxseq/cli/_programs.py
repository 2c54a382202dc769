"""Caches compiled programs in the user's cache folder, so that the second run of a command does not compile again."""

import hashlib
import importlib.util
import os
import platform
from pathlib import Path

LIMIT = 2 << 30  # bytes to keep; the least recently used programs are removed first


def cache_home() -> Path:
    """~/.cache/jaxseq, or jaxseq under XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxseq"


def location() -> Path:
    """The folder of compiled programs: JAX_COMPILATION_CACHE_DIR if set, else a folder in the user's cache folder."""
    own = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(own) if own else cache_home() / "programs" / _machine()


def folder() -> Path | None:
    """`location`, or None if JAXSEQ_CACHE=0 switches the cache off."""
    off = os.environ.get("JAXSEQ_CACHE") == "0" and not os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return None if off else location()


def files(path: Path) -> list[Path]:
    """jax's own files in such a folder, recognised by their names; other files are not listed."""
    return [file for ending in ("cache", "atime") for file in path.glob(f"*-{ending}") if file.is_file()]


def use() -> None:
    """Switches jax's compilation cache on, unless JAXSEQ_CACHE=0 or another cache has been set up."""
    import jax

    path = folder()
    if path is None or jax.config.jax_compilation_cache_dir:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:  # the home folder is not writable: this costs only time
        return
    if not os.access(path, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if importlib.util.find_spec("filelock"):  # jax needs it to remove the least recently used programs
        jax.config.update("jax_compilation_cache_max_size", LIMIT)


def _machine() -> str:
    """A name for the processor. Machines may share a home folder, and code compiled for another processor must not run."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    known = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return hashlib.blake2b(f"{platform.machine()} {known}".encode(), digest_size=6).hexdigest()
