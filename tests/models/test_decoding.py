"""Memory that a compiled decoding step or prefill segment needs in addition to the state."""

import chex
import jax
import jax.numpy as jnp
import pytest

import jaxseq
from jaxseq.generation import _prefill

CONTEXTS, TOKENS = (4096, 16384), 3


def tokens_in_one_program(model, params, state, token_B1):
    """TOKENS greedy tokens in one loop, as in `jaxseq generate`."""

    def step(loop):
        i, state, token_B1 = loop
        logits_BTV, state = model.apply({"params": params}, token_B1, state=state, form="recurrent")
        return i + 1, state, jnp.argmax(logits_BTV, axis=-1).astype(jnp.int32)

    return jax.lax.while_loop(lambda loop: loop[0] < TOKENS, step, (0, state, token_B1))[1:]


def memory(architecture: str, context: int) -> tuple[int, int, int]:
    """Bytes of the state, of the results that replace it, and of temporaries."""
    model = jaxseq.build(jaxseq.config(architecture))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), *model.example())["params"])
    state = jax.eval_shape(lambda: model.init_state(1, context))
    args = params, state, jax.ShapeDtypeStruct((1, 1), jnp.int32)
    found = jax.jit(tokens_in_one_program, static_argnums=0, donate_argnums=2).lower(model, *args).compile().memory_analysis()
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    return size, found.alias_size_in_bytes, found.temp_size_in_bytes


@pytest.mark.parametrize("architecture", ["transformer", "jamba"])
def test_attention_reads_and_writes_its_state_in_place(architecture):
    (size, back, temporary), (longer, _, more) = (memory(architecture, context) for context in CONTEXTS)
    assert back >= size, "the state that comes back is the one that was given"
    assert more - temporary < (longer - size) / 20, "nothing that grows with the state is held beside it"


def test_a_segment_of_a_prompt_copies_the_state_of_a_layer_not_of_all():
    model = jaxseq.build(jaxseq.config("transformer", **{"model.stack": "16*(attention swiglu)"}))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), *model.example())["params"])
    tokens_BT = jax.ShapeDtypeStruct((1, 32), jnp.int32)
    sizes, temporary = [], []
    for context in CONTEXTS:
        state = jax.eval_shape(lambda context=context: model.init_state(1, context))
        found = _prefill.lower(model, "parallel", params, state, tokens_BT, tokens_BT).compile().memory_analysis()
        sizes.append(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)))
        temporary.append(found.temp_size_in_bytes)
        assert found.alias_size_in_bytes >= sizes[-1]
    assert temporary[1] - temporary[0] < (sizes[1] - sizes[0]) / 2


def test_tokens_decoded_in_place_are_those_of_the_whole_sequence():
    """Two rows of different lengths, more slots than one block, a document that starts during decoding, a padded row."""
    config = jaxseq.config("llama", **{"model.width": 32, "model.vocab": 31, "model.stack": "3*(attention swiglu)"})
    model = jaxseq.build(config)
    params = model.init(jax.random.key(0), *model.example())["params"]
    tokens_BT = jax.random.randint(jax.random.key(1), (2, 9), 0, 31)
    pos_BT = jnp.array([[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 0, 1, 2, 3, -1, -1]], jnp.int32)
    wanted_BTV, _ = model.apply({"params": params}, tokens_BT, pos=pos_BT, form="parallel")
    one = jax.jit(lambda tokens, state, pos: model.apply({"params": params}, tokens, state, pos, form="recurrent"))
    state, got = model.init_state(2, 1500), []
    for t in range(9):
        logits_BTV, state = one(tokens_BT[:, t : t + 1], state, pos_BT[:, t : t + 1])
        got.append(logits_BTV)
    chex.assert_trees_all_close(jnp.concatenate(got, axis=1), wanted_BTV, rtol=2e-5, atol=2e-5)
