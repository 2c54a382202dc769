"""The cache of compiled programs in the folder of a comparison."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from jaxseq import paths


@contextlib.contextmanager
def compilation_cache(folder: Path) -> Iterator[None]:
    """Caches compiled programs in `folder`, for the measurements and for a resumed comparison, unless the user has set
    another cache."""
    if jax.config.jax_compilation_cache_dir or paths.is_remote(folder):
        yield
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
