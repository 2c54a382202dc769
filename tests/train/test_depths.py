"""train.init_layers: which layers a model starts from, what it takes over of them, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.train_tiny import small, write_documents

import jaxseq
from jaxseq import UserError, cli, weights
from jaxseq.testing.networks import moved
from jaxseq.train import depths, load, save_params, train

DEEP = {"model.width": 32, "model.stack": "6*(attention swiglu)", "model.attention.heads": 4, "model.vocab": 257}


def config(**fields):
    return jaxseq.config("transformer", **DEEP | {f"model.{name}": value for name, value in fields.items()})


@pytest.fixture(scope="module")
def old():
    """(model, params) of six layers, with no parameter at 0 or 1."""
    model = jaxseq.build(config())
    return model, moved(model.init(jax.random.key(0))["params"], jax.random.key(1))


def started(old, layers: str, **fields):
    """(model, its parameters, paths of the new ones)"""
    model = jaxseq.build(config(**fields))
    fresh = model.init(jax.random.key(2))["params"]
    return model, *depths.started(old[1], old[0], fresh, model, layers)


def without(old, layers):
    """The logits of the old model with only these layers."""
    model, params = old
    chosen = jax.tree.map(lambda x: x[jnp.array(layers)], params["blocks_0"])
    return logits(model.clone(repeats=(len(layers),)), params | {"blocks_0": chosen})


def logits(model, params):
    tokens = np.random.default_rng(0).integers(0, 257, (2, 9)).astype(np.int32)
    return jax.jit(model.apply)({"params": params}, tokens)[0]


@pytest.mark.parametrize(("layers", "stack", "taken"), [
    ("even", "3*(attention swiglu)", [0, 2, 5]),
    ("1,1,4", "3*(attention swiglu)", [1, 1, 4]),
    ("even", "1*(attention swiglu) + 1*(attention swiglu)", [0, 5]),
    ("4", "2/1*(attention swiglu)", [4, 4]),
])  # fmt: skip
def test_the_model_is_the_old_one_with_some_of_its_layers(old, layers, stack, taken):
    model, params, new = started(old, layers, stack=stack)
    assert not new
    np.testing.assert_allclose(logits(model, params), without(old, taken), rtol=1e-4, atol=1e-4)


def test_fewer_key_heads_are_means(old):
    _, params, new = started(old, "0,5", stack="2*(attention swiglu)", **{"attention.kv_heads": 2})
    before_LDHK = old[1]["blocks_0"]["attention"]["k"]["kernel"][jnp.array([0, 5])]
    wanted_LDHK = (before_LDHK[:, :, 0::2] + before_LDHK[:, :, 1::2]) / 2
    assert not new
    np.testing.assert_allclose(params["blocks_0"]["attention"]["k"]["kernel"], wanted_LDHK, rtol=1e-6)


def test_another_mixer_takes_over_what_fits_and_the_rest_is_new(old):
    model, params, new = started(old, "0,5", stack="2*(forgetting_attention swiglu)")
    assert new and all("/forgetting_attention/" in path for path in new)
    before, after = weights.leaves(old[1]), weights.leaves(params)
    fresh = weights.leaves(model.init(jax.random.key(2))["params"])
    for path, x in after.items():
        same = before.get(path.replace("forgetting_attention", "attention"))
        wanted = fresh[path] if path in new else same[jnp.array([0, 5])] if path.startswith("blocks_") else same
        np.testing.assert_array_equal(x, wanted, err_msg=path)


@pytest.mark.parametrize(("layers", "fields", "message"), [
    ("0,6", {"stack": "2*(attention swiglu)"}, "train.init_layers=0,6 must be even, or 2 numbers from 0 to 5"),
    ("0", {"stack": "2*(attention swiglu)"}, "must be even, or 2 numbers"),
    ("first", {"stack": "2*(attention swiglu)"}, "must be even, or 2 numbers"),
    ("even", {"stack": "2*(attention)"}, "blocks of attention swiglu and of attention have different numbers of mixers"),
    ("even", {"width": 48}, "embedding is \\(257, 32\\) in train.init, here it is \\(257, 48\\)"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(old, layers, fields, message):
    with pytest.raises(UserError, match=message) as caught:
        jax.eval_shape(lambda: started(old, layers, **fields)[1])
    assert "\n" not in str(caught.value)


def test_a_run_starts_from_layers_of_another_one(old, tmp_path, capsys):
    fields = small(write_documents(tmp_path / "documents")) | DEEP
    save_params(tmp_path / "deep", jaxseq.config("transformer", **fields), old[1])
    own = {"model.stack": "2*(attention swiglu)", "train.init": str(tmp_path / "deep"), "train.init_layers": "2,4"}
    run = {"train.steps": 1, "train.lr": 1e-20, "train.warmup": 0}
    train(jaxseq.config("transformer", **fields | own | run), tmp_path / "run", devices=jax.devices()[:1])
    model, params, found = load(tmp_path / "run")
    np.testing.assert_allclose(logits(model, params), without(old, [2, 4]), rtol=1e-4, atol=1e-4)
    assert jaxseq.config(str(tmp_path / "run"), **{"train.init": str(tmp_path / "run")}).train.init_layers == ""
    words = [f"--config.{name}={value}" for name, value in (fields | own | {"model.attention.theta": 500.0}).items()]
    assert cli.main(["train", "--config=transformer", f"--workdir={tmp_path / 'other'}", *words]) == 2
    assert "theta is 10000.0 there and 500.0 here" in capsys.readouterr().err
    assert cli.main(["train", "--config=transformer", f"--workdir={tmp_path / 'none'}", "--config.train.init_layers=even"]) == 2
    assert "give the workdir of that model as train.init" in capsys.readouterr().err
