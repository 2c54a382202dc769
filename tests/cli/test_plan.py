"""`jaxseq plan`: records of steps that are compiled for TPUs, and errors."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from jaxseq import cli
from jaxseq.bench import ahead
from jaxseq.compare import fit

RUN = "import sys; from jaxseq import cli; sys.exit(cli.main(sys.argv[1:]))"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=retnet", "--topology=h200:8"], "no --topology=h200:8; write it like v5e:2x4 or h100:8"),
        (["--config=retnet", "--what=generate"], "--what=generate is neither train nor decode"),
        ([], "give either --config=NAME, one model, or --architectures=A,B"),
        (["--config=retnet", "--architectures=gru"], "give either --config=NAME"),
        (["--architectures=gru", "--parameters=1"], "--parameters between a thousand"),
    ],
)
def test_bad_arguments_are_one_line(words, message, capsys):
    assert cli.main(["plan", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_the_table_fits_and_is_kept(tmp_path, capsys, monkeypatch):
    calls = []

    def record(name, config, what, topology, context):
        calls.append((name, what, config.mesh.fsdp, config.model.dtype))
        if name == "gru":
            raise ahead.UserError("does not fit")
        costs = {"memory_bytes": 1.5 * 2**30, "capacity_bytes": 16 * 2**30, "operations": 3e9, "bytes": 2e9, "sent_bytes": 4e6}
        costs |= {"collectives": {"all-reduce": [3, 4e6]}, "step_seconds": 0.002, "bound": "memory", "share_of_products": 0.25}
        return {"config": name, "what": what, "compile_seconds": 1.0, "unknown_loops": 0} | costs

    monkeypatch.setattr(ahead, "record", record)
    monkeypatch.setattr(fit, "fit", lambda config, parameters: config)
    monkeypatch.setattr(ahead, "devices", lambda topology: [None] * 8)
    words = ["plan", "--architectures=retnet,gru", "--parameters=1e5", f"--out={tmp_path / 'plan.jsonl'}", "--markdown"]
    assert cli.main(words) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[2] == "| retnet | train | 1.50 | 3 | 2 | 4 | 3 | 2 | memory | 25% |" and rows[4].startswith("| gru | train | – |")
    assert calls == [(name, what, 8, "bfloat16") for name in ("retnet", "gru") for what in ("train", "decode")]
    assert cli.main([*words, "--json"]) == 0 and len(calls) == 4  # nothing is compiled again
    assert len(json.loads(capsys.readouterr().out)["records"]) == 4
    (tmp_path / "plan.jsonl").write_text("other\n")
    assert cli.main(words) == 2 and "holds something else" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("jax_cuda13_plugin") is not None, reason="the compiler for GPUs is installed")
def test_the_compiler_for_gpus_is_named_if_it_is_missing(capsys):
    assert cli.main(["plan", "--config=retnet", "--topology=h100:8"]) == 2
    assert "pip install 'jax[cuda13]' absl-py" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("what", ahead.WHAT)
@pytest.mark.parametrize(("topology", "compiler"), [("v5e:2x4", "libtpu"), ("h100:8", "jax_cuda13_plugin")])
def test_a_step_for_eight_chips(topology, compiler, what):
    """In a process of its own, without the XLA_FLAGS of the tests: libtpu ends a process whose flags it does not know."""
    pytest.importorskip(compiler, reason="it is the compiler")
    sizes = ["--config.model.width=256", "--config.train.batch=16", "--config.train.length=256", "--context=512"]
    chosen = [f"--what={what}", f"--topology={topology}", "--json"]
    words = [sys.executable, "-c", RUN, "plan", "--config=transformer", *chosen, *sizes]
    done = subprocess.run(words, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    (found,) = json.loads(done.stdout)["records"]
    assert found["chips"] == 8 and found["unknown_loops"] == 0 and found["mesh"] == {"fsdp": 8}
    tokens = 16 * 256 if what == "train" else 16
    dense = (6 if what == "train" else 2) * found["parameters"] * tokens / 8
    assert 0.7 * dense < found["products"] < 2 * dense  # with attention
    assert found["collectives"]["all-gather"][0] > 0 and found["bytes"] > 2 * found["parameters"] / 8
