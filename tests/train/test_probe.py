"""A non-finite value is reported with layer, module and step. In debug mode every layer's norms are reported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.train_tiny import tiny, write_documents

import jaxseq.cli
from jaxseq.train import NonFiniteError, metrics, prepare, train
from jaxseq.train.diagnose import diagnose
from jaxseq.train.step import Trainer, TrainState

LAYERS = {"model.stack": "3*(attention swiglu) + (swiglu)", "model.dropout": 0.0, "train.accumulate": 2}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return prepare(tiny(tmp_path_factory.mktemp("documents"), **LAYERS), jax.devices()[:1])


@pytest.fixture(scope="module")
def batch(trainer):
    shape = (trainer.config.train.batch, trainer.config.train.length)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape), jnp.int32)
    pos = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    return {"tokens": tokens, "targets": tokens[:, ::-1], "pos": pos, "weights": jnp.ones(shape)}


def with_layer(state: TrainState, change: dict, layer: int = 1) -> TrainState:
    """The state with some arrays of one layer of the first stack filled with a value: {"swiglu/out/kernel": 1.0}."""

    def fill(path, leaf):
        name = "/".join(key.key for key in path).removeprefix("blocks_0/")
        return leaf.at[layer].set(change[name]) if name in change else leaf

    return state._replace(params=jax.tree_util.tree_map_with_path(fill, state.params))


# What layer 1 is filled with, and the report.
FAULTS = {
    "parameter": ({"attention/q/kernel": jnp.nan}, "parameter layer 1 of blocks_0, attention/q/kernel was already bad"),
    "output": ({"swiglu/up/kernel": 1e38}, "the output of layer 1 of blocks_0, swiglu/up (and"),
    "gradient": ({"swiglu/gate/kernel": 0.0, "swiglu/down/kernel": 3e38}, "gradient of layer 1 of blocks_0, swiglu/"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_first_bad_number_is_told_by_layer_and_module(trainer, batch, fault):
    change, told = FAULTS[fault]
    state = trainer.init()
    names = {"/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(state.params["blocks_0"])}
    assert change.keys() <= names
    assert told in diagnose(trainer, with_layer(state, change), batch)


def test_a_run_that_goes_bad_tells_the_step(tmp_path, monkeypatch):
    config, init = tiny(write_documents(tmp_path / "documents"), **LAYERS), Trainer.init
    monkeypatch.setattr(Trainer, "init", lambda self: with_layer(init(self), FAULTS["output"][0]))
    with pytest.raises(NonFiniteError, match=r"^not finite at step 1: .*layer 1 of blocks_0, swiglu/up"):
        train(config, tmp_path / "run")


def test_debugging_tells_the_norms_of_every_layer_and_changes_no_figure(tmp_path, capsys):
    config = tiny(write_documents(tmp_path / "documents"), **LAYERS, **{"train.steps": 2, "eval.documents": 1})
    train(config, tmp_path / "plain")
    (tmp_path / "run").mkdir()
    jaxseq.train.workdirs.write_config(tmp_path / "run", config)
    assert jaxseq.cli.main(["train", f"--workdir={tmp_path / 'run'}", "--debug"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    for row, plain in zip(metrics.read(tmp_path / "run"), metrics.read(tmp_path / "plain"), strict=True):
        assert row["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        places = {f"blocks_0/{module}/{layer}" for module in ("attention", "swiglu") for layer in range(3)}
        norms = {name: value for name, value in row.items() if name.startswith("gradient_norm/")}
        assert {f"gradient_norm/{place}" for place in places} < norms.keys()
        assert {f"activation_rms/{place}" for place in places | {"blocks_1/swiglu/0"}} < row.keys()
        assert np.linalg.norm(list(norms.values())) == pytest.approx(row["grad_norm"], rel=1e-5)
        assert row["activation_rms/final_norm"] == pytest.approx(1, abs=0.02)
        assert f"blocks_0/attention/1: activation rms {row['activation_rms/blocks_0/attention/1']:.3g}, gradient norm" in told
        assert not any(name.startswith("activation_rms/") for name in plain)


def test_debugging_runs_unscanned(trainer):
    debugging = prepare(trainer.config, jax.devices()[:1], debug=True)
    loops = [str(one.traced.jaxpr).count("unroll=3") for one in (trainer, debugging)]
    assert loops[0] == 0 < loops[1]
