"""Compiled programs are kept between runs, in the user's cache folder: the second run of a command does not compile again."""

import hashlib
import importlib.util
import os
import platform
from pathlib import Path

LIMIT = 2 << 30  # bytes that are kept, the programs used last


def cache_home() -> Path:
    """~/.cache/jaxseq, or jaxseq under XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxseq"


def location() -> Path:
    """Where compiled programs lie: JAX_COMPILATION_CACHE_DIR if that is set, else below the user's cache folder."""
    own = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(own) if own else cache_home() / "programs" / _machine()


def folder() -> Path | None:
    """`location`, or None if JAXSEQ_CACHE=0 says that none are kept."""
    off = os.environ.get("JAXSEQ_CACHE") == "0" and not os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return None if off else location()


def files(path: Path) -> list[Path]:
    """What jax keeps in such a folder, by the names that it gives; nothing else that may lie there."""
    return [file for ending in ("cache", "atime") for file in path.glob(f"*-{ending}") if file.is_file()]


def use() -> None:
    """From here on jax keeps what it compiles, unless JAXSEQ_CACHE=0, or something else has been set up already."""
    import jax

    path = folder()
    if path is None or jax.config.jax_compilation_cache_dir:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written: it costs time, nothing else
        return
    if not os.access(path, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if importlib.util.find_spec("filelock"):  # with which jax drops what was used longest ago
        jax.config.update("jax_compilation_cache_max_size", LIMIT)


def _machine() -> str:
    """A name for the processor: code that was compiled for another one must not run here, in a home that machines share."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    known = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return hashlib.blake2b(f"{platform.machine()} {known}".encode(), digest_size=6).hexdigest()
