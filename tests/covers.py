"""Which sources a slow test covers, and a hash of them.

A test of one architecture, op or mixer covers what its files import, directly or not; any other test covers whole folders. So a
new mixer leaves the results of all architectures without it valid.
"""

import ast
import functools
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDERS = {"data": ("jaxseq/data",), "kernels": ("jaxseq/kernels", "jaxseq/ops", "jaxseq/testing")}  # the others: everything
# Folders with tests of one architecture, op or mixer, which run no command. Every architecture covers ALWAYS, whatever its config
# names.
BY_SUBJECT = ("ops", "mixers", "models", "testing")
ALWAYS = ("jaxseq/blocks", "jaxseq/models/lm.py", "jaxseq/config.py", "jaxseq/defaults.py", "jaxseq/overrides.py")
REPORTING = ("tests/slow.py", "tests/covers.py")
# Imported, and without effect on those tests: `import jaxseq` imports them, and config.py asks for vocabularies.
WITHOUT_EFFECT = ("jaxseq/__init__.py", "jaxseq/convert/", "jaxseq/data/", "configs/_rates.py", *REPORTING)


def subject(test: str) -> str:
    """The architecture, op or mixer of a test such as "tests/models/test_laws.py::test_law[gru-split]"; "" if it has none."""
    file, _, name = test.partition("::")
    word = next(iter(re.findall(r"[\w.]+", name.partition("[")[2])), "")
    places = (f"configs.{word}", f"jaxseq.ops.{word}", f"jaxseq.mixers.{word}")
    named = Path(file).parts[1] in BY_SUBJECT and any(map(_path, places))
    return word if named else ""


def covered(file: str, about: str) -> str:
    """A hash of what the tests of `about` in a file cover, without docstrings and types."""
    return _hash(frozenset(sources(file, about)))


def sources(file: str, about: str) -> set[str]:
    """The files, relative to the root."""
    places, left_out = {file, "tests/conftest.py"}, WITHOUT_EFFECT
    if not about:
        places |= _files(FOLDERS.get(Path(file).parts[1], ("jaxseq", "configs")))
        left_out = REPORTING
    elif config := _path(f"configs.{about}"):
        named = (_path(f"jaxseq.{folder}.{word}") for folder in ("mixers", "models") for word in _words(config))
        places |= {config, *_files(ALWAYS), *filter(None, named)}
    else:
        places |= set(filter(None, (_path(f"jaxseq.{folder}.{about}") for folder in ("ops", "mixers"))))
    found: set[str] = set()
    while places := {path for path in places - found if not path.startswith(left_out)}:
        found |= places
        places = set().union(*map(_imports, places))
    return found


def _files(places: Iterable[str]) -> set[str]:
    paths = (path for place in places for path in ((ROOT / place).rglob("*.py") if (ROOT / place).is_dir() else [ROOT / place]))
    return {path.relative_to(ROOT).as_posix() for path in paths}


@functools.cache
def _path(module: str) -> str | None:
    """The file of a module of the package, of configs/ or of tests/, if there is one."""
    name = module.removeprefix("jaxseq.") if module.startswith("jaxseq.configs") else module
    for folder in ("", "tests/"):
        for path in (f"{folder}{name.replace('.', '/')}.py", f"{folder}{name.replace('.', '/')}/__init__.py"):
            if (ROOT / path).is_file():
                return path
    return None


@functools.cache
def _tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_bytes())


@functools.cache
def _imports(path: str) -> frozenset[str]:
    """The files that a file imports, in functions too."""
    modules: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    packages = {".".join(parts[:count]) for name in modules for parts in [name.split(".")] for count in range(1, len(parts))}
    return frozenset(found for name in modules | packages if (found := _path(name)))


def _words(path: str) -> set[str]:
    """Names and words of texts in a file, without its docstrings: among them the mixers of a config."""
    return set(re.findall(r"\w+", str(_outline(_tree(path)))))


@functools.cache
def _hash(paths: frozenset[str]) -> str:
    return hashlib.sha256("\n".join(f"{path} {_hash_of_file(path)}" for path in sorted(paths)).encode()).hexdigest()[:16]


@functools.cache
def _hash_of_file(path: str) -> str:
    return hashlib.sha256(str(_outline(_tree(path))).encode()).hexdigest()


def _outline(node: Any) -> Any:
    """The syntax tree as nested lists, without docstrings and annotations, which do not change outcomes. Empty fields are left
    out, because only some versions of Python show them in `ast.dump`."""
    if isinstance(node, list):
        return [_outline(part) for part in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
        fields["body"] = node.body[1:]
    if isinstance(node, ast.arg | ast.FunctionDef):
        fields = {name: value for name, value in fields.items() if name not in ("annotation", "returns")}
    filled = {name: value for name, value in fields.items() if value is not None and value != []}
    return [type(node).__name__, *([name, _outline(value)] for name, value in filled.items())]
