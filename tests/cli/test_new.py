"""`jaxseq new`, and the README's section "Add an architecture" followed literally in a copy of the repository."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.places import ROOT

from jaxseq import cli
from jaxseq.cli import new
from jaxseq.testing import compare

PAGE = (ROOT / "README.md").read_text("utf-8").partition("## Add an architecture\n")[2].partition("\n## ")[0]
KINDS = ("op", "mixer", "config", "oracle")
COPIED = ("jaxseq", "configs", "tests", "README.md", "setup.cfg", "setup.py", "ruff.toml")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def module(kind: str) -> types.ModuleType:
    found = types.ModuleType(kind)
    exec(compile(new.text(kind, "decay"), f"{kind}.py", "exec"), found.__dict__)
    return found


def test_the_code_on_the_page_is_that_of_the_files():
    files = [new.text(kind, "decay") for kind in KINDS]
    assert blocks("python") and all(any(block in text for text in files) for block in blocks("python"))


def test_names_become_class_names():
    assert "class SlowDecay(Mixer)" in new.text("mixer", "slow_decay")
    assert all("$" not in new.text(kind, "slow_decay") for kind in KINDS)


@pytest.mark.parametrize("form", ["recurrent", "parallel", "chunkwise"])
def test_the_new_op_is_its_plain_loop(form, x64):
    op, loop = module("op"), module("oracle").loop
    case = op.example(jax.random.key(0), 2, 11, np.float64)
    y, _ = op.FORMS[form](*case.xs, **case.weights, **({"chunk": 4} if form == "chunkwise" else {}))
    assert compare.error(y, loop(*map(np.asarray, case.xs), **{name: np.asarray(w) for name, w in case.weights.items()})) < 1e-12
    y, state = op.FORMS[form](case.xs[0][:, :0], **case.weights, state=case.state)
    assert y.shape == (2, 0, 5) and (state.S_BD == case.state.S_BD).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [("Decay", "lower-case"), ("2d", "lower-case"), ("class", "lower-case"), ("../x", "lower-case"),
     ("retention", "taken"), ("gru", "ops and mixers and configs"), ("swiglu", "mixers")],
)  # fmt: skip
def test_names_that_are_refused(name, message, capsys):
    assert cli.main(["new", name]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_no_checkout_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(new.jaxseq, "__file__", str(tmp_path / "site-packages" / "jaxseq" / "__init__.py"))
    assert cli.main(["new", "decay"]) == 2
    assert "pip install -e" in capsys.readouterr().err


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the repository. jaxseq/configs stands for the mapping of configs/ in an installation."""
    path = tmp_path_factory.mktemp("copy") / "repository"
    path.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, path)
    (path / "jaxseq" / "configs").symlink_to("../configs")
    return path


def run(copy: Path, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(copy), "XDG_CACHE_HOME": str(copy.parent / "cache")}
    done = subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


SHORT = """
import sys
from helpers.presets import TINY
from jaxseq import cli
from jaxseq.compare.presets import PRESETS
PRESETS["standard"] = TINY
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_page_to_the_letter(copy):
    lines = [shlex.split(line, comments=True) for line in blocks("bash")[0].splitlines()]
    assert [line[:2] for line in lines] == [["jaxseq", "new"], ["pytest", "-k"], ["jaxseq", "list"], ["jaxseq", "compare"]]
    written, tested, listed, compared = (
        run(copy, "-m", "pytest", *line[1:]) if line[0] == "pytest"
        else run(copy, "-c", f"import sys; sys.path.insert(0, 'tests')\n{SHORT}", *line[1:])
        for line in lines
    )  # fmt: skip
    assert all(f"{folder}/decay.py" in written for folder in ("jaxseq/ops", "jaxseq/mixers", "configs", "tests/oracles"))
    for law in ("split", "gradient", "stress", "parameters"):
        assert re.search(rf"\b{law}\b", tested)
    assert " passed" in tested and re.search(r"^ *decay ", listed, re.MULTILINE) and "decay" in compared
