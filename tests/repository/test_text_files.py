"""Text is read and written as UTF-8 in any locale: every call in the package names its encoding."""

import ast

import pytest
from helpers.places import ROOT

SOURCES = sorted(path for folder in ("jaxseq", "configs", "scripts") for path in (ROOT / folder).rglob("*.py"))


def unnamed(source: str) -> list[int]:
    """Lines of calls that open a text file in the locale's encoding."""
    tree, lines = ast.parse(source), []
    own = any(isinstance(node, ast.FunctionDef) and node.name == "open" for node in tree.body)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if any(keyword.arg in ("encoding", None) for keyword in call.keywords):
            continue
        words = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        words += [k.value.value for k in call.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
        modes = [word for word in words if isinstance(word, str) and set(word) <= set("rwaxbt+")]
        text = any(keyword.arg in ("text", "universal_newlines") for keyword in call.keywords)
        found = {
            "a method of a path": name in ("read_text", "write_text"),
            "a mode without b": name in ("open", "fdopen", "NamedTemporaryFile") and modes and "b" not in modes[-1],
            "the built-in open": isinstance(call.func, ast.Name) and name == "open" and not own and not modes,
            "the output of a process": name in ("Popen", "run", "check_output") and text,
        }
        lines += [call.lineno] if any(found.values()) else []
    return lines


@pytest.mark.parametrize(
    "line", ["p.read_text()", "p.write_text(x)", "open(x)", "open(x, 'w')", "p.open('a')", "gzip.open(x, 'rt')",
             "subprocess.run(x, text=True)"],
)  # fmt: skip
def test_what_is_found(line):
    assert unnamed(line) == [1]


@pytest.mark.parametrize("line", ["p.read_text(encoding='utf-8')", "open(x, 'rb')", "p.open('rb')", "archive.open(member)"])
def test_what_is_let_through(line):
    assert unnamed(line) == []


def test_every_text_file_names_its_encoding():
    found = {f"{path.relative_to(ROOT)}:{line}" for path in SOURCES for line in unnamed(path.read_text(encoding="utf-8"))}
    assert not found
