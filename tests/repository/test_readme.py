"""Every command block of the README, and its Python block, run as printed, at small settings."""

import re
import shlex
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers.places import ROOT
from helpers.presets import TINY

import jaxseq
from jaxseq import cli
from jaxseq.compare.presets import PRESETS

README = (ROOT / "README.md").read_text("utf-8")
# What makes each command short. The published model is replaced by a tiny one with the fields in LLAMA.
LLAMA = {"model.width": 16, "model.stack": "1*(attention swiglu)", "model.swiglu.hidden": 24, "model.vocab": 300}
LLAMA |= {"model.attention.heads": 2, "model.attention.kv_heads": 1}
TRAIN = {"train.steps": 2, "train.batch": 2, "train.length": 16, "train.warmup": 1, "eval.documents": 1, "eval.length": 64}
MAMBA = {"model.width": 16, "model.stack": "1*(mamba)"}
SMALL = {
    "train --config=llama:smollm2-135m": TRAIN | LLAMA,
    "train --config=mamba": TRAIN | MAMBA,
    "generate": ["--max_tokens=4"],
    "compare": ["--architectures=retnet"],
}


def blocks(language: str, below: str = "") -> list[str]:
    """The fenced blocks of a language, all or those below a heading."""
    text = README.partition(f"## {below}\n")[2].partition("\n## ")[0] if below else README
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[list[str]]:
    """Words of each command of a block, without the commands that create the environment."""
    parts = [part for line in block.splitlines() for part in line.split("&&")]
    words = [shlex.split(part, comments=True) for part in parts]
    return [w for w in words if w and w[0] not in ("python3", "source", "pip", "pytest")]


def small(words: list[str]) -> list[str]:
    """The arguments added to a command of the README."""
    more = next((value for start, value in SMALL.items() if " ".join(words[1:]).startswith(start)), [])
    return [f"--config.{key}={value}" for key, value in more.items()] if isinstance(more, dict) else more


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with my.txt and a published model; the commands run there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(PRESETS, "standard", TINY)
    lines = (f"The state of the union is number {i}, and its people are {'wx'[i % 2] * (i % 7 + 1)}." for i in range(400))
    Path("my.txt").write_text("\n".join(lines), "utf-8")
    return tmp_path


def published(folder: Path) -> None:
    """A small model and its tokenizer, in the published layout."""
    assert cli.main(["tokenizer", "--config.data.path=my.txt", "--vocab=300", "--out=bpe.json"]) == 0
    config = jaxseq.config("llama:smollm2-135m", **LLAMA)
    model = jaxseq.build(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    jaxseq.save_pretrained(folder, model, params)
    (folder / "tokenizer.json").write_bytes(Path("bpe.json").read_bytes())


HERE = [block for block in blocks("bash") if commands(block) and "jaxseq new" not in block]  # see cli/test_new.py


@pytest.mark.parametrize("block", HERE, ids=lambda block: commands(block)[0][1])
def test_a_command_block_runs(block, home, capfd):
    if "SmolLM2" in block:
        published(home / "SmolLM2-135M")
    for words in commands(block):
        capfd.readouterr()
        if words[0] == "jaxseq":
            words = [*(w.replace("~", str(home), 1) if w.startswith("~") else w for w in words), *small(words)]
            assert cli.main(words[1:]) == 0, (words, capfd.readouterr().err)
        else:
            done = subprocess.run(["bash", ROOT / words[0], "--dry-run", *words[1:]], capture_output=True, text=True)
            assert done.returncode == 0 and done.stdout.count("gcloud") >= 4, done.stderr


def test_the_python_block_runs():
    (code,) = blocks("python", below="From Python")
    exec(compile(code, "README.md", "exec"), {})


def test_the_colab_badges_open_a_notebook_that_is_here():
    badges = re.findall(r"colab\.research\.google\.com/github/(\S+?)/blob/main/(\S+?)\)", README)
    url = re.search(r"^url = https://github.com/(\S+)$", (ROOT / "setup.cfg").read_text("utf-8"), flags=re.MULTILINE)[1]
    assert badges
    for repository, path in badges:
        notebook = (ROOT / path).read_text("utf-8")
        assert repository == url and f"github/{repository}/blob/main/{path}" in notebook
        assert f"git clone -q https://github.com/{repository} " in notebook
