"""Blocks that share weights, "6/2*(…)" in model.stack, equal blocks with copies of the weights, and are stored once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.train_tiny import tiny

import jaxseq
from jaxseq import convert, weights
from jaxseq.compare.fit import fit
from jaxseq.errors import UserError
from jaxseq.models import _stack
from jaxseq.train import prepare

SMALL = {"model.width": 16, "model.vocab": 20}


def model(stack: str, **fields):
    return jaxseq.build(jaxseq.config("transformer", **SMALL, **{"model.stack": stack} | fields))


@pytest.mark.parametrize(
    ("stack", "plain"),
    [
        ("6/2*(attention mlp)", "6*(attention mlp)"),
        ("4/1*(retention mlp) + (gru)", "4*(retention mlp) + (gru)"),
        ("2/1*(differential_attention mlp)", "2*(differential_attention mlp)"),  # reads the number of its layer
    ],
)
def test_shared_blocks_are_blocks_with_equal_weights(stack, plain):
    shared, copied = model(stack), model(plain)
    params = shared.init(jax.random.key(0), *shared.example())["params"]
    times = shared.repeats[0] // shared.distinct[0]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(params["blocks_0"])} == {shared.distinct[0]}
    copies = params | {"blocks_0": jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), params["blocks_0"])}
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, 9)))

    def run(m, params):
        def loss(params):
            logits, state = m.apply({"params": params}, tokens, state=m.init_state(2, 12))
            return jnp.sum(logits**2), (logits, state)

        gradients, (logits, state) = jax.jit(jax.grad(loss, has_aux=True))(params)
        step = m.apply({"params": params}, tokens[:, :1], state=state, form="recurrent")  # in place
        return (logits, state, step), gradients["blocks_0"]

    (got, gradients), (wanted, of_copies) = (jax.jit(run, static_argnums=0)(*x) for x in ((shared, params), (copied, copies)))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max(initial=0))  # noqa: E731
    jax.tree.map(close, got, wanted)
    jax.tree.map(close, gradients, jax.tree.map(lambda x: x.reshape(-1, times, *x.shape[1:]).sum(1), of_copies))


OWN = {"model.repeat_scale": True, "model.repeat_rank": 2}


def owned(stack: str, seed: int | None = 1):
    """(model whose repetitions have parameters of their own, its parameters); these are random, or initial without a seed."""
    own = model(stack, **OWN)
    params = own.init(jax.random.key(0), *own.example())["params"]
    if seed is not None:
        rng = np.random.default_rng(seed)
        params["changes_0"] = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), params["changes_0"])
    return own, params


@functools.partial(jax.jit, static_argnums=0)
def run(m, params, tokens):
    return m.apply({"params": params}, tokens, m.init_state(2, 12))


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, 9)))


def test_repetitions_start_alike():
    """Initially the results are those of plain sharing, bit for bit; other segments have no such parameters."""
    own, params = owned("4/2*(attention mlp) + (gru)", None)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(params["changes_0"])} == {4} and "changes_1" not in params
    shared = {name: part for name, part in params.items() if name != "changes_0"}
    plain = model("4/2*(attention mlp) + (gru)")
    jax.tree.map(np.testing.assert_array_equal, run(own, params, TOKENS), run(plain, shared, TOKENS))


@pytest.mark.parametrize("stack", ["4/2*(attention mlp)", pytest.param("2/1*(mamba moe)", marks=pytest.mark.slow)])
def test_each_repetition_has_a_change_of_low_rank(stack):
    """It is the block with W + a b in place of each matrix W, also while decoding."""
    own, params = owned(stack)
    params["changes_0"]["scale"] *= 0
    distinct, repeats = own.distinct[0], own.repeats[0]
    plain = model(stack.replace(f"/{distinct}", ""))
    changes = {name: leaf for name, leaf in params["changes_0"].items() if name != "scale"}
    shared = {name: part for name, part in params.items() if name != "changes_0"}
    copies = shared | {"blocks_0": jax.tree.map(lambda x: jnp.repeat(x, repeats // distinct, axis=0), params["blocks_0"])}
    new = {}
    for path, box in weights.leaves(plain.boxed()["params"]).items():
        if box.contracts and path.startswith("blocks_0/"):
            a, b = (changes.pop(f"{path.removeprefix('blocks_0/').replace('/', '_')}_{name}") for name in "ab")
            new[path] = weights.Adapted(weights.at(copies, path), a, b, None, len(box.contracts), 1.0).dense()
    assert new and not changes
    copies = weights.replaced(copies, new, None)
    got, wanted = run(own, params, TOKENS), run(plain, copies, TOKENS)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, got, wanted)
    step = lambda m, params: m.apply({"params": params}, TOKENS[:, :1], got[1], form="recurrent")  # noqa: E731
    jax.tree.map(close, step(own, params), step(plain, copies))


def test_each_repetition_has_a_scale():
    """x <- y + s (y - x) with y = block(x), once for each repetition."""
    fields = {"model.repeat_scale": True, "model.last_norm": False}
    own = model("2/1*(attention mlp)", **fields)
    params = own.init(jax.random.key(0), *own.example())["params"]
    s_ND = jax.random.normal(jax.random.key(1), (2, 16))
    params["changes_0"] = {"scale": s_ND}
    once = model("1*(attention mlp)", **fields | {"model.repeat_scale": False})
    shared = {name: part for name, part in params.items() if name != "changes_0"}
    x_BTD = wanted = jax.random.normal(jax.random.key(2), (2, 9, 16))
    for s_D in s_ND:
        y_BTD = once.apply({"params": shared}, wanted, method="hidden")[0]
        wanted = y_BTD + s_D * (y_BTD - wanted)
    np.testing.assert_allclose(own.apply({"params": params}, x_BTD, method="hidden")[0], wanted, rtol=1e-5, atol=1e-5)


def test_repetitions_of_quantized_blocks():
    """The changes may be Weights, as the block's matrices may be."""
    own, params = owned("2/1*(mlp)")
    boxes = {path: box for path, box in weights.leaves(own.boxed()["params"]).items() if box.contracts}
    codes = {path: weights.QuantizedWeight.of(weights.at(params, path), "int8", box.contracts) for path, box in boxes.items()}
    assert any(path.startswith("changes_0/") for path in codes)
    quantized = weights.replaced(params, codes, weights.is_node)
    got, wanted = (run(own, tree, TOKENS)[0] for tree in (quantized, weights.merged(quantized)))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_repetitions_of_what_is_not_shared_are_refused():
    with pytest.raises(UserError, match="blocks that share weights"):
        model("4*(attention mlp)", **OWN)


@pytest.mark.parametrize("own", [{}, OWN])
def test_the_optimiser_holds_each_tensor_once(tmp_path, own):
    config = tiny(tmp_path, **{"model.stack": "4/1*(attention mlp)", "model.remat": "full", "model.dropout": 0.1} | own)
    trainer = prepare(config, jax.devices()[:1])
    for tree in (trainer.abstract.params, trainer.abstract.optimizer[1].mu):
        assert {leaf.shape[0] for leaf in jax.tree.leaves(tree.get("changes_0", {}))} == ({4} if own else set())
    for tree in (trainer.abstract.params, trainer.abstract.optimizer[1].mu):
        assert {leaf.shape[0] for leaf in jax.tree.leaves(tree["blocks_0"])} == {1}
    state = trainer.init()
    tokens = np.zeros(trainer.abstract_batch()["tokens"].shape, np.int32)
    batch = {name: np.ones(leaf.shape, leaf.dtype) for name, leaf in trainer.abstract_batch().items()}
    batch |= {"tokens": tokens, "pos": np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)}
    state, metrics = trainer.compile()(state, batch)
    assert bool(metrics["ok"]) and metrics["grad_norm"] > 0


def test_a_shared_stack_is_fitted_by_width_and_depth():
    config = jaxseq.config("transformer", **{"model.stack": "6/2*(attention swiglu)", "model.vocab": 257})
    (segment,) = _stack.parse(fit(config, 164_000).model.stack)
    assert segment.distinct == 2 or segment.repeats == 2


@pytest.mark.parametrize("stack", ["6/4*(attention mlp)", "6/0*(attention mlp)", "/2*(attention mlp)"])
def test_what_cannot_be_shared_is_refused(stack):
    with pytest.raises(UserError, match="model.stack") as caught:
        model(stack)
    assert "\n" not in str(caught.value)


def test_no_source_takes_shared_blocks_for_others():
    with pytest.raises(UserError, match="no source holds this model"):
        convert._holder(jaxseq.build(jaxseq.config("llama", **SMALL, **{"model.stack": "4/2*(attention swiglu)"})))
    convert._holder(jaxseq.build(jaxseq.config("llama", **SMALL)))


def test_text_is_the_inverse_of_parse():
    text = "12/4*(attention mlp) + 2*(mamba) + (gru mlp)"
    assert _stack.text(_stack.parse(text)) == text
