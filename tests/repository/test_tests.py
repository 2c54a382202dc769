"""No test compares a value with itself: such a test cannot fail."""

import ast
import re

import pytest
from helpers.places import TESTS


def self_comparisons(source: str) -> list[int]:
    """Lines that compare an expression with itself or `approx` of it, or pass it twice to an assertion or an error measure."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq):
            sides = [node.left, node.comparators[0]]
        elif isinstance(node, ast.Call) and re.search(r"assert|\.error$|\.worst$", ast.unparse(node.func)):
            sides = node.args[:2]
        else:
            continue
        bare = [side.args[0] if isinstance(side, ast.Call) and "approx" in ast.unparse(side.func) else side for side in sides]
        if len(bare) == 2 and ast.dump(bare[0]) == ast.dump(bare[1]):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("line", ["assert a[0] == approx(a[0])", "assert_allclose(x, x, rtol=1)", "compare.error(y, y) < 1"])
def test_such_a_line_is_found(line):
    assert self_comparisons(line) == [1]
    assert self_comparisons(line.replace("x, x", "x, y").replace("y, y", "y, z").replace("(a[0])", "(a[1])")) == []


def test_no_test_compares_a_value_with_itself():
    for path in TESTS.rglob("*.py"):
        assert not (lines := self_comparisons(path.read_text())), f"{path.name}: {lines}"
