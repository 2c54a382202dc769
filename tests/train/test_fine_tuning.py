"""Weights under another config than their own: allowed differences, errors that name the field, and starting points."""

import logging
import tarfile

import jax
import numpy as np
import pytest
from helpers.places import FILES

import jaxseq
from jaxseq import UserError, cli, data, registry
from jaxseq.train import fitting, load, metrics, optimizer, train
from jaxseq.train import mesh as meshes

RUNS = FILES / "old_runs"
SMALL = {"model.width": 32, "model.vocab": 11, "train.length": 32}
SIZES = [
    f"{name}:{size}" if size else name
    for name in registry.names("configs")
    for size in ("", *getattr(registry.load("configs", name), "SIZES", ()))
]


@pytest.fixture(autouse=True)
def heard(monkeypatch):
    """Lets caplog see jaxseq's log, which does not propagate to the root logger."""
    monkeypatch.setattr(logging.getLogger("jaxseq"), "propagate", True)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A Transformer after a few steps."""
    folder = tmp_path_factory.mktemp("run")
    with tarfile.open(RUNS / "transformer.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("name", SIZES)
def test_every_built_in_config_passes_the_trainers_checks(name):
    """Checks of the optimiser, the batch on one device, and the model."""
    config = jaxseq.config(name)
    optimizer.check(config.train)
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:1])
    meshes.check_batch(mesh, config.train.batch, config.train.length, config.train.accumulate)
    assert jaxseq.build(config)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("llama", "attention.theta", 1e5), ("llama", "norm_eps", 1e-6), ("llama", "attention.rotary_fraction", 0.5),
        ("llama", "attention.window", 8), ("gpt2", "mlp.activation", "gelu"), ("mamba2", "mamba2.dt_high", 0.1),
        ("t5", "max_distance", 100), ("vit", "norm_eps", 1e-3),
    ],
)  # fmt: skip
def test_a_field_that_changes_what_is_computed_is_a_difference(name, field, value):
    small = SMALL if name != "vit" else {"model.width": 32, "model.classes": 3}
    old = jaxseq.config(name, **small)
    new = jaxseq.config(name, **small | {f"model.{field}": value})
    section = old.model
    for part in field.split("."):
        section = section[part]
    assert fitting.differences(old, new) == {f"model.{field}": (section, value)}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"model.attention.head_size": 8, "model.swiglu.hidden": 128}),  # written out
        ("llama", {"model.remat": "full", "model.dtype": "bfloat16", "model.embedding_std": 0.5}),
        ("mamba", {"model.mamba.dt_min": 0.01}),  # of new weights
        ("bert", {"model.classes": 3, "model.dropout": 0.5}),  # another head
        ("llama", {"model.width": 64}),  # reported with the shapes
    ],
)
def test_what_may_differ(name, changes):
    assert fitting.differences(jaxseq.config(name, **SMALL), jaxseq.config(name, **SMALL | changes)) == {}


def test_a_difference_is_refused_unless_it_is_allowed_by_name(workdir, tmp_path, caplog, capsys):
    changes = {"model.attention.theta": 77.0, "model.norm_eps": 0.5}
    with pytest.raises(UserError, match="model.attention.theta") as caught:
        fitting.check(workdir, jaxseq.config(str(workdir), **changes | {"train.init_allow": "model.norm_eps"}))
    assert "norm_eps is" not in str(caught.value) and "model.norm_eps is 1e-05 there and 0.5 here" in caplog.text
    fitting.check(workdir, jaxseq.config(str(workdir), **changes | {"train.init_allow": "model.norm_eps, model.attention.theta"}))
    words = ["train", f"--config={workdir}", f"--config.train.init={workdir}", f"--workdir={tmp_path / 'new'}", "--dry-run"]
    assert cli.main([*words, *(f"--config.{name}={value}" for name, value in changes.items())]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "model.attention.theta is 10000.0 there and 77.0 here" in error and "model.norm_eps is" in error
    assert "init_allow=model.attention.theta,model.norm_eps" in error and not (tmp_path / "new").exists()


def test_a_workdir_is_a_config(workdir, capsys):
    config = jaxseq.config(str(workdir), **{"train.steps": 3})
    assert config.model == load(workdir)[2].model and config.train.steps == 3
    assert cli.main(["train", "--config=no/where", "--workdir=x"]) == 2
    assert "neither a .py file nor a workdir" in capsys.readouterr().err


def test_load_gives_what_generate_takes(workdir):
    model, params, tokenizer = jaxseq.load(workdir)
    assert isinstance(tokenizer, data.Tokenizer)
    tokens = jaxseq.generate(model, params, [tokenizer.prompt("The state")], max_tokens=3, temperature=0)
    assert len(tokens[0]) == 3
    with pytest.raises(UserError, match="not the workdir"):
        jaxseq.load(workdir / "nowhere")


@pytest.mark.parametrize(
    ("name", "overrides", "warmup", "lr"),
    [
        ("llama:smollm2-135m", {}, 100, 3e-3),
        ("llama:smollm2-135m", {"train.init": "x"}, 100, 3e-4),
        ("llama:smollm2-135m", {"train.init": "x", "train.lr": 1e-3, "train.warmup": 5}, 5, 1e-3),
        ("llama:smollm2-135m", {"train.steps": 100_000}, 2000, 3e-3),
        ("transformer", {"train.steps": 40}, 4, None),
        ("bert:base", {"train.steps": 3}, 0, None),
    ],
)
def test_what_is_left_open_is_fitted_to_the_run(name, overrides, warmup, lr):
    train_section = jaxseq.config(name, **overrides).train
    optimizer.check(train_section)
    assert train_section.warmup == warmup
    assert lr is None or train_section.lr == pytest.approx(lr)


def test_fine_tuning_as_it_stands_starts_where_the_weights_are_and_improves(workdir, tmp_path):
    config = jaxseq.config(str(workdir), **{"train.init": str(workdir), "train.steps": 24, "train.log_every": 1})
    train(config, tmp_path, devices=jax.devices()[:1])
    losses = [record["loss"] for record in metrics.read(tmp_path)]
    assert losses[0] < np.log(256) and np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.02
