"""States as data: rows, batches, files and rewinding, for every kind of state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxseq
from jaxseq.errors import UserError
from jaxseq.models import state as states
from jaxseq.testing import compare
from jaxseq.testing.networks import moved

# Full attention, a matrix, a window of convolution inputs, a stack with streams, a window and a recurrence, a small latent.
NAMES = ("transformer", "retnet", "mamba", "rwkv7", "griffin", "kimi_linear")
CONTEXT = 24


@functools.cache
def made(name: str):
    """(model, params, tokens [3, 16], the state after 6, 7 and 8 of them)."""
    config = jaxseq.config(name, **{"model.width": 32, "model.vocab": 16})
    model = jaxseq.build(config)
    params = moved(model.init(jax.random.key(0))["params"], jax.random.key(2))  # away from initial zeros
    tokens = jax.random.randint(jax.random.key(1), (3, 16), 0, 16)
    pos = jnp.where(jnp.arange(8) < jnp.array([[6], [7], [8]]), jnp.arange(8), -1)
    state = run(name, params, tokens[:, :8], model.init_state(3, CONTEXT), pos)[1]
    return model, params, tokens, state


def run(name, params, tokens, state, pos=None):
    return _run(name)(params, tokens, state, pos)


@functools.cache
def _run(name: str):
    model = jaxseq.build(jaxseq.config(name, **{"model.width": 32, "model.vocab": 16}))
    return jax.jit(lambda params, tokens, state, pos: model.apply({"params": params}, tokens, state, pos, form="parallel"))


def close(got, wanted):
    assert compare.worst(got, wanted)[0] < 1e-5


SLOW = ("kimi_linear", "rwkv7")  # the laws split rows of every kind of state


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in NAMES])
def test_rows_go_on_alone_as_they_do_together(name):
    model, params, tokens, state = made(name)
    wanted, after = run(name, params, tokens[:, 8:], state)
    for order in ([2, 0], [1, 1, 0]):
        own, own_after = run(name, params, tokens[jnp.array(order), 8:], states.rows(state, order))
        close((own, own_after), (wanted[jnp.array(order)], states.rows(after, order)))


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_replaced_and_joined(name):
    model, params, tokens, state = made(name)
    same = states.put_rows(model.init_state(3, CONTEXT), states.rows(state, [2, 0, 1]), [2, 0, 1])
    joined = states.concatenate([states.rows(state, [0]), states.rows(state, [1, 2])])
    for got in (same, joined):
        assert states.batch(got) == 3 and compare.worst(got, state)[0] == 0
    if name == "transformer":
        with pytest.raises(UserError, match="contexts"):
            states.concatenate([state, model.init_state(1, CONTEXT + 1)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["goes on", "with pos", "with padding"])
def test_rewinding_is_not_having_read_the_rest(name, how):
    """The state and the next logits are as if the dropped tokens had never been read."""
    model, params, tokens, state = made(name)
    new, kept = tokens[:, 8:13], jnp.array([0, 3, 5])
    pos = state.next_pos_B[:, None] + jnp.arange(5)
    read = jnp.array([2, 4, 5]) if how == "with padding" else jnp.array([5, 5, 5])
    _, after = run(name, params, new, state, jnp.where(jnp.arange(5) < read[:, None], pos, -1))
    rewound = jax.jit(functools.partial(states.rewind, model, form="parallel"))(
        params, state, after, new, kept, pos if how == "with pos" else None
    )
    _, wanted = run(name, params, new, state, jnp.where(jnp.arange(5) < kept[:, None], pos, -1))
    close(rewound.next_pos_B, wanted.next_pos_B)
    got, expected = (run(name, params, tokens[:, 13:], s) for s in (rewound, wanted))
    close(got[0], expected[0])
    assert compare.worst(run(name, params, tokens[:, 13:], after)[0], expected[0])[0] > 1e-4  # else the rest would be visible


@pytest.mark.parametrize("name", ["transformer", "mamba"])
def test_rows_without_dropped_tokens_keep_their_states(name):
    """Bit for bit, whatever the other rows drop. If no row drops any, nothing is computed."""
    model, params, tokens, state = made(name)
    new, read = tokens[:, 8:13], jnp.array([0, 3, 5])
    pos = state.next_pos_B[:, None] + jnp.arange(5)
    _, after = run(name, params, new, state, jnp.where(jnp.arange(5) < read[:, None], pos, -1))
    rewind = jax.jit(functools.partial(states.rewind, model, form="parallel"))
    assert compare.worst(rewind(params, state, after, new, read), after)[0] == 0
    rewound = rewind(params, state, after, new, jnp.array([0, 2, 5]))
    assert compare.worst(states.rows(rewound, [0, 2]), states.rows(after, [0, 2]))[0] == 0
    assert compare.worst(states.rows(rewound, [1]), states.rows(after, [1]))[0] > 0
    nothing = jax.tree.map(lambda x: x * jnp.nan, params)
    assert compare.worst(rewind(nothing, state, after, new, read), after)[0] == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_state_is_the_same(name, tmp_path):
    model, _, _, state = made(name)
    states.save(tmp_path / "state", model, state)
    loaded = states.load(tmp_path / "state", model)
    assert jax.tree.structure(loaded) == jax.tree.structure(state) and compare.worst(loaded, state)[0] == 0
    assert [x.dtype for x in jax.tree.leaves(loaded)] == [x.dtype for x in jax.tree.leaves(state)]


def test_another_models_state_and_damaged_files_are_refused(tmp_path):
    model, _, _, state = made("retnet")
    path = tmp_path / "state"
    states.save(path, model, state)
    with pytest.raises(UserError, match="another model"):
        states.load(path, model.clone(norm_eps=1e-3))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="no state"):
        states.load(path, model)
    save_file({"0": np.zeros(3)}, path, {"schema": str(states.SCHEMA), "model": states.fingerprint(model)})
    with pytest.raises(UserError, match="damaged"):
        states.load(path, model)
    with pytest.raises(UserError, match="no state"):
        states.load(tmp_path / "missing", model)
