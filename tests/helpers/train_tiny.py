"""Shared by the training tests: a folder of small documents, a tiny model, and a run of it in a separate process."""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

import jaxseq
from helpers import compiler
from jaxseq.config import to_dict
from jaxseq.testing.networks import moved
from jaxseq.train import save_params, train

WORDS = [
    "the",
    "of",
    "and",
    "state",
    "union",
    "people",
    "congress",
    "government",
    "year",
    "new",
    "work",
    "war",
    "peace",
]
MODEL = {
    "model.stack": "1*(attention swiglu)",
    "model.width": 32,
    "model.vocab": 257,
    "model.dropout": 0.1,
    "model.attention.heads": 4,
}
TEACHER = {"model.width": 32, "model.stack": "4*(attention swiglu)", "model.attention.heads": 4, "model.vocab": 257}

# Processes share compiled programs in a cache, unless the environment already sets one.
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": tempfile.mkdtemp(prefix="jaxseq-test-"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
}

RUN = """
import json, sys
from jaxseq.train import train
from jaxseq.config import from_dict
config, workdir = from_dict(json.loads(sys.argv[1])), sys.argv[2]
train(config, workdir, progress=lambda record: print(record["step"], flush=True))
"""


def write_documents(folder: Path, count: int = 40) -> Path:
    """`count` text files of 3 to 120 words, the same on every call."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    for number in range(count):
        words = (chance.choice(WORDS) for _ in range(chance.randint(3, 120)))
        (folder / f"{number:03}.txt").write_text(" ".join(words))
    return folder


def random_teacher(documents: Path, folder: Path):
    """(config, params) of a Transformer with random weights, none of them 0 or 1; `folder` becomes its workdir."""
    config = jaxseq.config("transformer", **small(documents) | TEACHER)
    params = moved(jaxseq.build(config).init(jax.random.key(0))["params"], jax.random.key(1))
    save_params(folder, config, params)
    return config, params


def tiny(documents: Path, **overrides):
    """A config that trains in a second: `tiny(folder, **{"train.steps": 3})`."""
    return jaxseq.config("transformer", **MODEL | small(documents) | overrides)


def small(documents: Path) -> dict:
    """Fields of a short run on a folder of documents, for any language model."""
    return {
        "data.source": "folder",
        "data.path": str(documents),
        "data.validation_every": 10,
        "data.prefetch": 4,
        "train.steps": 6,
        "train.batch": 8,
        "train.length": 32,
        "train.lr": 1e-2,
        "train.warmup": 2,
        "train.log_every": 1,
        "train.checkpoint_every": 3,
        "train.eval_every": 0,
        "eval.batch": 4,
        "eval.length": 64,
        "eval.documents": 2,
    }


def trained(folder: Path, documents: Path, steps: int = 60) -> Path:
    """The workdir of a Transformer of two layers, trained on documents."""
    model = {"model.width": 32, "model.stack": "2*(attention swiglu)", "model.attention.heads": 4, "model.vocab": 257}
    more = {"train.steps": steps, "train.log_every": steps, "train.checkpoint_every": 0}
    train(jaxseq.config("transformer", **small(write_documents(documents)) | model | more), folder, devices=jax.devices()[:1])
    return folder


def launch(config, workdir: Path, devices: int = 1, code: str = RUN, **more) -> subprocess.Popen:
    """Starts `code` with a config, `more` and a workdir in a new Python with `devices` CPU devices."""
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(to_dict(config) | more), str(workdir)],
        env=CACHE | os.environ | {"XLA_FLAGS": compiler.devices(devices), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, seconds: float = 120) -> str:
    """Waits for a process that must succeed, and returns its output."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err[-3000:]
    return out
