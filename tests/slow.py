"""Runs the slow tests and writes their results to tests/slow.json, which is committed.

    python tests/slow.py [WORD ...]     runs tests without an up-to-date result (only those with a WORD in their names)

It can be interrupted and restarted: results are written as they come. A group of results is the tests of one architecture or op
in one file, or the other tests of a file. If sources that it covers change, the group is stale: the default run says so, and the
next run of this command repeats it.
"""

import contextlib
import datetime
import fcntl
import json
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import covers
import pytest

import jaxseq

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "slow.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def results() -> dict[str, dict[str, dict]]:
    """{file: {architecture or op, or "": group}}, group = {hash, commit, date, versions, seconds, of, tests: {name: outcome}}."""
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}


def files() -> list[str]:
    """The test files with slow tests: those that use the mark, or the argument of `helpers.laws.cells`."""
    marks = re.compile(r"mark\.slow|cells\(.*slow=")
    found = (path for path in (ROOT / "tests").rglob("test_*.py") if marks.search(path.read_text("utf-8")))
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def state(file: str, about: str, group: dict) -> str:
    if group["hash"] != covers.covered(file, about):
        return "stale"
    if "failed" in group["tests"].values():
        return "failed"
    return "up to date" if len(group["tests"]) == group["of"] else "run in part"


def summary() -> str:
    """One line: how many groups of results are up to date, and which are stale, failed, incomplete or missing."""
    known, told = results(), {}
    for file in files():
        if file not in known:
            told.setdefault("never run", []).append((file, ""))
        for about, group in known.get(file, {}).items():
            told.setdefault(state(file, about, group), []).append((file, about))
    tested = {about for groups in known.values() for about in groups}
    told.setdefault("never run", []).extend(("architecture", name) for name in jaxseq.names() if name not in tested)
    parts = [f"{state}: {_names(groups)}" for state, groups in sorted(told.items()) if groups and state != "up to date"]
    return "; ".join([f"{len(told.get('up to date', []))} of {sum(map(len, told.values()))} groups up to date", *parts])


def _names(groups: list[tuple[str, str]]) -> str:
    """The groups by file, each with at most five of its architectures or ops."""
    by_file: dict[str, list[str]] = {}
    for file, about in groups:
        by_file.setdefault(file.removeprefix("tests/"), []).append(about)
    shown = lambda names: ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")  # noqa: E731
    return ", ".join(file if names == [""] else f"{file} ({shown(names)})" for file, names in by_file.items())


def commit() -> str:
    """The commit of the sources; "-dirty" if there are uncommitted changes."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":!tests/slow.json")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


class Collected:
    """The ids of all slow tests, by file and by architecture or op."""

    def __init__(self):
        self.ids: dict[str, dict[str, list[str]]] = {}

    def pytest_collection_finish(self, session):
        for item in session.items:
            file = item.nodeid.partition("::")[0]
            self.ids.setdefault(file, {}).setdefault(covers.subject(item.nodeid), []).append(item.nodeid)


class Recorder:
    """Writes the outcome of each test as soon as it is known."""

    def __init__(self, everything: dict, ids: list[str]):
        self.everything, self.ids = everything, set(ids)

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid if report.nodeid in self.ids else report.nodeid.rpartition("@")[0]  # xdist adds the group
            group = self.everything[name.partition("::")[0]][covers.subject(name)]
            group["tests"][name.partition("::")[2]] = report.outcome
            group["seconds"] = round(group["seconds"] + report.duration, 1)
            write(self.everything)


def write(everything: dict) -> None:
    ordered = {file: dict(sorted(groups.items())) for file, groups in sorted(everything.items())}
    RESULTS.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", "utf-8")


def run(words: list[str]) -> int:
    collected, everything = Collected(), results()
    if code := pytest.main([*files(), "-m", "slow", "--collect-only", "-qq", "-n", "0"], plugins=[collected]):
        return code
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    everything = {
        file: {about: group for about, group in everything.get(file, {}).items() if about in groups}
        for file, groups in collected.ids.items()
    }
    left = []
    for file, groups in collected.ids.items():
        for about, ids in groups.items():
            group, covered = everything[file].get(about, {}), covers.covered(file, about)
            done = group["tests"] if group.get("hash") == covered else {}
            done = {name: outcome for name, outcome in done.items() if outcome != "failed"}
            missing = [i for i in ids if i.partition("::")[2] not in done and (not words or any(word in i for word in words))]
            if missing:
                left += missing
                about_it = {"commit": commit(), "date": str(datetime.date.today()), "versions": versions}
                seconds = group["seconds"] if done else 0.0
                everything[file][about] = {"hash": covered, **about_it, "seconds": seconds, "of": len(ids), "tests": done}
    write(everything)
    code = pytest.main([*left, "-m", "slow"], plugins=[Recorder(everything, left)]) if left else 0
    print(f"slow tests: {summary()}")
    return code


@contextlib.contextmanager
def locked():
    """Two runs at once would overwrite each other's results."""
    with Path(__file__).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("slow.py is already running in this checkout; wait for it")
        yield


if __name__ == "__main__":
    with locked():
        sys.exit(run(sys.argv[1:]))
