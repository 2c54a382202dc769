"""Output of a run before its first step, during training and when it is stopped."""

import io
import json
import re
import signal
import sys
import types

import jax
import pytest
from helpers.data import lossy_tokenizer
from helpers.train_tiny import MODEL, small, tiny, write_documents
from rich.console import Console

import jaxseq
from jaxseq import train as training
from jaxseq.cli import main
from jaxseq.errors import UserError
from jaxseq.train import loggers, plan, planned
from jaxseq.train.metrics import MetricsWriter
from jaxseq.train.objectives import _task
from jaxseq.train.progress import ProgressLine, describe

SIZES = {"train.steps": 40, "train.batch": 8, "train.length": 64, "train.warmup": 2, "eval.length": 32, "eval.tokens": 900}


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, capsys):
    """Also without --config. The field that is said to lower the memory does."""
    documents = write_documents(tmp_path / "documents")
    options = MODEL | SIZES | {"model.stack": "4*(attention swiglu)", "data.path": str(documents), "data.validation_every": 4}
    words = [f"--config.{name}={value}" for name, value in options.items()]
    before = files(tmp_path)
    assert main(["train", f"--workdir={tmp_path / 'run'}", *words, "--dry-run", "--json"]) == 0
    out, err = capsys.readouterr()
    assert files(tmp_path) == before
    found = json.loads(out)
    assert {"parameters", "splits", "tokenizer", "vocab", "steps", "tokens", "flops", "memory_bytes", "mesh"} <= found.keys()
    model = jaxseq.build(jaxseq.config("transformer", **options))
    assert found["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(model.boxed()["params"]))
    corpus = _task.TextTask(jaxseq.config("transformer", **options)).corpus
    wanted = {"train": corpus.train, "validation": corpus.validation}
    for split, part in wanted.items():
        assert found["splits"][split]["documents"] == len(part) and found["splits"][split]["tokens"] == part.lengths.sum()
    assert 0 < found["splits"]["validation"]["scored"] <= 900 < found["splits"]["validation"]["tokens"]
    assert (found["tokenizer"], found["vocab"], found["steps"], found["tokens"]) == ("byte", 257, 40, 40 * 8 * 64)
    assert found["flops"] > 6 * found["parameters"] * found["tokens"] / 3
    assert 0.9 < found["hardware_flops"] / found["flops"] < 1.5  # few matrix products: three times the rest is slightly too much
    assert found["memory_bytes"] > 12 * found["parameters"] and found["mesh"]["data"] == 1
    lines = err.strip().splitlines()[-6:]
    assert lines[0].startswith("model: ") and "eval.tokens" in lines[1] and lines[5].startswith("mesh: data=1 on 1 x ")
    name, value = found["lowers"][0].split("=")
    assert (name, value) == ("model.remat", "full") and f"{name}={value}" in lines[4]
    lower = planned(jaxseq.config("transformer", **options | {name: value}), tmp_path / "run")
    assert lower.memory_bytes < 0.9 * found["memory_bytes"] and name not in "".join(lower.lowers)


def made(**changes):
    splits = {"train": {"documents": 2, "tokens": 9}, "validation": {"documents": 1, "tokens": 5, "scored": 5}}
    values = {
        "parameters": 1000, "splits": splits, "tokenizer": None, "vocab": None, "steps": 1, "tokens": 9, "flops": 1e6,
        "hardware_flops": 2e6, "memory_bytes": 3_000_000, "available_bytes": 10**9, "lowers": ("model.remat=full",),
        "mesh": {"data": 1, "fsdp": 2}, "devices": "2 x cpu", "repeated": 0,
    }  # fmt: skip
    return plan.RunPlan(**values | changes).lines()


def test_what_somebody_should_look_at_is_one_more_line():
    assert len(made()) == 6 and "fsdp=2 on 2 x cpu" in made()[5]
    assert "more memory than the 2 MB free here; set model.remat=full" in made(available_bytes=2_000_000)[6]
    assert "1 of the 1 validation documents are in the training data too" in made(repeated=1)[6]


def test_a_lossy_tokenizer_is_named_before_the_first_step_and_its_figures_are_marked(tmp_path, capsys):
    documents = write_documents(tmp_path / "documents", 12)
    options = MODEL | small(documents) | {"model.vocab": 257, "train.steps": 2, "data.tokenizer": "byte"}
    marked = {}
    for name, tokenizer in {"kept": "byte", "lossy": lossy_tokenizer(tmp_path, "dropped")}.items():
        words = [f"--config.{key}={value}" for key, value in (options | {"data.tokenizer": tokenizer}).items()]
        assert main(["train", f"--workdir={tmp_path / name}", *words]) == 0
        lines = capsys.readouterr().err.splitlines()
        marked[name] = [line for line in lines if "*" in line]
    assert not marked["kept"]
    first, *steps = marked["lossy"]
    assert re.fullmatch(r"warning: the tokenizer is lossy: .+; bits per byte, marked with \*, are too low", first)
    assert len(steps) == 2 and all(re.match(r"step \d/2 .*bits/byte \d\.\d{4}\*", line) for line in steps)
    assert re.search(r"validation \d\.\d{4}\*", steps[1])


def test_documents_of_both_splits_are_counted(tmp_path):
    folder = write_documents(tmp_path / "documents", 12)
    names = sorted(folder.iterdir())
    names[3].write_text(names[0].read_text())  # every fourth document validates
    corpus = _task.TextTask(tiny(folder, **{"data.validation_every": 4})).corpus
    assert _task.repeated(corpus) == 1
    names[3].write_text(names[0].read_text()[:-1] + "~")
    assert _task.repeated(_task.TextTask(tiny(folder, **{"data.validation_every": 4})).corpus) == 0


def test_at_80_columns_the_line_keeps_its_bar_and_its_step():
    record = {"step": 48_000, "steps": 100_000, "loss": 1.2345, "bits_per_byte": 1.7811, "validation_bits_per_byte": 1.8,
              "tokens_per_second": 123_456.0, "flops_utilisation": 0.434, "eta_seconds": 12_345.0}  # fmt: skip
    for width in (60, 80, 120):
        out = io.StringIO()
        with ProgressLine(Console(file=out, force_terminal=True, width=width, color_system=None)) as line:
            line(record)
        last = [text for text in out.getvalue().replace("\r", "\n").splitlines() if "loss" in text][-1]
        assert "━━━" in last and "48000/100000" in last.replace(" ", "") and "loss 1.2345" in last and "left 3:25:45" in last


def test_accuracy_is_told_where_there_are_no_bits_per_byte():
    shown = {"loss": 1.0, "accuracy": 0.5, "validation_accuracy": 0.25}
    assert "accuracy 50.0%  validation 25.0%" in describe(shown)
    assert "accuracy" not in describe(shown | {"bits_per_byte": 1.0})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_was_stopped_says_where_and_ends_as_a_stopped_comparison_does(tmp_path, monkeypatch, capsys, number):
    record = {"step": 3, "stopped": "after step 3, which is saved", "signal": number}
    monkeypatch.setattr(training, "train", lambda *args, **more: record)
    with pytest.raises(SystemExit) as caught:
        main(["train", "--config=retnet", f"--workdir={tmp_path}"])
    assert caught.value.code == 128 + number
    assert "stopped after step 3, which is saved; run the same command again" in capsys.readouterr().err

    def preparing(*args, **more):
        signal.raise_signal(number)

    monkeypatch.setattr(training, "train", preparing)
    with pytest.raises(SystemExit) as caught:
        main(["train", "--config=retnet", f"--workdir={tmp_path}"])
    assert caught.value.code == 128 + number
    assert "before its first step, with nothing new to save" in capsys.readouterr().err


def test_figures_go_to_wandb_when_asked_for(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(log=lambda scalars, step: calls.append((step, scalars)), finish=lambda: calls.append("finish"))
    fake = types.SimpleNamespace(init=lambda **more: calls.append(more) or run, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    loggers.check("wandb")
    writer = MetricsWriter(tmp_path, 0, (), loggers.start("wandb", tmp_path, {"train.lr": 0.1}))
    writer.write({"step": 2, "loss": 1.5})
    writer.add(2, {"validation_loss": 2.5})
    writer.close()
    assert calls[0]["config"] == {"train.lr": 0.1} and calls[0]["resume"] == "allow"
    assert calls[1:] == [(2, {"train/loss": 1.5}), (2, {"validation/loss": 2.5}), "finish"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"jaxseq\[wandb\]"):
        loggers.check("wandb")


def test_a_logger_that_cannot_start_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    def init(**more):
        raise RuntimeError("No API key configured.\nUse `wandb login`.")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Settings=dict))
    options = MODEL | small(write_documents(tmp_path / "documents", 12)) | {"train.logger": "wandb"}
    words = [f"--config.{name}={value}" for name, value in options.items()]
    assert main(["train", f"--workdir={tmp_path / 'run'}", *words]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("jaxseq: wandb cannot start: No API key configured. Use `wandb login`; run `wandb login`, or set")
    assert not (tmp_path / "run").exists()
