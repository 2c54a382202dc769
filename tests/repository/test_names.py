"""One idea has one name."""

import ast
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
