"""One idea has one name."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import jaxseq

PACKAGE = Path(jaxseq.__file__).parent
PROTOCOLS = {"Summary"}  # every op has its own


def test_no_two_classes_have_one_name():
    places = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    twice = {name: found for name, found in places.items() if len(found) > 1 and name not in PROTOCOLS}
    assert not twice


SHAPE = re.compile(r"(?:[A-Za-z]|[A-Za-z]\w*[a-z0-9])_([A-Z0-9]*[A-Z][A-Z0-9]*)")  # q_BTHK, S_BHKV, start_BT1


def shape_letters(source: str) -> set[str]:
    """Letters of the shape suffixes of variables, arguments and fields."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        names |= {getattr(node, field) for field in ("id", "arg") if isinstance(getattr(node, field, None), str)}
    return {letter for name in names if (found := SHAPE.fullmatch(name)) for letter in found[1] if letter.isalpha()}


def dimension_key() -> list[str]:
    return re.findall(r"(?:^ {4}|; | {2,}|, )([A-Z]) [a-z]", jaxseq.__doc__, re.MULTILINE)


def test_the_dimension_key_has_each_letter_once_and_all_that_are_used():
    assert shape_letters("def f(q_BT, *, w=1): S_HK = x.y_Q + MAX_D + q_BT[0]; n_B1S: int = 0") == set("BTHKS")
    key = dimension_key()
    assert sorted(set(key)) == sorted(key)
    used = {path.name: shape_letters(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert {name: letters - set(key) for name, letters in used.items() if letters - set(key)} == {}
    assert set(key) == set().union(*used.values())
