"""`jaxseq bench train|prefill|decode`: records, comparison with other libraries, errors."""

import importlib.util
import io
import json
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from gguf import GGUFReader
from rich.console import Console

import jaxseq
from jaxseq import cli, convert, weights
from jaxseq.bench import models, timing
from jaxseq.bench.peers import llama_cpp, transformers
from jaxseq.cli import bench
from jaxseq.errors import UserError

SHAPE = models.Shape(width=16, rows=1, lengths=(16,), steps=2)
SMALL = ["--architectures=transformer,retnet", "--width=16", "--rows=1", "--rounds=2", "--steps=2"]


class Same:
    """A peer that runs our model and sleeps `seconds` in each call."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def open(self, model, params):
        sleep = lambda: time.sleep(self.seconds)  # noqa: E731
        logits = lambda tokens_BT: np.asarray(model.apply({"params": params}, tokens_BT)[0])  # noqa: E731
        longer = lambda length, steps: lambda: time.sleep(self.seconds * steps)  # noqa: E731
        return SimpleNamespace(logits=logits, training=lambda *_: sleep, reading=lambda _: sleep, generating=longer)


def test_laps_are_per_call_and_in_turns():
    order = []
    found = timing.laps({name: lambda name=name: order.append(name) for name in "ab"}, 3, shortest=0)
    assert "".join(order) == "ab" * 4 and set(found) == {"a", "b"} and all(len(laps) == 3 for laps in found.values())


def test_a_ratio_is_of_the_same_round_and_ranks_only_if_it_is_steady():
    load = np.array([1, 5, 2, 9, 3.0])  # other load slows both
    steady = timing.ratio(load, 2 * load)
    assert steady == (0.5, 0) and steady.ranks
    uneven = timing.ratio(load, np.ones(5))
    assert uneven == (3, 1) and not uneven.ranks


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] if k == "train" else []) for k in models.KINDS])
def test_records(kind, monkeypatch):
    monkeypatch.setattr(models.libraries, "available", lambda: {"same": Same(0.02)})
    result = models.bench(kind, ["transformer", "retnet"], SHAPE, peers=True, rounds=2)
    assert result["kind"] == kind and result["versions"]["peers"] == ["same"] and result["device"] and result["date"]
    first, second = result["records"]
    assert (first["architecture"], second["architecture"]) == ("transformer", "retnet")
    assert first["of_reference"] == 1 and second["of_reference"] > 0 and second["reference"] == "transformer"
    for record in result["records"]:
        assert record["difference"] < 1e-6 and record["peer_ms"] > 0 and record["parameters"] > 0
        assert min(record[key] for key in ("ours_ms", "floor_ms", "of_floor", "ratio")) > 0 and record["spread"] >= 0
        assert record["verdict"] == (None if record["spread"] > timing.SPREAD else "faster" if record["ratio"] < 1 else "slower")
    json.dumps(result)


def test_a_peer_without_the_model_or_too_slow_is_left_out(monkeypatch):
    def refuse(model, params):
        raise UserError("it has no such model; name another")

    monkeypatch.setattr(models, "SLOW", 0.01)
    monkeypatch.setattr(models.libraries, "available", lambda: {"none": SimpleNamespace(open=refuse), "slow": Same(0.05)})
    record = models.bench("train", ["retnet"], SHAPE, peers=True, rounds=1)["records"][0]
    assert record["no_peer"] == "it has no such model; slow takes 0 s" and "ratio" not in record and record["ours_ms"] > 0


def test_a_model_that_cannot_run_is_recorded(monkeypatch):
    def fail(*_):
        raise UserError("too long; make it shorter")

    monkeypatch.setattr(models.programs, "reading", fail)
    record = models.bench("prefill", ["retnet"], SHAPE, rounds=1)["records"][0]
    assert record["failed"] == "too long; make it shorter" and "ours_ms" not in record


def test_crossovers():
    times = {"a": [1, 1, 1, 1], "b": [2, 0.5, 2, 0.5], "c": [2, 0.9, 0.5, 0.1], "d": [2, 2, 2, 2]}
    records = [
        {"architecture": name, "length": 2**i, "ours_ms": 1.0, "of_reference": ratio}
        for name, row in times.items()
        for i, ratio in enumerate(row)
    ]
    assert models.crossovers(records) == {"a": None, "b": 8, "c": 2, "d": None}


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    plot = tmp_path / "plot.svg"
    assert cli.main(["bench", "prefill", *SMALL, "--lengths=32,16", f"--plot={plot}", "--json"]) == 0
    out, err = capsys.readouterr()
    records = json.loads(out)["records"]
    assert [(r["architecture"], r["length"]) for r in records] == [(n, t) for t in (16, 32) for n in ("transformer", "retnet")]
    assert "reading a prompt, 32 tokens" in err and "retnet" in err and max(map(len, err.splitlines())) <= 80
    assert plot.read_text().startswith("<?xml")


def test_a_table_fits_80_columns_and_says_the_same_in_markdown():
    record = {"rows": 4, "length": 512, "parameters": 3_229_952, "ours_ms": 1156.2, "of_floor": 12.3, "of_reference": 10.25}
    compared = {"peer_ms": 1343.9, "ratio": 0.86, "spread": 0.13, "verdict": None}
    records = [
        {"architecture": "transformer", **record, **compared},
        {"architecture": "stripedhyena", **record, "no_peer": "no source holds this model"},
        {"architecture": "retnet", "length": 512, "failed": "out of memory"},
    ]
    console = Console(width=80, file=io.StringIO())
    console.print(bench.models_table(records))
    shown = console.file.getvalue()
    assert "…" not in shown and "stripedhyena: no source holds this model" in shown and "10.25" in shown
    lines = [line for line in bench.models_markdown("train", records).splitlines() if line.startswith("|")]
    assert lines[2] == "| transformer | 3.2M | 1156 | 12.3 | 10.25 | 1344 | 0.86 | 13% | no rank |"
    assert {line.count("|") for line in lines} == {10} and "out of memory" in lines[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--peers"], "is installed; install llama-cpp-python and gguf, or transformers and torch"),
        (["train", "--rounds=0"], "--rounds=0 measures nothing"),
        (["decode", "--lengths=x"], "--lengths=x is not a list"),
        (["prefill", "--plot=x.txt"], "must end in one of"),
        (["prefill", "--plot=/nowhere/x.svg"], "there is no folder"),
        (["train", "--architectures="], "name at least one architecture"),
        (["train", "--architectures=nothing"], "nothing"),
    ],
)
def test_bad_arguments(words, message, capsys, monkeypatch):
    monkeypatch.setattr(models.libraries, "available", dict)
    assert cli.main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="transformers is not installed")
@pytest.mark.parametrize("name", ["transformer", "gpt2", "rwkv4", "mamba2"])
def test_transformers_computes_the_same(name):
    model, params = made(name)
    assert models._difference(model, params, transformers.open(model, params)) < 1e-5


@pytest.mark.skipif(not importlib.util.find_spec("llama_cpp"), reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("name", ["transformer", "llama"])
def test_llama_cpp_computes_the_same(name):
    model, params = made(name)
    peer = llama_cpp.open(model, params)
    assert models._difference(model, params, peer) < 1e-5
    peer.generating(10, 3)()
    with pytest.raises(UserError, match="trains no models"):
        peer.training(1, 8)


def made(name: str):
    model = jaxseq.build(models.model_config(name, models.Shape(width=64), 64))
    return model, jax.jit(model.init)(jax.random.key(0), *model.example())["params"]


@pytest.mark.parametrize(("kind", "bound"), [("", 0), ("int8", 0.01), ("nf4", 0.15)])
def test_a_file_for_llama_cpp_has_our_weights_in_as_many_bits(kind, bound, tmp_path):
    model, params = made("llama")
    if kind:
        params |= {"embedding": weights.QuantizedWeight.of(params["embedding"], kind, (-1,))}
    llama_cpp.write(tmp_path / "model.gguf", model, params)
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    assert types["blk.0.ffn_up.weight"] == {"": "F32", "int8": "Q8_0", "nf4": "Q4_0"}[kind]
    assert types["output_norm.weight"] == "F32"
    _, found = convert.from_pretrained(tmp_path / "model.gguf")
    wanted = weights.merged(params)
    differences = jax.tree.map(lambda a, b: float(abs(a - b).max() / abs(b).max()), found, wanted)
    assert max(jax.tree.leaves(differences)) <= bound
