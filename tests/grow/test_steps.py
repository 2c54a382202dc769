"""A grown model computes what it did before, and its new parts learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseq
from jaxseq import UserError, recipes, weights
from jaxseq.grow._run import _difference
from jaxseq.testing.networks import moved

STACKS = {
    "transformer": "2*(attention swiglu)",  # here with grouped queries
    "gpt2": "2*(attention mlp)",  # biases, learned positions, a tied head
    "retnet": "2*(retention mlp)",
    "mamba": "2*(mamba)",
    "rwkv6": "2*(rwkv6 rwkv_channel)",
    "griffin": "(rglru geglu attention:local geglu) + 2*(rglru geglu)",
}
FITS = {
    "layers:1.5": set(STACKS),
    "channels:2": set(STACKS),
    "heads:2": {"transformer", "gpt2", "griffin"},
    "width:2": {"transformer", "gpt2"},
    "experts:3": {"transformer", "gpt2", "retnet", "griffin"},
}
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 24)).astype(np.int32)


# Slow tests: what grows in these two also grows in the others.
ALIKE = ("rwkv6", "griffin")


@pytest.fixture(scope="module", params=[pytest.param(n, marks=[pytest.mark.slow] if n in ALIKE else []) for n in STACKS])
def work(request):
    grouped = {"model.attention.heads": 4, "model.attention.kv_heads": 2} if request.param == "transformer" else {}
    return request.param, candidate(request.param, STACKS[request.param], **grouped)


def candidate(name: str, stack: str, **fields) -> recipes.Candidate:
    """A model with random weights, none of them 0 or 1."""
    config = jaxseq.config(name, **{"model.width": 32, "model.stack": stack, "model.vocab": 64}, **fields)
    params = jaxseq.build(config).init(jax.random.key(0))["params"]
    return recipes.Candidate(config, moved(params, jax.random.key(1)), lambda line: None)


def grown(work: recipes.Candidate, recipe: str) -> recipes.Candidate:
    for module, argument in recipes.steps("grow", recipe):
        work = module.apply(work, argument, jax.random.key(2))
    return work


def count(work: recipes.Candidate) -> int:
    return sum(x.size for x in jax.tree.leaves(work.params))


@pytest.mark.parametrize("recipe", FITS)
def test_the_logits_do_not_change(work, recipe):
    name, before = work
    if name not in FITS[recipe]:
        with pytest.raises(UserError):
            _difference(before, grown(before, recipe), recipe)
        return
    after = grown(before, recipe)
    assert _difference(before, after, recipe) < 1e-5
    assert count(after) > count(before)


def test_copies_learn_different_things(work):
    """With equal shares of the weights that read them, their gradients would be equal."""
    name, before = work
    if name != "transformer":
        return
    after = grown(before, "channels:2")
    loss = lambda params: jnp.sum(jnp.square(after.model.apply({"params": params}, TOKENS)[0]))  # noqa: E731
    up_LDF = jax.jit(jax.grad(loss))(after.params)["blocks_0"]["swiglu"]["up"]["kernel"]
    first, second = jnp.split(up_LDF, 2, axis=2)
    assert jnp.linalg.norm(first - second) > 0.1 * jnp.linalg.norm(first)


def test_new_layers_are_between_the_old_ones(work):
    """And they are copies, except for their projections to the residual stream, which get gradients."""
    name, before = work
    if name != "transformer":
        return
    after = grown(before, "layers:2")
    old, new = (weights.leaves(w.params) for w in (before, after))
    assert after.config.model.stack == "4*(attention swiglu)"
    for path in (path for path in old if path.startswith("blocks_0/")):
        copies = jnp.zeros_like(old[path]) if path.endswith(("o/kernel", "down/kernel")) else old[path]
        np.testing.assert_array_equal(new[path], jnp.stack([old[path], copies], axis=1).reshape(new[path].shape))
    loss = lambda params: jnp.sum(jnp.square(after.model.apply({"params": params}, TOKENS)[0]))  # noqa: E731
    down_LFD = jax.jit(jax.grad(loss))(after.params)["blocks_0"]["swiglu"]["down"]["kernel"]
    assert (jnp.linalg.norm(down_LFD, axis=(1, 2)) > 0).all()


def test_steps_in_a_row(work):
    name, before = work
    if name in ("transformer", "gpt2"):
        assert _difference(before, grown(before, "layers:2+channels:2+heads:2+width:2+experts:4"), "all") < 1e-5


@pytest.mark.parametrize(
    "name, recipe, message",
    [
        ("transformer", "layers:0.5", "layers:0.5 needs a number between 1 and 100"),
        ("transformer", "channels:1.5", "channels:1.5 needs an integer of at least 2"),
        ("transformer", "depth:2", "there is no step 'depth:2'"),
        ("mamba", "experts:4", "no feed-forward that experts could replace"),
        ("retnet", "heads:2", "the decays of retention depend on the number of heads"),
        ("lightning", "layers:2", "the layers of this model depend on their number"),
    ],
)
def test_what_cannot_grow_is_refused_in_one_line(name, recipe, message):
    stack = {**STACKS, "lightning": "2*(lightning swiglu)"}[name]
    config = jaxseq.config("transformer" if name == "lightning" else name, **{"model.width": 32, "model.stack": stack})
    params = jax.eval_shape(lambda: jaxseq.build(config).init(jax.random.key(0)))["params"]
    with pytest.raises(UserError, match=message) as caught:
        grown(recipes.Candidate(config, params, lambda line: None), recipe)
    assert "\n" not in str(caught.value)


def test_a_step_that_would_change_the_outputs_is_refused():
    """A block with norms after the sum is not the identity if its projections are zero."""
    before = candidate("transformer", "2*(attention mlp)", **{"model.block": "post_norm"})
    with pytest.raises(UserError, match="layers:2 would change what this model computes"):
        _difference(before, grown(before, "layers:2"), "layers:2")
