"""`jaxseq.ops._attend` against a plain softmax in float64, whole and in blocks, with gradients through y and lse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.ops import _attend, attention
from jaxseq.ops._attend import Keys, Score, Span, attend
from jaxseq.testing import compare

BATCH, TIME, SLOTS, HEADS, KV_HEADS, SIZE = 2, 11, 13, 4, 2, 5
CHUNKS = (None, 4)


@pytest.fixture
def case(x64):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(BATCH, TIME, HEADS, SIZE))
    k, v = rng.normal(size=(2, BATCH, KV_HEADS, SLOTS, SIZE))
    number = np.stack([rng.permutation(SLOTS), np.where(np.arange(SLOTS) < 4, -1, np.arange(SLOTS))]).astype(np.int32)
    low = rng.integers(0, SLOTS, (BATCH, TIME)).astype(np.int32)
    span = Span(low, (low + rng.integers(-1, 6, low.shape)).astype(np.int32))  # some queries see no key
    return q, Keys(k, v, number), span


def plain(q, keys, span, cap=None, bias=None):
    """(y, lse) by loops over rows, tokens and heads."""
    y, lse = np.zeros((*q.shape[:3], SIZE)), np.full(q.shape[:3], -np.inf)
    for b, t, h in np.ndindex(*lse.shape):
        seen = [s for s in range(SLOTS) if span.low_BT[b, t] <= keys.number_BS[b, s] <= span.high_BT[b, t]]
        if not seen:
            continue
        group = h * KV_HEADS // HEADS
        score = keys.k_BGSK[b, group, seen] @ q[b, t, h] * 0.7
        score = score if cap is None else cap * np.tanh(score / cap)
        score = score if bias is None else score + bias[0, h, t, seen]
        lse[b, t, h] = np.log(np.exp(score).sum())
        y[b, t, h] = np.exp(score - lse[b, t, h]) @ keys.v_BGSV[b, group, seen]
    return y, lse


def same(got, wanted):
    assert compare.error(got[0], wanted[0]) < compare.FLOAT64
    np.testing.assert_allclose(got[1], wanted[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("cap", (None, 0.5))
def test_attend_is_a_softmax_over_an_interval(case, chunk, cap):
    q, keys, span = case
    same(attend(q, keys, span, Score(0.7, cap), chunk), plain(q, keys, span, cap))


def test_bias(case):
    q, keys, span = case
    bias = np.random.default_rng(1).normal(size=(1, HEADS, TIME, SLOTS))
    same(attend(q, keys, span, Score(0.7, bias_BHTS=jnp.asarray(bias))), plain(q, keys, span, bias=bias))


@pytest.mark.parametrize("chunk", CHUNKS)
def test_parts_over_disjoint_keys_merge(case, chunk):
    q, keys, span = case
    cut = lambda part: Keys(keys.k_BGSK[:, :, part], keys.v_BGSV[:, :, part], keys.number_BS[:, part])  # noqa: E731
    parts = [attend(q, cut(part), span, Score(0.7), chunk) for part in (slice(0, 3), slice(3, 3), slice(3, 9), slice(9, None))]
    same(_attend.merge(*parts), attend(q, keys, span, Score(0.7)))


@pytest.mark.parametrize("cap", (None, 0.5))
@pytest.mark.parametrize("chunk", CHUNKS)
def test_gradients_through_y_and_lse(case, chunk, cap):
    """Against finite differences of the plain loops."""
    q, keys, span = case
    rng = np.random.default_rng(2)
    u, w = rng.normal(size=q.shape), rng.normal(size=q.shape[:3])

    def loss(q, k, v, run=attend, **options):
        y, lse = run(q, Keys(k, v, keys.number_BS), span, *options.values())
        return jnp.sum(y * u) + jnp.sum(jnp.where(jnp.isneginf(lse), 0, lse) * w)

    arguments = q, keys.k_BGSK, keys.v_BGSV
    grads = jax.grad(lambda *x: loss(*x, score=Score(0.7, cap), chunk=chunk), argnums=(0, 1, 2))(*arguments)
    for i, grad in enumerate(grads):
        direction = rng.normal(size=grad.shape)
        moved = [[x + sign * 1e-6 * direction if j == i else x for j, x in enumerate(arguments)] for sign in (1, -1)]
        slope = (loss(*moved[0], run=plain, cap=cap) - loss(*moved[1], run=plain, cap=cap)) / 2e-6
        assert float(jnp.vdot(grad, direction)) == pytest.approx(float(slope), rel=1e-6, abs=1e-7)


def test_all_forms_cap_their_scores(x64):
    xs, _, _, state = attention.example(jax.random.key(0), 2, 9, jnp.float64)
    options = {"window": 12, "cap": 0.3, "state": state}
    wanted = attention.parallel(*xs, **options)
    for form in (attention.recurrent, attention.chunkwise):
        got = form(*xs, **options, chunk=4)
        assert compare.worst(got, wanted)[0] < compare.FLOAT64
    assert compare.error(attention.parallel(*xs, window=12, state=state)[0], wanted[0]) > 1e-3


def test_blocks_that_no_query_sees_are_not_needed():
    number = jnp.asarray([[[0, 1, 2]], [[3, 4, -1]], [[-1, -1, -1]]], jnp.int32)
    spans = Span(jnp.asarray([[[0, 1]], [[4, 9]], [[5, 5]]]), jnp.asarray([[[1, 2]], [[9, 3]], [[4, 4]]]))
    assert _attend.needed(spans, number).tolist() == [[True, False, False], [False, True, False], [False, False, False]]
