"""Types of weights that exist only in training: low-rank adapters (LoRA, DoRA), and weights rounded in the forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.train_tiny import small, write_documents

import jaxseq
from jaxseq import UserError, weights
from jaxseq.compress import compress
from jaxseq.train import checkpoints, load, save_params, structure, train

STACKS = {
    "transformer": "1*(attention swiglu)",
    "retnet": "1*(retention mlp)",
    "mamba": "2*(mamba)",
    "rwkv7": "(rwkv7 rwkv_channel) + 1*(rwkv7 rwkv_channel)",
}


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return write_documents(tmp_path_factory.mktemp("documents"))


def base(name: str, documents, folder) -> dict:
    """Fields of a run that starts from random weights in `folder`."""
    fields = {"model.width": 32, "model.stack": STACKS[name], "model.vocab": 257} | small(documents)
    config = jaxseq.config(name, **fields)
    save_params(folder, config, jaxseq.build(config).init(jax.random.key(0))["params"])
    return fields | {"train.init": str(folder), "train.steps": 3, "train.lr": 1e-2, "train.lora_rank": 4}


def size(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


# The adapter of a model does not depend on its mixers; the others are slow tests.
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n != "transformer" else []) for n in STACKS])
def test_only_the_adapter_is_trained_and_in_the_checkpoint(name, documents, tmp_path):
    fields = base(name, documents, tmp_path / "base")
    train(jaxseq.config(name, **fields), tmp_path / "run")
    _, params, config = load(tmp_path / "run")
    plain, _ = weights.parted(params)
    own = set(weights.leaves(plain))
    assert own and all(path.endswith(("/a", "/b")) for path in own)
    assert all(np.abs(leaf).max() > 0 for path, leaf in weights.leaves(params).items() if path.endswith("/b"))
    old = weights.leaves(load(tmp_path / "base")[1])
    kept = {path.removesuffix("/base"): leaf for path, leaf in weights.leaves(params).items() if path not in own}
    assert kept.keys() == old.keys() and all((kept[path] == old[path]).all() for path in old)
    with checkpoints.manager(tmp_path / "run", create=False) as manager:
        for item in ("params", "optimizer"):
            saved = jax.tree.leaves(dict(manager.item_metadata(3))[item])
            numbers = sum(np.prod(leaf.shape) for leaf in saved if hasattr(leaf, "shape"))
            assert numbers * 4 <= 2.1 * size(plain), item
    assert config.train.lora_rank == 4


def test_it_begins_with_the_given_weights_and_resumes(documents, tmp_path):
    """The first loss is that of the base; two runs of three steps equal one of six."""
    fields = base("transformer", documents, tmp_path / "base") | {"train.lora_magnitude": True, "train.decay_steps": 6}
    losses: dict[str, list] = {"whole": [], "parts": [], "plain": []}

    def run(name, steps, **more):
        config = jaxseq.config("transformer", **fields | {"train.steps": steps} | more)
        train(config, tmp_path / name, progress=lambda record: losses[name].append(record["loss"]))

    run("whole", 6)
    run("parts", 3)
    run("parts", 6)
    run("plain", 2, **{"train.lora_rank": 0})
    np.testing.assert_allclose(losses["parts"], losses["whole"], rtol=1e-6)
    np.testing.assert_allclose(losses["whole"][0], losses["plain"][0], rtol=1e-5)
    assert losses["whole"][-1] < losses["whole"][0]


def test_merged_weights_compute_the_same_and_can_be_trained_on(documents, tmp_path):
    fields = base("transformer", documents, tmp_path / "base")
    train(jaxseq.config("transformer", **fields), tmp_path / "run")
    model, params, _ = load(tmp_path / "run")
    tokens = jnp.arange(12)[None]
    logits = [model.apply({"params": tree}, tokens)[0] for tree in (params, weights.merged(params))]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-5)
    again = jaxseq.config("transformer", **fields | {"train.init": str(tmp_path / "run"), "train.lora_rank": 0})
    train(again, tmp_path / "again")
    assert not any(map(weights.is_weight, jax.tree.leaves(load(tmp_path / "again")[1], is_leaf=weights.is_weight)))


def test_targets_are_parts_of_paths(documents, tmp_path):
    fields = base("transformer", documents, tmp_path / "base") | {"train.lora_targets": "attention/q, attention/v"}
    train(jaxseq.config("transformer", **fields), tmp_path / "run")
    paths = {path for path in weights.leaves(load(tmp_path / "run")[1]) if path.endswith("/a")}
    assert paths == {"blocks_0/attention/q/kernel/a", "blocks_0/attention/v/kernel/a"}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"train.rounding": "int8"}, "set one of the two"),
        ({"train.rounding": "int9", "train.lora_rank": 0}, "there is no train.rounding=int9"),
        ({"train.init": None}, "give their workdir as train.init"),
        ({"train.lora_targets": "mamba"}, "is part of no linear map; choose from: blocks_0/attention/k/kernel"),
    ],
)
def test_what_cannot_be_trained_is_told(documents, tmp_path, more, told):
    config = jaxseq.config("transformer", **base("transformer", documents, tmp_path / "base") | more)
    with pytest.raises(UserError, match=told):
        train(config, tmp_path / "run")


@pytest.mark.slow
def test_rounded_weights_are_trained_as_they_are_quantized_afterwards(documents, tmp_path):
    """With train.rounding the logits of a run equal those of its int4 weights; without it they differ. All weights are
    trained."""
    fields = base("transformer", documents, tmp_path / "base") | {"train.lora_rank": 0, "train.rounding": "int4"}
    train(jaxseq.config("transformer", **fields), tmp_path / "run")
    model, params, config = load(tmp_path / "run")
    compress(tmp_path / "run", "int4", tmp_path / "int4", tokens=64)
    small, codes, made = load(tmp_path / "int4")
    assert made.train.rounding == "" and any(path.endswith("codes") for path in weights.leaves(codes))
    tokens = jnp.arange(12)[None]
    logits = [np.asarray(one.apply({"params": tree}, tokens)[0]) for one, tree in ((model, params), (small, codes))]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)
    types, plain = structure.settled(config, params)
    assert types == "" and np.abs(np.asarray(model.apply({"params": plain}, tokens)[0]) - logits[0]).max() > 0.01
    old = weights.leaves(load(tmp_path / "base")[1])
    assert all((leaf != old[path]).any() for path, leaf in weights.leaves(plain).items())
