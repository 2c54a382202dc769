"""Names are file names: an op, a mixer, a block or an objective is found by its file name.

Adding one adds a file; nothing is registered anywhere. Files that begin with "_" are helpers and have no name.
"""

import ast
import functools
import importlib
import inspect
import pkgutil
from types import ModuleType

from flax import linen as nn

from jaxseq.errors import UserError


@functools.cache
def names(package: str) -> tuple[str, ...]:
    """Sorted names in `jaxseq.PACKAGE`, e.g. names("ops")."""
    path = importlib.import_module(f"jaxseq.{package}").__path__
    return tuple(sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_") and not m.ispkg))


def load(package: str, name: str) -> ModuleType:
    """The module jaxseq.PACKAGE.NAME. Raises UserError with the list of names for an unknown one."""
    if name not in names(package):
        raise UserError(f"there is no {name!r} in {package}; choose one of: {', '.join(names(package))}")
    return importlib.import_module(f"jaxseq.{package}.{name}")


def doc(module: ModuleType) -> str:
    """The module's docstring; read from the source under `python -OO`, which drops it."""
    if module.__doc__:
        return module.__doc__.strip()
    return (ast.get_docstring(ast.parse(inspect.getsource(module)), clean=False) or "").strip()


def load_class(package: str, name: str) -> type[nn.Module]:
    """The one public Linen class that the file defines."""
    module = load(package, name)
    found = [
        value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, nn.Module)
        and value.__module__ == module.__name__
        and not key.startswith("_")
    ]
    if len(found) != 1:
        raise ImportError(f"{module.__name__} must define one public nn.Module, it defines {len(found)}")
    return found[0]
