"""`jaxseq compress`: its figures, and a workdir that the other commands can open."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers.train_tiny import finish, launch, tiny, write_documents

import jaxseq
from jaxseq import convert, weights
from jaxseq.bench.peers import llama_cpp
from jaxseq.cli import main
from jaxseq.compress import _run
from jaxseq.train import load, train

FIGURES = {"bytes", "bits_per_byte", "tokens_per_second", "state_bytes", "parameters"}
LLAMA_CPP = "llama_cpp_tokens_per_second"  # where llama-cpp-python is installed


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a Transformer after a few steps, of width 64, so that most bytes are in matrices."""
    folder = tmp_path_factory.mktemp("run")
    more = {"model.stack": "2*(attention swiglu)", "model.width": 64, "model.dropout": 0.0, "train.steps": 8}
    train(tiny(write_documents(folder / "documents"), **more), folder / "run")
    return folder / "run"


def compressed(run, out, recipe, capsys, *words) -> dict:
    argv = ["compress", f"--workdir={run}", f"--out={out}", f"--recipe={recipe}", "--tokens=512", "--json", *words]
    status = main(argv)
    found = capsys.readouterr()
    assert status == 0, found.err
    return json.loads(found.out)


@pytest.mark.parametrize(
    ("recipe", "smaller"),
    [("int8", 0.4), pytest.param("nf4", 0.27, marks=pytest.mark.slow), ("heads:0.25+wanda:0.5+int8", 0.4)],
)
def test_a_smaller_model_on_disk(run, tmp_path, capsys, recipe, smaller):
    found = compressed(run, tmp_path / "out", recipe, capsys)
    before, after = found["before"], found["after"]
    assert before.keys() == after.keys() and before.keys() - {LLAMA_CPP} == FIGURES
    assert after["bytes"] < smaller * before["bytes"]
    assert after["bits_per_byte"] < (1.02 if recipe == "int8" else 1.5) * before["bits_per_byte"]
    assert json.loads((tmp_path / "out" / "compress.json").read_text()) == found
    assert all(np.isfinite(value) and value > 0 for side in (before, after) for value in side.values())


def test_the_speed_of_llama_cpp_stands_beside_ours(run, tmp_path, capsys, monkeypatch):
    kinds = []

    def opened(model, params):
        kinds.append(llama_cpp._type_of(params))
        llama_cpp.write(tmp_path / "model.gguf", model, params)
        return SimpleNamespace(generating=lambda length, steps: lambda: steps)

    seconds = lambda calls, rounds: {key: rounds * [0.5 + 0.01 * call()] for key, call in calls.items()}  # noqa: E731
    monkeypatch.setattr(_run, "timing", SimpleNamespace(laps=seconds))
    monkeypatch.setattr(_run.peers, "available", lambda: {"llama-cpp-python": llama_cpp})
    monkeypatch.setattr(llama_cpp, "open", opened)
    found = compressed(run, tmp_path / "out", "int8", capsys)
    assert kinds == ["F32", "Q8_0"] and all(found[side][LLAMA_CPP] == pytest.approx(100) for side in ("before", "after"))


def test_zeros_take_less_space_on_disk(run, tmp_path, capsys):
    found = compressed(run, tmp_path / "out", "magnitude:0.75", capsys)
    assert found["after"]["bytes"] < 0.6 * found["before"]["bytes"]
    assert found["after"]["parameters"] < 0.4 * found["before"]["parameters"]


def test_the_other_commands_open_it(run, tmp_path, capsys):
    """generate, eval and export; and training, which keeps the zeros."""
    out = tmp_path / "out"
    found = compressed(run, out, "channels:0.25+wanda:2:4", capsys)
    assert main(["eval", f"--workdir={out}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_byte"] == pytest.approx(found["after"]["bits_per_byte"], rel=1e-5)
    assert main(["generate", f"--workdir={out}", "--prompt=the ", "--max_tokens=4", "--json"]) == 0
    assert main(["export", str(out), str(tmp_path / "exported"), "--source=hf/llama"]) == 0
    _, params, _ = load(out)
    plain = convert.from_pretrained(tmp_path / "exported")[1]
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), plain, weights.merged(params)))
    capsys.readouterr()

    more = tmp_path / "more"
    assert main(["train", f"--config={out}", f"--workdir={more}", f"--config.train.init={out}", "--config.train.steps=3"]) == 0
    changed = [0, 0]
    for new, old in zip(jax.tree.leaves(load(more)[1]), jax.tree.leaves(params), strict=True):
        changed[0] += int((new[old == 0] != 0).sum())
        changed[1] += int((new[old != 0] != old[old != 0]).sum())
    assert changed[0] == 0 and changed[1] > 1000


def test_quantized_weights_are_frozen_in_training(run, tmp_path, capsys):
    """Norms are trained; the codes are stored once, next to the checkpoints."""
    out, more = tmp_path / "out", tmp_path / "more"
    compressed(run, out, "int8", capsys)
    argv = ["train", f"--config={out}", f"--workdir={more}", f"--config.train.init={out}", "--config.train.steps=4"]
    assert main(argv) == 0
    assert main([*argv[:2], f"--workdir={more}", "--config.train.steps=6", f"--config.train.init={out}"]) == 0  # resumes
    new, old = (weights.leaves(load(folder)[1]) for folder in (more, out))
    frozen = {path for path in old if path.endswith(("codes", "scale")) and "norm" not in path}
    assert all((new[path] == old[path]).all() == (path in frozen) for path in old)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--recipe=int9"], "there is no step 'int9'"),
        (["--recipe=wanda:0.5", "--tokens=1000000"], "too few to calibrate"),
        (["--recipe=int8", "--config.model.width=3"], "was fixed by the run"),
        (["--recipe=layers:0.1"], "of 2 layers removes none"),
        (["--recipe=int8", "--tokens=0"], "--tokens=0"),
    ],
)
def test_what_is_wrong_is_one_line(run, tmp_path, capsys, words, told):
    assert main(["compress", f"--workdir={run}", f"--out={tmp_path / 'out'}", *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("jaxseq: ")]
    assert len(lines) == 1 and told in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_compressed_model_has_no_random_start(run, tmp_path, capsys):
    compressed(run, tmp_path / "out", "int8", capsys)
    assert main(["train", f"--config={tmp_path / 'out'}", f"--workdir={tmp_path / 'more'}"]) == 2
    assert "give its workdir as train.init" in capsys.readouterr().err


ON_EIGHT = """
import json, sys
import jax
from jaxseq.config import from_dict
from jaxseq.train import load, train
assert len(jax.devices()) == 8
data, folder = json.loads(sys.argv[1]), sys.argv[2]
config = from_dict(data, **{"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.data": 2})
losses = []
train(config, folder, progress=lambda record: losses.append(record["loss"]))
params = load(folder, devices=jax.devices())[1]
spread = {jax.tree_util.keystr(keys): len(set(map(str, leaf.sharding.devices_indices_map(leaf.shape).values())))
          for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
print(json.dumps({"losses": losses, "codes": {path: count for path, count in spread.items() if "codes" in path}}))
"""


@pytest.mark.slow
def test_eight_devices_fine_tune_as_one_does(run, tmp_path, capsys):
    """Compressed weights, here codes with fixed zeros, are sharded like plain ones."""
    out = tmp_path / "out"
    compressed(run, out, "wanda:0.5+nf4", capsys)
    more = {"train.init": str(out), "train.steps": 3, "train.lora_rank": 2, "train.lr": 1e-2, "train.warmup": 0}
    config = jaxseq.config(str(out), **more)
    process = launch(config, tmp_path / "eight", devices=8, code=ON_EIGHT)
    losses = []
    train(config, tmp_path / "one", progress=lambda record: losses.append(record["loss"]), devices=jax.devices()[:1])
    found = json.loads(finish(process, 300).splitlines()[-1])
    np.testing.assert_allclose(found["losses"], losses, rtol=2e-4)
    assert found["codes"] and all(count > 1 for count in found["codes"].values())
