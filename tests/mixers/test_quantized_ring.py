"""Attention whose state holds keys and values as 8-bit integers: laws, its size, its error, and what cannot have it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseq
from jaxseq import UserError, generate, registry, testing
from jaxseq.call import Call
from jaxseq.mixers._quantized_ring import QuantizedRing
from jaxseq.mixers.attention import Attention
from jaxseq.mixers.differential_attention import DifferentialAttention
from jaxseq.models import state as states

SUBJECTS = {
    "window": Attention(width=16, layers=2, kv_heads=2, window=5, ring="int8"),
    "all": Attention(width=16, layers=2, ring="int8", interleaved=True),
    "differential": DifferentialAttention(width=16, layers=2, ring="int8"),
}


@pytest.mark.parametrize("law", ["split", "reset", "padding", "causality", pytest.param("unit", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["window", *(pytest.param(name, marks=pytest.mark.slow) for name in ("all", "differential"))])
def test_laws(name, law):
    """All forms and cuts give the same: the rounding of a token does not depend on the others."""
    (subject,) = testing.subjects(SUBJECTS[name])
    testing.check_law(subject, law)


def model(**fields):
    values = {"model.width": 64, "model.stack": "2*(attention mlp)", "model.vocab": 257}
    values |= {"model.attention.heads": 2, "model.attention.kv_heads": 2}
    return jaxseq.build(jaxseq.config("transformer", **values | fields))


@pytest.fixture(scope="module")
def both():
    """(model with the ring in 8 bits, the same with one in float32, parameters)."""
    plain, small = model(), model(**{"model.attention.ring": "int8"})
    return small, plain, plain.init(jax.random.key(0))["params"]


def test_the_state_takes_about_a_quarter(both):
    size = lambda m: sum(x.nbytes for x in jax.tree.leaves(m.init_state(1, 4096)))  # noqa: E731
    small, plain, _ = both
    assert size(small) < 0.29 * size(plain)  # 32 bytes and a scale, of 128 bytes


def test_the_logits_are_close_to_those_of_floats(both):
    """Within 2 % of the largest logit; the rounded keys are read in a prompt as in decoding, so both give the same."""
    small, plain, params = both
    tokens = jax.random.randint(jax.random.key(1), (2, 40), 0, 256)
    got, wanted = (np.asarray(jax.jit(m.apply)({"params": params}, tokens)[0]) for m in (small, plain))
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert 1e-6 < error < 0.02

    @jax.jit
    def decoded(tokens):
        step = lambda state, ids_B: small.apply({"params": params}, ids_B[:, None], state, form="recurrent")[::-1]  # noqa: E731
        return jax.lax.scan(step, small.init_state(2, 48), tokens.T)

    state, logits_TB1V = decoded(tokens)
    np.testing.assert_allclose(jnp.moveaxis(logits_TB1V[:, :, 0], 0, 1), got, rtol=1e-3, atol=1e-3)
    after = jax.jit(small.apply)({"params": params}, tokens, small.init_state(2, 48))[1]
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert a.dtype == b.dtype and np.abs(np.float64(a) - np.float64(b)).max() <= (1 if a.dtype == jnp.int8 else 1e-4)


def test_generation_with_a_draft_and_saved_states(both, tmp_path):
    """Speculative decoding gives the model's own greedy tokens; a saved state is read again."""
    small, _, params = both
    draft = model(**{"model.stack": "1*(attention mlp)", "model.attention.ring": "int8"})
    prompts = [[1, 2, 3], [200, 7]]
    more = {"max_tokens": 12, "temperature": 0.0}
    alone = generate(small, params, prompts, **more)
    assert generate(small, params, prompts, draft=(draft, draft.init(jax.random.key(5))["params"]), **more) == alone
    state = small.apply({"params": params}, jnp.arange(6)[None], small.init_state(1, 16))[1]
    states.save(tmp_path / "state", small, state)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), states.load(tmp_path / "state", small), state))


def test_training_goes_past_the_rounding(both):
    small, plain, params = both
    tokens = jnp.arange(9)[None]
    grads = [
        jax.jit(jax.grad(lambda p, m=m: jnp.sum(jnp.cos(m.apply({"params": p}, tokens, train=True)[0]))))(params)
        for m in (small, plain)
    ]
    for a, b in zip(*map(jax.tree.leaves, grads), strict=True):
        assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(b)


@pytest.mark.parametrize(
    ("fields", "told"), [({"ring": "int4"}, "there is no ring 'int4'"), ({"ring": "int8", "alibi": True}, "alibi hold positions")]
)
def test_what_cannot_have_it(fields, told):
    with pytest.raises(UserError, match=told):
        Attention(width=16, layers=2, rotary=False, **fields).boxed()


@pytest.mark.parametrize("name", [n for n in registry.names("mixers") if issubclass(registry.load_class("mixers", n), Attention)])
def test_every_kind_of_attention_has_it_or_refuses_it(name):
    """If this fails for a new subclass: route its keys and values through `Attention._attend`, or set `quantizes = False`."""
    mixer = registry.load_class("mixers", name)(width=16, layers=2, ring="int8")
    pos_BT = jnp.arange(3)[None]

    def after():
        mixed, _ = mixer.init_with_output(jax.random.key(0), jnp.zeros((1, 3, 16)), mixer.init_state(1, 8), Call.of(pos_BT))
        return mixed.state

    if mixer.why_no_ring():
        with pytest.raises(UserError, match="ring=int8 is not possible"):
            jax.eval_shape(after)
    else:
        assert isinstance(jax.eval_shape(after), QuantizedRing)
