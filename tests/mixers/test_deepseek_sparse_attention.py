"""DeepSeek sparse attention: its equation, the choice of tokens, the indexer's loss and its gradients, its cost, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import block_sparse_attention

from jaxseq import testing
from jaxseq.call import Call
from jaxseq.errors import UserError
from jaxseq.mixers.attention import Attention
from jaxseq.mixers.deepseek_sparse_attention import DeepSeekSparseAttention
from jaxseq.ops import _indexer, attention
from jaxseq.ops import block_sparse_attention as block_sparse
from jaxseq.testing import compare
from jaxseq.testing.networks import moved
from jaxseq.train import flops

SMALL = {"kv_heads": 2, "selected": 5, "index_heads": 3, "index_size": 4}
(SUBJECT,) = testing.subjects(DeepSeekSparseAttention(width=16, layers=2, **SMALL))
TIME = 21


# tests/mixers/test_laws.py has the laws with the default, which selects all tokens there.
LAWS = [pytest.param(law, marks=[] if law in ("reset", "padding") else [pytest.mark.slow]) for law in testing.LAWS["mixer"]]


@pytest.mark.parametrize("law", LAWS)
def test_laws_with_few_selected(law):
    testing.check_law(SUBJECT, law)


def built(**fields):
    mixer = DeepSeekSparseAttention(width=16, layers=2, dtype=jnp.float64, **SMALL | {"rotary": False} | fields)
    x = jax.random.normal(jax.random.key(1), (2, TIME, 16), jnp.float64)
    pos = np.stack([np.arange(TIME), np.r_[0:8, 0 : TIME - 8]]).astype(np.int32)
    params = jax.jit(lambda x: mixer.init(jax.random.key(0), x, None, Call.of(pos), mutable="params"))(x)
    params = moved(nn.meta.unbox(params), jax.random.key(2))
    return mixer, params, x, pos


def maps(p, x):
    """q, k, v and the indexer's q, k and w."""
    q, k, v, index_q = (np.einsum("btd,dhk->bthk", x, p[name]["kernel"]) for name in ("q", "k", "v", "index_q"))
    index_k, w = (x @ p[name]["kernel"] for name in ("index_k", "index_weight"))
    index_k = (index_k - index_k.mean(-1, keepdims=True)) / np.sqrt(index_k.var(-1, keepdims=True) + 1e-5)
    index_k = index_k * p["index_norm"]["scale"] + p["index_norm"]["bias"]
    return q, k, v, index_q, index_k, w / np.sqrt(index_q.shape[2] * index_q.shape[3])


def chosen(scores, count):
    return sorted(range(len(scores)), key=lambda s: -scores[s])[:count]


def test_equation_and_loss(x64):
    """In packed documents; the loss and its gradient by the scores, softmax(I) - p."""
    mixer, params, x, pos = built(index_loss=0.5)

    def run(params, x):
        mixed, sown = mixer.apply(params, x, None, Call.of(pos, "chunkwise"), mutable=["losses"])
        return sown["losses"]["indexer"][0], mixed.y_BTD

    (loss, got), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params, x)
    p = jax.tree.map(np.asarray, params["params"])
    wanted, total, slope = np.zeros(x.shape), 0.0, np.zeros(p["index_weight"]["kernel"].shape)
    for b, start, stop in ((0, 0, TIME), (1, 0, 8), (1, 8, TIME)):
        part = np.asarray(x[b : b + 1, start:stop])
        q, k, v, index_q, index_k, w = maps(p, part)
        index = np.full((1, stop - start, 2, mixer.selected), -1)
        for t in range(stop - start):
            relu = np.maximum(index_q[0, t] @ index_k[0, : t + 1].T, 0)
            scores = w[0, t] @ relu
            best = chosen(scores, mixer.selected)
            index[0, t, :, : len(best)] = best
            weights = [np.exp(q[0, t, h] @ k[0, best, h // 2].T / 2) for h in range(4)]
            target = np.mean([weight / weight.sum() for weight in weights], axis=0)
            guess = np.exp(scores[best]) / np.exp(scores[best]).sum()
            total += np.sum(target * np.log(target / guess))
            slope += np.outer(part[0, t], relu[:, best] @ (guess - target)) / np.sqrt(12)
        y = block_sparse_attention.loop(q, k, v, index, 1)
        wanted[b, start:stop] = np.einsum("bthk,hkd->btd", y, p["o"]["kernel"])
    assert compare.error(got, wanted) < compare.FLOAT64
    np.testing.assert_allclose(loss, 0.5 * total / (2 * TIME), rtol=1e-12)
    assert compare.error(grads["params"]["index_weight"]["kernel"], 0.5 * slope / (2 * TIME)) < compare.FLOAT64


def test_gradients_are_kept_apart(x64):
    """The loss of the indexer moves the indexer alone, and the output everything else."""
    mixer, params, x, pos = built()

    def run(params, x, which):
        mixed, sown = mixer.apply(params, x, None, Call.of(pos, "parallel"), mutable=["losses"])
        return jnp.sum(jnp.square(mixed.y_BTD)) if which == "output" else sown["losses"]["indexer"][0]

    for which in ("output", "indexer"):
        grads, dx = jax.jit(jax.grad(lambda params, x, which=which: run(params, x, which), (0, 1)))(params, x)
        assert np.any(dx) == (which == "output")
        for name, leaf in grads["params"].items():
            moves = all(np.any(x) for x in jax.tree.leaves(leaf))
            assert moves == (name.startswith("index_") == (which == "indexer")), name


def test_with_all_tokens_it_is_attention(x64):
    mixer, params, x, pos = built(selected=TIME, rotary=True)
    other = Attention(width=16, layers=2, dtype=jnp.float64, kv_heads=2)
    own = {"params": {name: params["params"][name] for name in "qkvo"}}
    call, pairs = Call.of(pos, "chunkwise"), ((mixer, params), (other, own))
    got, wanted = (jax.jit(lambda m=m, p=p: m.apply(p, x, None, call).y_BTD)() for m, p in pairs)
    assert compare.error(got, wanted) < compare.FLOAT64


def test_the_choice_in_parts_is_that_at_once():
    """For packed documents, with padding at the end of a part, and with many equal scores, of which the first are chosen."""
    rng = np.random.default_rng(0)
    q, w = (rng.integers(-2, 3, shape).astype(np.float32) for shape in ((2, TIME, 3, 4), (2, TIME, 3)))
    k = rng.integers(-1, 2, (2, TIME, 4)).astype(np.float32)
    pos = np.stack([np.arange(TIME), np.r_[0:8, 0 : TIME - 8]])
    whole = np.asarray(_indexer.select(_indexer.Indexer(q, k, w), 5, pos=pos, chunk=6))
    for b, start, stop in ((0, 0, TIME), (1, 0, 8), (1, 8, TIME)):
        for t in range(start, stop):
            scores = w[b, t] @ np.maximum(q[b, t] @ k[b, start : t + 1].T, 0)
            assert whole[b, t].tolist() == (chosen(scores, 5) + [-1] * 5)[:5]

    @jax.jit
    def choose(indexer, keys, count, pos):
        index = _indexer.select(indexer, 5, state=_indexer.ring(keys, count), pos=pos)
        return index, _indexer.next_keys(keys, count, indexer.k_BTK, pos)

    keys, count = jnp.zeros((2, TIME, 4)), np.zeros(2, np.int32)
    for start, stop in ((0, 6), (6, 7), (7, 11), (11, TIME)):
        part, more = slice(start, stop), 10 - (stop - start)
        xs = (jnp.pad(x[:, part], ((0, 0), (0, more)) + ((0, 0),) * (x.ndim - 2)) for x in (q, k, w))
        padded = np.pad(pos[:, part], ((0, 0), (0, more)), constant_values=-1)
        index, keys = choose(_indexer.Indexer(*xs), keys, count, padded)
        count = pos[:, stop - 1].astype(np.int32) + 1
        assert np.array_equal(index[:, : stop - start], whole[:, part])
        assert np.all(index[:, stop - start :] == -1)


def test_the_loss_reaches_training():
    import jaxseq
    from jaxseq.train import prepare

    fields = {"model.stack": "1*(deepseek_sparse_attention)", "model.width": 16, "model.vocab": 16, "train.batch": 2}
    losses, moves = [], []
    for weight in (0.0, 1.0):
        options = {f"model.deepseek_sparse_attention.{name}": x for name, x in {"selected": 3, "index_loss": weight}.items()}
        trainer = prepare(jaxseq.config("transformer", **fields | options | {"train.length": 8}), jax.devices()[:1])
        batch = jax.tree.map(lambda x: jnp.arange(x.size, dtype=x.dtype).reshape(x.shape) % 7, trainer.abstract_batch())
        grads, values, _ = jax.jit(trainer.gradients)(trainer.init(), batch)
        losses.append(float(values["loss"]))
        moves.append(np.any(nn.meta.unbox(grads)["blocks_0"]["deepseek_sparse_attention"]["index_q"]["kernel"]))
    assert losses[1] > losses[0] and moves == [False, True]


LONG, SELECTED = 8192, 1024


@pytest.mark.parametrize("training", [False, True])
def test_operations_and_memory_are_those_of_the_selected(training):
    """At 8192 tokens, head size 64, with the indexer: at most 1.3 times the selected share of what dense attention takes."""
    shape = lambda *sizes: jax.ShapeDtypeStruct((1, LONG, *sizes), jnp.float32)  # noqa: E731
    q, k, indexer = shape(8, 64), shape(2, 64), _indexer.Indexer(shape(2, 16), shape(16), shape(2))

    def sparse(q, k, v, indexer):
        index_BTA = _indexer.select(indexer, SELECTED)
        return jnp.sum(block_sparse.chunkwise(q, k, v, index_BTA[:, :, None], block=1)[0])

    def cost(function, *xs):
        function = jax.grad(function, (0, 1, 2)) if training else function
        return flops.count(function, *xs), jax.jit(function).lower(*xs).compile().memory_analysis().temp_size_in_bytes

    wanted = cost(lambda *xs: jnp.sum(attention.parallel(*xs)[0]), q, k, k)
    for got, all_pairs in zip(cost(sparse, q, k, k, indexer), wanted, strict=True):
        assert got < 1.3 * SELECTED / LONG * all_pairs


REFUSED = {"window": 8}, {"ring": "int8"}, {"alibi": True}, {"sink": True}, {"cap": 5.0}, {"selected": 0}, {"index_size": 0}


@pytest.mark.parametrize("fields", REFUSED, ids=lambda fields: next(iter(fields)))
def test_refused_options(fields):
    with pytest.raises(UserError, match="DeepSeek sparse attention|ring"):
        DeepSeekSparseAttention(width=16, layers=2, **fields).init_state(1, 8)
