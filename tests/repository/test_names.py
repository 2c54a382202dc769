"""Names: unique class names, the dimension key, standard terms."""

import ast
import re
from collections import defaultdict
from pathlib import Path

from helpers.places import ROOT

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


PRIVATE = {  # former private words of this project: the standard term
    "door": "entry point",
    "room": "capacity",
    "stretch": "segment",
    "stretches": "segments",
    "twin": "copy, or kernel",
    "twins": "copies, or kernels",
    "owed": "required",
    "gift": "result",
}


def private_words(text: str) -> set[str]:
    return PRIVATE.keys() & set(re.findall(r"[a-z]+", text.lower()))


def test_words_are_those_of_the_field():
    assert private_words("def room(self):  # the model's door\n    twin_B = broom") == {"room", "door", "twin"}
    files = [*PACKAGE.rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "configs").glob("*.py")]
    found = {path.name: private_words(path.read_text("utf-8")) for path in files if path.name != "CHANGELOG.md"}
    assert not {name: {word: PRIVATE[word] for word in words} for name, words in found.items() if words}
