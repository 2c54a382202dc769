"""Runs the slow tests file by file and writes their results to tests/slow.json, which is committed.

    python tests/slow.py [WORD ...]     runs tests without an up-to-date result (only those with a WORD in their names)

It can be interrupted and restarted: results are written as they come. The results of a file are for one state of the sources that
it covers. If these change, the results are stale: the default run says so, and the next run of this command repeats the file.
"""

import ast
import datetime
import hashlib
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "slow.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# What the tests of a folder cover in addition to their own files; those of any other folder cover the whole package.
OPS = ("jaxseq/ops", "jaxseq/testing", "jaxseq/compat.py")
FILES = tuple(f"{name}.py" for name in ("layers", "forms", "call", "shards", "config", "config_files", "defaults", "overrides"))
MODELS = (*OPS, *(f"jaxseq/{name}" for name in ("mixers", "blocks", "models", *FILES)), "configs")
COVERS = {"ops": OPS, "kernels": (*OPS, "jaxseq/kernels"), "mixers": MODELS, "models": MODELS, "data": ("jaxseq/data",)}
COVERS |= {"convert": (*MODELS, "jaxseq/convert"), "train": (*MODELS, "jaxseq/train", "jaxseq/data")}


def covered(file: str) -> str:
    """A hash of the code that a test file covers, of the file, and of shared helpers, without docstrings and types."""
    places = (*COVERS.get(Path(file).parts[1], ("jaxseq", "configs")), "tests/helpers", "tests/conftest.py", file)
    paths = {path for place in places for path in ((ROOT / place).rglob("*.py") if (ROOT / place).is_dir() else [ROOT / place])}
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(ROOT).as_posix()} {outline(ast.parse(path.read_bytes()))}\n".encode())
    return digest.hexdigest()[:16]


def outline(node: Any) -> Any:
    """The syntax tree as nested lists, without docstrings and annotations, which do not change outcomes. Empty fields are left
    out, because only some versions of Python show them in `ast.dump`."""
    if isinstance(node, list):
        return [outline(part) for part in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
        fields["body"] = node.body[1:]
    if isinstance(node, ast.arg | ast.FunctionDef):
        fields = {name: value for name, value in fields.items() if name not in ("annotation", "returns")}
    return [type(node).__name__, *([name, outline(value)] for name, value in fields.items() if value is not None and value != [])]


def results() -> dict[str, dict]:
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}


def files() -> list[str]:
    """The test files with slow tests."""
    found = (path for path in (ROOT / "tests").rglob("test_*.py") if "mark.slow" in path.read_text("utf-8"))
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def summary() -> str:
    """One line: how many results are up to date, and which are stale, failed, incomplete or missing."""
    known, told = results(), {}
    for file in files():
        entry = known.get(file)
        outcomes = list(entry["tests"].values()) if entry else []
        state = (
            "never run" if not entry
            else "stale" if entry["hash"] != covered(file)
            else "failed" if "failed" in outcomes
            else f"run in part ({len(outcomes)} of {entry['of']})" if len(outcomes) < entry["of"]
            else "up to date"
        )  # fmt: skip
        told.setdefault(state, []).append(file.removeprefix("tests/"))
    parts = [f"{state}: {', '.join(names)}" for state, names in sorted(told.items()) if state != "up to date"]
    return "; ".join([f"{len(told.get('up to date', []))} of {len(files())} files up to date", *parts])


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def commit() -> str:
    """The commit of the sources; "-dirty" if there are uncommitted changes."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":!tests/slow.json")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


class Collected:
    """The ids of all slow tests, by file."""

    def __init__(self):
        self.by_file: dict[str, list[str]] = {}

    def pytest_collection_finish(self, session):
        for item in session.items:
            self.by_file.setdefault(item.nodeid.partition("::")[0], []).append(item.nodeid)


class Recorder:
    """Writes the outcome of each test into the results as soon as it is known."""

    def __init__(self, everything: dict, file: str, ids: list[str]):
        self.everything, self.entry, self.ids = everything, everything[file], set(ids)

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid if report.nodeid in self.ids else report.nodeid.rpartition("@")[0]  # xdist adds the group
            self.entry["tests"][name.partition("::")[2]] = report.outcome
            self.entry["seconds"] = round(self.entry["seconds"] + report.duration, 1)
            text = json.dumps(dict(sorted(self.everything.items())), indent=1, ensure_ascii=False)
            RESULTS.write_text(text + "\n", "utf-8")


def run(words: list[str]) -> int:
    collected, everything, worst = Collected(), results(), 0
    if code := pytest.main([*files(), "-m", "slow", "--collect-only", "-qq", "-n", "0"], plugins=[collected]):
        return code
    everything = {file: entry for file, entry in everything.items() if file in collected.by_file}
    for file, ids in collected.by_file.items():
        entry = everything.get(file, {})
        done = entry["tests"] if entry.get("hash") == covered(file) else {}
        done = {name: outcome for name, outcome in done.items() if outcome != "failed"}
        left = [i for i in ids if i.partition("::")[2] not in done and (not words or any(word in i for word in words))]
        if not left:
            continue
        everything[file] = {"hash": covered(file), "commit": commit(), "date": str(datetime.date.today()), "versions": versions()}
        everything[file] |= {"seconds": entry["seconds"] if done else 0.0, "of": len(ids), "tests": done}
        worst = max(worst, pytest.main([*left, "-m", "slow"], plugins=[Recorder(everything, file, ids)]))
    print(f"slow tests: {summary()}")
    return worst


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
