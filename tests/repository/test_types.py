"""Every public function and method of the package names the types of its parameters and of its result."""

import ast
from collections.abc import Iterator

import pytest
from helpers.places import ROOT

SOURCES = sorted((ROOT / "jaxseq").rglob("*.py"))


def functions(body: list[ast.stmt], method: bool = False) -> Iterator[tuple[ast.FunctionDef, bool]]:
    """(function, whether it is a method) of the public functions, and of the methods of the public classes."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from functions(node.body, method=True)
        elif isinstance(node, ast.FunctionDef) and (node.name == "__call__" or not node.name.startswith("_")):
            yield node, method


def untyped(source: str) -> list[str]:
    """"function(parameter)" for every parameter without a type, "function -> ?" for every result without one."""
    found = []
    for node, method in functions(ast.parse(source).body):
        spec = node.args
        given = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]
        own = given[1:] if method and given and given[0].arg in ("self", "cls") else given
        found += [f"{node.name}({each.arg})" for each in own if each.annotation is None]
        found += [f"{node.name} -> ?"] if node.returns is None else []
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f(x): ...", ["f(x)", "f -> ?"]),
        ("def f(*x, y=1, **z) -> int: ...", ["f(y)", "f(x)", "f(z)"]),
        ("class A:\n def f(self, x: int): ...", ["f -> ?"]),
        ("class A:\n def __call__(self, x) -> int: ...", ["__call__(x)"]),
        ("def _f(x): ...\nclass _A:\n def f(self): ...\nclass B:\n def f(self) -> int: ...", []),
        ("def f(x: int) -> int:\n def inner(y): ...", []),
    ],
)
def test_what_is_found(source, found):
    assert untyped(source) == found


def test_public_functions_name_their_types():
    found = [f"{path.relative_to(ROOT)}: {each}" for path in SOURCES for each in untyped(path.read_text(encoding="utf-8"))]
    assert not found
