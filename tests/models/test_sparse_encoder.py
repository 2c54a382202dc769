"""The attentions of Longformer and BigBird against dense attention under the same mask; packed rows; what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxseq
from jaxseq.config import base, finish
from jaxseq.errors import UserError
from jaxseq.models import _block_attention, _window_attention
from jaxseq.models._transformer import MultiHeadAttention
from jaxseq.testing import compare
from jaxseq.train import flops

WIDTH, HEADS = 6, 2
DOCUMENTS = ([23], [31, 5, 1, 22], [1, 18, 30])  # tokens of the documents of three rows of 60; the rest is padding
TIME = 60


def segments(rows) -> np.ndarray:
    """[B, T] the document of each token."""
    found = np.zeros((len(rows), TIME), np.int32)
    for row, lengths in zip(found, rows, strict=True):
        row[: sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return found


def dense(module, x_BTD, count_BHTS, names=("q", "k", "v")):
    """Heads' outputs of attention over all keys, where query t counts key s count_ts times."""
    q, k, v = (getattr(module, name)(x_BTD) for name in names)
    scores = jnp.einsum("bthk,bshk->bhts", q, k) * module.head_size**-0.5
    top = jnp.max(jnp.where(count_BHTS > 0, scores, -jnp.inf), axis=-1, keepdims=True, initial=-1e30)
    p_BHTS = count_BHTS * jnp.exp(jnp.where(count_BHTS > 0, scores - top, 0))
    total = p_BHTS.sum(-1, keepdims=True)
    return jnp.einsum("bhts,bshk->bthk", p_BHTS / jnp.where(total > 0, total, 1), v)


def numbers(segment_BT, b: int, t: int) -> tuple[int, int]:
    """(number of a token in its document, tokens of the document)"""
    mine = segment_BT[b] == segment_BT[b, t]
    return int(mine[:t].sum()), int(mine.sum())


def window_counts(segment_BT, global_BT, window: int) -> np.ndarray:
    """What tokens that are not global see."""
    t_T = np.arange(TIME)
    near_TT = np.abs(t_T[:, None] - t_T) <= window // 2
    same_BTT = (segment_BT[:, :, None] == segment_BT[:, None]) & (segment_BT[:, :, None] > 0)
    return (same_BTT & (near_TT | global_BT[:, None]))[:, None].astype(float)


def block_counts(segment_BT, block: int, picks: int, layer: int, drawn: bool) -> np.ndarray:
    """How often each token counts each other one, for each head, from the definition."""
    found = np.zeros((len(segment_BT), HEADS, TIME, TIME))
    choose = jax.jit(_block_attention.draw, static_argnums=0)
    for b, h, t in np.ndindex(len(segment_BT), HEADS, TIME):
        if not segment_BT[b, t]:
            continue
        number, length = numbers(segment_BT, b, t)
        i, n = number // block, -(-length // block)
        mine = np.flatnonzero(segment_BT[b] == segment_BT[b, t])
        if length <= (5 + 2 * picks) * block or i in (0, n - 1):
            found[b, h, t, mine] = 1
            continue
        random = np.asarray(choose(picks, *map(jnp.int32, (layer, h, i, n)))).tolist() if drawn else picks * [0]
        for j in sorted({0, n - 1, i - 1, i, i + 1}) + random:
            found[b, h, t, mine[j * block : (j + 1) * block]] += 1
    return found


def check(module, sparse, reference, mask_BT):
    """Outputs at real tokens and gradients of the input and the parameters are equal in float64."""
    x = jax.random.normal(jax.random.key(0), (*mask_BT.shape, WIDTH), jnp.float64)
    weights = jax.random.normal(jax.random.key(1), x.shape, x.dtype) * mask_BT[..., None]
    params = jax.jit(lambda x: module.init(jax.random.key(2), x, method=sparse))(x)
    params = jax.tree.map(lambda leaf: 3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype), params)

    def value(method):
        def summed(params, x):
            y = module.apply(params, x, method=method)
            return jnp.sum(y * weights), y * mask_BT[..., None]

        return jax.jit(jax.value_and_grad(summed, (0, 1), has_aux=True))(params, x)

    ((_, got), got_gradients), ((_, wanted), gradients) = value(sparse), value(reference)
    assert compare.error(got, wanted) < compare.FLOAT64
    flat = lambda tree: ravel_pytree(tree)[0]  # noqa: E731  # at once: that of the keys' bias is zero
    assert compare.error(flat(got_gradients), flat(gradients)) < compare.FLOAT64


FIELDS = {"width": WIDTH, "heads": HEADS, "head_size": WIDTH // HEADS, "bias": True, "dtype": jnp.float64}


@pytest.mark.parametrize(("window", "known"), [(10, True), pytest.param(14, False, marks=pytest.mark.slow), (200, False)])
def test_a_window_and_random_global_tokens_equal_dense_attention_under_the_mask(window, known, x64):
    """200: the window is longer than the rows. known: the number of global tokens is, when compiling."""
    segment_BT = segments(DOCUMENTS)
    global_BT = (np.random.default_rng(window).random(segment_BT.shape) < 0.1) & (segment_BT > 0)
    count, whole = (window_counts(segment_BT, global_BT, w) for w in (window, 1000))
    module = _window_attention.WindowAttention(window=window, **FIELDS)

    def sparse(module, x):
        most = int(global_BT.sum(1).max()) if known else None
        return module(x, _window_attention.layout(jnp.asarray(segment_BT), jnp.asarray(global_BT), most))

    def reference(module, x):
        theirs = dense(module, x, whole, ("global_q", "global_k", "global_v"))
        return module.o(jnp.where(global_BT[..., None, None], theirs, dense(module, x, count)))

    check(module, sparse, reference, segment_BT > 0)


SLOW = [pytest.param(picks, True, marks=pytest.mark.slow) for picks in (0, 2)]


@pytest.mark.parametrize(("picks", "drawn"), [(1, True), (1, False), *SLOW])
def test_blocks_equal_dense_attention_under_the_mask(picks, drawn, x64, monkeypatch):
    """Documents with and without full attention, in one row; blocks of 2 tokens."""
    monkeypatch.setattr("jaxseq.models._sparse_attention.CHUNK", 16)
    segment_BT = segments(DOCUMENTS)
    count = block_counts(segment_BT, 2, picks, 5, drawn)
    assert 0 < (count > 0).sum() < HEADS * sum(n * n for row in DOCUMENTS for n in row)
    module = _block_attention.BlockAttention(block_size=2, random_blocks=picks, **FIELDS)

    def sparse(module, x):
        return module(x, _block_attention.layout(jnp.asarray(segment_BT), 2, picks, True), jnp.int32(5), drawn)

    check(module, sparse, lambda module, x: module.o(dense(module, x, count)), segment_BT > 0)


def test_random_blocks_are_uniform_and_new():
    """Of 12 blocks, block 4 draws 3 of the seven that it does not see, each as often as another; blocks at the ends as well."""
    seeds = jnp.arange(20_000)
    for i, seen in {4: {0, 3, 4, 5, 11}, 1: {0, 1, 2, 11}, 10: {0, 9, 10, 11}}.items():
        drawn = np.asarray(_block_attention.draw(3, seeds, jnp.int32(1), jnp.int32(i), jnp.int32(12)))
        assert all(len(set(row)) == 3 for row in drawn[:500].tolist())
        shares = np.bincount(drawn.ravel(), minlength=12) / len(seeds)
        free = sorted(set(range(12)) - seen)
        np.testing.assert_allclose(shares, [3 / len(free) * (block in free) for block in range(12)], atol=0.015)
    assert set(np.asarray(_block_attention.draw(3, jnp.int32(0), jnp.int32(0), jnp.int32(2), jnp.int32(6))).tolist()) == {4, -1}


def built(attention: str, **fields):
    """(model, params)"""
    config = base("sparse_encoder")
    config.model.update(width=8, layers=2, heads=2, hidden=8, max_positions=64, vocab=20, attention=attention, **fields)
    model, random = jaxseq.build(finish(config)), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def values(path, leaf):  # far from the initial ones; with large biases or scales all tokens would become alike
        middle, spread = {"scale": (1, 0.1), "bias": (0, 0.1)}.get(path[-1].key, (0, 0.7))
        return random.normal(middle, spread, leaf.shape).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(values, shapes)


WINDOW = {"attention": "window", "window": 6, "global_tokens": 2}
BLOCKS = {"attention": "blocks", "block_size": 2, "random_blocks": 1}


@pytest.mark.parametrize("fields", [WINDOW, BLOCKS, BLOCKS | {"random": "first"}], ids=["window", "blocks", "first"])
def test_a_document_is_read_alike_wherever_it_stands(fields):
    """Alone, and after another document, with padding on both sides and inside; padding is zero."""
    model, params = built(**fields)
    apply = jax.jit(model.apply)
    tokens = np.random.default_rng(0).integers(0, 20, (2, 33))
    alone = apply(params, tokens).hidden
    places = np.r_[14:20, 23:50]
    row, pos = np.full((2, 51), 7), np.full((2, 51), -1)
    row[:, places], pos[:, places] = tokens, np.arange(33)
    pos[:, 1:13] = np.arange(12)
    packed = apply(params, row, pos).hidden
    assert compare.error(packed[:, places], alone) < 1e-5
    assert not np.asarray(packed)[pos < 0].any()


@pytest.mark.parametrize(
    "fields", [WINDOW | {"window": 1 << 24, "global_tokens": 0}, BLOCKS | {"block_size": 5}], ids=["window", "blocks"]
)
def test_where_everything_is_seen_it_is_the_dense_encoder(fields):
    model, params = built(**fields)
    theirs = jaxseq.build(jaxseq.config("bert", **{
        f"model.{name}": getattr(model, name) for name in ("width", "layers", "heads", "hidden", "max_positions", "vocab")
    }))  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, 20, (2, 31))
    kept = {name: leaf for name, leaf in params["params"]["blocks"]["attention"].items() if not name.startswith("global")}
    blocks = params["params"]["blocks"] | {"attention": kept}
    dense = jax.jit(theirs.apply)({"params": params["params"] | {"blocks": blocks}}, tokens)
    assert compare.error(jax.jit(model.apply)(params, tokens).logits, dense.logits) < 1e-5


def test_a_mask_of_global_tokens_is_that_of_the_rule():
    model, params = built(**WINDOW)
    tokens = np.random.default_rng(0).integers(0, 20, (2, 33))
    mask = np.broadcast_to(np.arange(33) < 2, tokens.shape)
    unruled = jax.jit(model.clone(global_tokens=0).apply)
    marked = unruled(params, tokens, global_mask=mask).hidden
    assert compare.error(jax.jit(model.apply)(params, tokens).hidden, marked) < 1e-5
    assert compare.error(unruled(params, tokens, global_mask=~mask).hidden, marked) > 1e-2


def test_random_blocks_are_drawn_in_training():
    """Whatever they are in evaluation."""
    model, params = built(**BLOCKS | {"random": "first"})
    tokens = np.random.default_rng(0).integers(0, 20, (2, 33))
    trained = jax.jit(lambda params: model.apply(params, tokens, train=True).hidden)(params)
    drawn, first = (jax.jit(model.clone(random=random).apply)(params, tokens).hidden for random in ("drawn", "first"))
    np.testing.assert_array_equal(trained, drawn)
    assert compare.error(first, drawn) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("fields", [WINDOW, BLOCKS], ids=["window", "blocks"])
def test_every_option_of_the_encoder(fields):
    """A training step in bfloat16, with dropout, rematerialisation and layers that share weights: gradients of all parameters."""
    options = {"distinct": 1, "embedding_width": 4, "norm_first": True, "dropout": 0.1, "remat": "full", "dtype": "bfloat16"}
    model, params = built(**fields, **options, pooler=True)
    tokens, pos = np.random.default_rng(0).integers(0, 20, (2, 33)), np.tile(np.r_[0:25, 0:8], (2, 1))

    def loss(params):
        out = model.apply(params, tokens, pos, train=True, rngs={"dropout": jax.random.key(0)})
        return jnp.sum(jnp.square(out.logits)) + jnp.sum(jnp.square(out.pooled.astype(jnp.float32)))

    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
        assert np.isfinite(leaf).all() and np.any(leaf)


LONG, NARROW, HEAD = 8192, 8, 64  # tokens, width, head size: narrow, because projections are not part of what is compared


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["window", "blocks"])
def test_operations_and_memory_are_those_of_what_is_seen(kind, training):
    """At 8192 tokens: at most 1.3 times the share of the pairs that are seen, of what dense attention takes."""
    sizes = {"width": NARROW, "heads": 1, "head_size": HEAD}
    x, ones = jax.ShapeDtypeStruct((1, LONG, NARROW), jnp.float32), jnp.ones((1, LONG), jnp.int32)
    if kind == "window":
        module, pairs = _window_attention.WindowAttention(**sizes, window=512), LONG * 513 + 2 * 8 * LONG
        sparse = lambda m, x: m(x, _window_attention.layout(ones, jnp.arange(LONG)[None] < 8, 8))  # noqa: E731
    else:
        module, pairs = _block_attention.BlockAttention(**sizes, block_size=64, random_blocks=3), LONG * 8 * 64 + 2 * 64 * LONG
        sparse = lambda m, x: m(x, _block_attention.layout(ones, 64, 3, False), jnp.int32(0), True)  # noqa: E731

    def cost(module, method):
        params = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, method=method), x)
        run = lambda params, x: jnp.sum(module.apply(params, x, method=method))  # noqa: E731
        run = jax.grad(run) if training else run
        return flops.count(run, params, x), jax.jit(run).lower(params, x).compile().memory_analysis().temp_size_in_bytes

    wanted = cost(MultiHeadAttention(**sizes), lambda m, x: m(x, *m.keys_values(x)))
    for got, all_pairs in zip(cost(module, sparse), wanted, strict=True):
        assert got < 1.3 * pairs / LONG**2 * all_pairs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": "strided"}, "no model.attention 'strided'"),
        ({"window": 5}, "model.window=5 must be a positive even number"),
        ({"attention": "blocks", "block_size": 0}, "model.block_size=0 must be at least 1"),
        ({"attention": "blocks", "random": "none"}, "no model.random 'none'"),
    ],
)
def test_impossible_values_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        built(**{"attention": "window"} | change)


def test_positions_begin_at_the_first_position():
    model, params = built("window", first_position=2)
    assert model.capacity == 62
    with pytest.raises(UserError, match="has learned 62 positions"):
        model.apply(params, np.zeros((1, 63), np.int32))
    moved = params["params"] | {"position": params["params"]["position"][2:]}
    tokens = np.random.default_rng(0).integers(0, 20, (1, 9))
    other = jax.jit(model.clone(first_position=0, max_positions=62).apply)({"params": moved}, tokens).hidden
    np.testing.assert_array_equal(jax.jit(model.apply)(params, tokens).hidden, other)
