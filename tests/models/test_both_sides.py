"""Encoders and encoder-decoders: packing, padding, decoding in segments, depth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseq
from jaxseq.compat import enable_x64
from jaxseq.models import _relative
from jaxseq.models._transformer import segments
from jaxseq.testing import networks

SMALL = {
    "bert": {"model.width": 16, "model.heads": 2, "model.hidden": 24, "model.layers": 2, "model.max_positions": 16},
    "t5": {"model.width": 16, "model.heads": 2, "model.head_size": 8, "model.hidden": 24, "model.encoder_layers": 2,
           "model.decoder_layers": 2, "model.buckets": 8, "model.max_distance": 8},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def double():
    with enable_x64(True):
        yield


# parameters of the published checkpoints
PUBLISHED = {
    ("bert:base", ""): 109_514_298,
    ("vit:b16", "model.classes"): 86_567_656,
    ("t5:small", ""): 60_506_624,
    ("t5:base", ""): 222_903_552,
    ("t5:v1_1-small", ""): 76_961_152,
    ("t5:switch-base-8", ""): 619_339_008,
}


@pytest.mark.parametrize(("name", "classes"), PUBLISHED)
def test_published_sizes(name, classes):
    boxed = jaxseq.build(jaxseq.config(name, **({classes: 1000} if classes else {}))).boxed()["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(boxed)) == PUBLISHED[name, classes]


@functools.cache
def made(name, **more):
    """A small float64 model with all parameters moved away from their initial values, and its variables."""
    config = jaxseq.config(name, **SMALL[name] | {"model.vocab": 31, "model.dtype": "float64"} | more)
    model = jaxseq.build(config)
    params = networks.moved(model.init(jax.random.key(0), *model.example())["params"], jax.random.key(1))
    return model, {"params": params}


def tokens_of(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 31, shape), jnp.int32)


def pos_of(*rows):
    return jnp.asarray(rows, jnp.int32)


def test_segments_number_the_documents():
    pos = pos_of([0, 1, 0, 1, -1], [-1, 3, 4, 0, 1], [-1, -1, 0, -1, 1])
    np.testing.assert_array_equal(segments(pos), [[1, 1, 2, 2, 0], [0, 1, 1, 2, 2], [0, 0, 1, 0, 1]])


def test_packed_and_padded_documents_are_read_as_if_alone():
    model, variables = made("bert")
    read = jax.jit(model.apply)
    a, b = tokens_of((1, 3)), tokens_of((1, 4), 1)
    packed = jnp.concatenate([a, jnp.full((1, 1), -7, jnp.int32), b], axis=1)
    out = read(variables, packed, pos_of([0, 1, 2, -1, 0, 1, 2, 3]))
    for part, alone in ((slice(0, 3), a), (slice(4, 8), b)):
        whole = read(variables, alone)
        np.testing.assert_allclose(out.hidden[:, part], whole.hidden, atol=1e-12)
        np.testing.assert_allclose(out.logits[:, part], whole.logits, atol=1e-12)
    assert not out.hidden[:, 3].any()
    few = read(variables, packed, pos_of([0, 1, 2, -1, 0, 1, 2, 3]), at=pos_of([6, 0])).logits
    np.testing.assert_allclose(few, out.logits[:, jnp.asarray([6, 0])], atol=1e-12)


def test_decoding_in_portions_is_decoding_at_once():
    """Two documents per row, padding in the middle, segments of 4, 0 and 4 tokens."""
    model, variables = made("t5")
    source, tokens = tokens_of((2, 7)), tokens_of((2, 8), 1)
    source_pos = pos_of([0, 1, 2, 0, 1, 2, -1], [-1, 0, 1, 2, 3, 0, 1])
    pos = pos_of([0, 1, -1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 4, -1, 0, 1])
    whole = jax.jit(model.apply)(variables, source, tokens, source_pos, pos)
    state = jax.jit(lambda *x: model.apply(*x, context=9, method="start"))(variables, source, source_pos)
    decode = jax.jit(lambda *x: model.apply(variables, *x, method="decode"))
    spec, parts = jax.tree.map(lambda x: (x.shape, x.dtype), state), []
    for start, stop in ((0, 4), (4, 4), (4, 8)):
        logits, state = decode(tokens[:, start:stop], state, pos[:, start:stop])
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-12)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == spec
    assert not whole[0, 2].any() and state.next_pos_B.tolist() == [4, 2] and state.count_B.tolist() == [7, 7]
    alone = jax.jit(model.apply)(variables, source[:1, 3:6], tokens[:1, 4:])
    np.testing.assert_allclose(whole[:1, 4:], alone, atol=1e-12)
    with pytest.raises(jaxseq.UserError, match="1 slots too few"):
        model.apply(variables, tokens[:, :3], state, method="decode")


def test_no_target_sees_a_later_one():
    model, variables = made("t5")
    source, tokens = tokens_of((1, 5)), tokens_of((1, 6), 1)
    read = jax.jit(model.apply)
    before = read(variables, source, tokens)
    after = read(variables, source, tokens.at[0, 4].add(1))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any()


def test_relative_buckets_against_the_released_formula():
    def one(ahead, both_sides, buckets=32, longest=128):
        found, distance = 0, -ahead
        if both_sides:
            buckets //= 2
            found, distance = (buckets if ahead > 0 else 0), abs(distance)
        distance, exact = max(distance, 0), buckets // 2
        if distance < exact:
            return found + distance
        far = exact + int(np.log(np.float32(distance) / exact) / np.log(longest / exact) * (buckets - exact))
        return found + min(far, buckets - 1)

    key = np.arange(-300, 301)
    for both_sides in (True, False):
        got = _relative.bucket(jnp.zeros((1, 1), jnp.int32), jnp.asarray(key)[None], 32, 128, both_sides)[0, 0]
        np.testing.assert_array_equal(got, [one(int(ahead), both_sides) for ahead in key])


@pytest.mark.parametrize(
    ("name", "depth"), [("bert", ["model.layers"]), ("t5", ["model.encoder_layers", "model.decoder_layers"])]
)
def test_the_program_does_not_grow_with_depth_and_remat_changes_nothing(name, depth):
    """The program of twelve layers has as many equations as that of two."""
    sizes = []
    for layers in (2, 12):
        model, variables = made(name, **dict.fromkeys(depth, layers))
        sizes.append(str(jax.make_jaxpr(model.apply)(variables, *model.example())).count("\n"))
    assert sizes[0] == sizes[1]
    inputs = [tokens_of(x.shape) for x in made(name)[0].example()]

    def gradient(**more):
        model, variables = made(name, **more)
        first = lambda variables: jnp.sum(jax.tree.leaves(model.apply(variables, *inputs))[0] ** 2)  # noqa: E731
        return jax.jit(jax.grad(first))(variables)

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), gradient(), gradient(**{"model.remat": "full"})
    )
