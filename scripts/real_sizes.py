#!/usr/bin/env python3
"""Measures what docs/real_sizes.md reports: memory, CPU seconds and exit times of jaxseq's commands at real sizes.

    python scripts/real_sizes.py stop | save | generate | tokenizer | commands

Every command runs in its own process. Peaks are the peak resident memory of that process, as counted by the kernel, in units
of 1e9 bytes; CPU seconds are its user and system time. Exit status 1: a figure exceeds its limit.
"""

import argparse
import importlib.metadata
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SMOLLM2 = "llama:smollm2-135m"
GB = 1e9


class Used(NamedTuple):
    """Resources of a process: user and system seconds, and peak resident memory in bytes."""

    cpu: float
    peak: int


class Figure(NamedTuple):
    what: str
    value: float
    unit: str
    limit: float | None = None

    def line(self) -> str:
        bound = "" if self.limit is None else f"{self.limit:.3g} {self.unit}".rstrip()
        return f"| {self.what} | {self.value:.3g} {self.unit}".rstrip() + f" | {bound} |"


def finished(process: subprocess.Popen, allowed: tuple[int, ...] = (0,)) -> Used:
    """Waits for a process. Raises SystemExit if its exit status is not allowed."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in allowed:
        raise SystemExit(f"{' '.join(map(str, process.args))} ended with status {process.returncode}")
    return Used(used.ru_utime + used.ru_stime, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def measured(*command: str | Path, **environment: str) -> Used:
    return finished(subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | environment))


def jaxseq(*words: str | Path) -> list[str | Path]:
    return [sys.executable, "-c", "from jaxseq.cli import entry; entry()", *words]


def stop(args: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Seconds from SIGTERM in the final evaluation to the end of the process."""
    fields = {"train.steps": 1, "train.batch": 1, "train.length": 512, "model.remat": "full"}
    words = [f"--config={args.config}", *(f"--config.{field}={value}" for field, value in fields.items())]
    for seconds, what in ((1, "compiled"), (60, "run")):
        workdir = folder / f"run{seconds}"
        process = subprocess.Popen(jaxseq("train", f"--workdir={workdir}", *words))
        while not (workdir / "checkpoints" / "1").is_dir():  # the last weights are saved before they are evaluated
            if process.poll() is not None:
                raise SystemExit(f"training ended with status {process.returncode} before its last checkpoint")
            time.sleep(0.1)
        time.sleep(seconds)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        finished(process, (128 + signal.SIGTERM,))
        yield Figure(f"exit after SIGTERM while the final evaluation is {what}", time.monotonic() - began, "s", 5)


SAVE = """
import sys
from pathlib import Path
from jaxseq import config
from jaxseq.data.benchmark import peak
from jaxseq.train import train

found = []

def progress(record):
    found.append(peak())
    if record["step"] in (1, 3):  # 1: behind compilation; 3: before the checkpoint of step 4
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    if record["step"] == 7:
        print(found[2], found[6])

train(config(sys.argv[1], **{
    "train.steps": 8, "train.batch": 1, "train.length": 512, "train.log_every": 1, "train.checkpoint_every": 4,
    "train.warmup": 2, "model.remat": "full", "eval.documents": 1, "eval.batch": 1,
}), sys.argv[2], progress=progress)
"""


def save(args: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Peak memory of steps during a save, relative to steps without one; rows of 1 x 512, remat=full."""
    out = subprocess.run(
        [sys.executable, "-c", SAVE, args.config, folder / "run"], stdout=subprocess.PIPE, check=True, encoding="utf-8"
    ).stdout
    step, saving = map(int, out.split())
    yield Figure("peak of a step (1 x 512, remat=full)", step / GB, "GB")
    yield Figure("peak of saving and the steps after it", saving / GB, "GB")
    yield Figure("the second relative to the first", saving / step, "", 1.1)


PROGRAMS = """
import sys
import jax
import jax.numpy as jnp
from jaxseq import build, config, forms, generation, sampling
from jaxseq.train.plan import memory_of

config, tokens = config(sys.argv[1]), int(sys.argv[2])
model = build(config)
shape = jax.ShapeDtypeStruct
params = jax.eval_shape(lambda: model.init(jax.random.key(0))["params"])
exact, state = (jax.eval_shape(lambda: model.init_state(1, n)) for n in (tokens, generation.slots(tokens)))
token, number, ratio = shape((1,), jnp.int32), shape((), jnp.int32), shape((), jnp.float32)
carry = generation.Carry(state, token, shape((1,), bool))
draw = sampling.Sampling(ratio, number, ratio, shape((1,), jnp.uint32), shape((model.vocab,), bool))
segments = [shape((1, length), jnp.int32) for length in generation.PIECES]
programs = [generation._prefill.lower(model, forms.freeze("auto"), params, state, x, x) for x in segments]
programs += [generation._decode.lower(model, False, params, carry, draw, number, number)]
size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
print(size(params), size(exact), size(state), max(memory_of(program.compile()) for program in programs))
"""

WEIGHTS = """
import sys
import jax
from jaxseq import build, config
from jaxseq.train import save_params

config = config(sys.argv[1])
save_params(sys.argv[2], config, jax.jit(build(config).init)(jax.random.key(0))["params"])
"""


def generate(args: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Memory of one row with a long prompt: XLA's figures for the compiled programs; with --run also the process's peak."""
    new = 16
    command = [sys.executable, "-c", PROGRAMS, args.config, str(args.tokens + new)]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout
    params, exact, state, total = map(int, found.split())
    yield Figure("parameters", params / GB, "GB")
    yield Figure(f"exact state of one row of {args.tokens + new:,} tokens", exact / GB, "GB")
    yield Figure("state that is held", state / GB, "GB")
    yield Figure("that state relative to the exact one", state / exact, "", 1.3)
    yield Figure("largest compiled program, with parameters and state", total / GB, "GB")
    yield Figure("that program relative to parameters and exact state", total / (params + exact), "", 1.3)
    if args.run:
        prompt, workdir = folder / "prompt.txt", folder / "run"
        prompt.write_text("".join(random.Random(0).choices("abcdefghij ", k=args.tokens)), encoding="utf-8")
        measured(sys.executable, "-c", WEIGHTS, args.config, workdir)
        words = [f"--workdir={workdir}", f"--max_tokens={new}", "--temperature=0", f"--prompt_file={prompt}"]
        peak = measured(*jaxseq("generate", *words)).peak
        yield Figure("peak of the process", peak / GB, "GB")
        yield Figure("that peak relative to parameters and exact state", peak / (params + exact), "")


NATURAL = """
import sys
from jaxseq import data
from jaxseq.config import base
print("\\0".join(document.text for document in data.texts(base().data)))
"""


def synthetic(path: Path, size: int) -> None:
    """A text of about `size` bytes: the built-in addresses repeated, with every 20th word made of halves of two others, so
    that there are always new words."""
    found = subprocess.run([sys.executable, "-c", NATURAL], stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout
    addresses, chance, written = [text.split(" ") for text in found.split("\0")], random.Random(0), 0
    every = [word for words in addresses for word in words if word.isalpha()]
    with path.open("w", encoding="utf-8") as out:
        while written < size:
            for words in addresses:
                words = list(words)
                for at in range(chance.randrange(20), len(words), 20):
                    first, second = chance.choice(every), chance.choice(every)
                    words[at] = first[: len(first) // 2 + 1] + second[len(second) // 2 :]
                written += out.write(" ".join(words) + "\n\n")
                if written >= size:
                    break


def tokenizer(args: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """Peak memory of training a BPE tokenizer on a text, and of reading the text with it, as a file and as a folder's file."""
    text, made = folder / "texts" / "x.txt", folder / "bpe.json"
    text.parent.mkdir()
    synthetic(text, args.mb * 1_000_000)
    command = "tokenizer", f"--config.data.path={text}", f"--vocab={args.vocab}", f"--out={made}"
    yield Figure(f"peak of training {args.vocab:,} ids on {args.mb} MB", measured(*jaxseq(*command)).peak / GB, "GB", 1)
    for path, kind in ((text, "the file"), (text.parent, "the folder that holds it")):
        used = measured(sys.executable, "-m", "jaxseq.data.benchmark", path, made, folder / f"cache {path.name}")
        yield Figure(f"peak of reading {kind} with it", used.peak / GB, "GB", 1)


def commands(args: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    """CPU seconds of commands with empty caches and again, and the output of `jaxseq cache` afterwards."""
    home, workdir = {"XDG_CACHE_HOME": str(folder / "cache")}, f"--workdir={folder / 'run'}"
    measured(*jaxseq("train", "--config=transformer", "--config.train.steps=2", "--config.eval.documents=1", workdir))
    for words, limit in ((["generate", workdir, "--prompt=The", "--max_tokens=32"], 6), (["list"], 3)):
        for time_, bound in (("first", None if words[0] == "generate" else limit), ("second", limit)):
            used = measured(*jaxseq(*words), **home)
            yield Figure(f"CPU time of the {time_} `jaxseq {words[0]}`", used.cpu, "s", bound)
    subprocess.run(jaxseq("cache"), check=True, env=os.environ | home | {"COLUMNS": "80"})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {part.__name__: part for part in (stop, save, generate, tokenizer, commands)}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--config", default=SMOLLM2, help=f"model of stop, save and generate (default: {SMOLLM2})")
    parser.add_argument("--tokens", type=int, default=33_000, help="length of the prompt of generate (default: 33000)")
    parser.add_argument("--run", action="store_true", help="generate: also run it, which takes long on few cores")
    parser.add_argument("--mb", type=int, default=200, help="megabytes of text of tokenizer (default: 200)")
    parser.add_argument("--vocab", type=int, default=16_384, help="ids of tokenizer (default: 16384)")
    args = parser.parse_args()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jaxseq", "jax", "jaxlib", "flax"))
    print(f"Python {sys.version.split()[0]}, {versions}; {time.strftime('%d %B %Y')}\n\n| figure | measured | limit |")
    print("| --- | ---: | ---: |", flush=True)
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for figure in parts[args.part](args, Path(folder)):
            print(figure.line(), flush=True)
            missed += figure.limit is not None and figure.value > figure.limit
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
