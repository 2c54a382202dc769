"""Config files: Python with a function get_config(size), by path or by name in configs/."""

import contextlib
import importlib.util
import inspect
import traceback
import types
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from jaxseq import configs, defaults, registry
from jaxseq.errors import UserError


def get(name: str, size: str = "") -> ConfigDict:
    """The config of a file: its get_config(size).

    name: of a built-in config, or a path that ends in ".py". Raises UserError if there is no such file, if it has no such
    function or returns no config, and for an error within the file, with its line.
    """
    module = load(name)
    function = getattr(module, "get_config", None)
    try:
        inspect.signature(function).bind(size)
    except TypeError:
        what = "cannot be called with a size" if callable(function) else "is missing"
        raise UserError(f"{name}: the function get_config(size) {what}; see any file in configs/ for an example") from None
    with _located(module.__file__):
        found = function(size)
    sections = ("model", *defaults.sections())
    if not isinstance(found, ConfigDict) or not all(isinstance(found.get(section), ConfigDict) for section in sections):
        raise UserError(f"{name}: get_config(size) does not return a config; start from jaxseq.config.base()")
    return found


def load(name: str) -> types.ModuleType:
    """The module of a config file, see `get`."""
    if not name.endswith(".py"):
        return _built_in(name)
    path = Path(name)
    if not path.is_file() and path.parent == Path("configs") and path.stem in registry.names("configs"):
        return _built_in(path.stem)  # `--config=configs/mamba.py` works from any folder
    if not path.is_file():
        raise UserError(f"there is no config file {name}; the built-in ones are: {', '.join(registry.names('configs'))}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    with _located(spec.origin):
        spec.loader.exec_module(module)
    return module


def _built_in(name: str) -> types.ModuleType:
    with _located(str(Path(configs.__path__[0], f"{name}.py"))):
        return registry.load("configs", name)


@contextlib.contextmanager
def _located(path: str) -> Iterator[None]:
    """Turns an exception from the code of the file into a UserError with the file, the line and the error."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        if isinstance(error, SyntaxError) and error.filename == path:
            lines, error = [error.lineno], SyntaxError(error.msg)  # without the repeated position
        where = f"{path}, line {lines[-1]}" if lines and lines[-1] else path
        what = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
        raise UserError(f"{where}: {what}") from error
