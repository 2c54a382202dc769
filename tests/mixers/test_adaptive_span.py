"""Adaptive spans: the mixer's equation and penalty, windows that change nothing, blocks that are not read, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import adaptive_span_attention

from jaxseq import testing
from jaxseq.call import Call
from jaxseq.errors import UserError
from jaxseq.mixers.adaptive_span import AdaptiveSpan
from jaxseq.ops import adaptive_span_attention as op
from jaxseq.testing import compare
from jaxseq.testing.networks import moved

SMALL = {"kv_heads": 2, "max_span": 12, "ramp": 3.0, "first_span": 2.5}
(SUBJECT,) = testing.subjects(AdaptiveSpan(width=16, layers=2, **SMALL, windows="12 7"))
THETA = np.array([-2.5, -1.5, 2.0, -1.0])  # of four heads: 0.9, 2.2, 10.6 and 3.2 tokens of 12


@pytest.mark.parametrize("law", ["split", "reset", pytest.param("spec", marks=pytest.mark.slow)])
def test_laws_with_two_windows(law):
    testing.check_law(SUBJECT, law)


def built(dtype=jnp.float64, **fields):
    mixer = AdaptiveSpan(width=16, layers=2, dtype=dtype, rotary=False, **SMALL | fields)
    x = jax.random.normal(jax.random.key(1), (2, 29, 16), dtype)
    pos = np.tile(np.arange(29, dtype=np.int32), (2, 1))
    params = jax.jit(lambda x: mixer.init(jax.random.key(0), x, None, Call.of(pos, "parallel"), mutable="params"))(x)
    params = moved(nn.meta.unbox(params), jax.random.key(2))
    params["params"]["span"] = jnp.asarray(THETA, dtype)
    apply = lambda mixer, **more: mixer.apply(params, x, None, Call.of(pos, "chunkwise"), **more)  # noqa: E731
    return mixer, jax.tree.map(np.asarray, params["params"]), x, apply


def test_equation_and_penalty(x64):
    mixer, p, x, apply = built(span_loss=0.1)
    got, changed = jax.jit(lambda: apply(mixer, mutable=["losses"]))()
    q, k, v = (np.einsum("btd,dhk->bthk", x, p[name]["kernel"]) for name in "qkv")
    z = 12 / (1 + np.exp(-THETA))
    y = adaptive_span_attention.loop(q, k, v, z, 12, 3.0)
    assert compare.error(got.y_BTD, np.einsum("bthk,hkd->btd", y, p["o"]["kernel"])) < compare.FLOAT64
    np.testing.assert_allclose(changed["losses"]["span"][0], 0.1 * z.mean())


def test_windows_of_the_learned_spans_change_nothing_and_shorter_ones_do(x64):
    mixer, _, _, apply = built()
    assert mixer.needed(THETA) == (6, 12)  # ceil(2.2 + 3); 10.6 + 3 is cut off at 12
    wanted = jax.jit(lambda: apply(mixer).y_BTD)()
    for windows, same in (("6 12", True), ("5 12", False)):
        other = mixer.clone(windows=windows)
        y, state = jax.jit(lambda other=other: apply(other)[:2])()
        assert (compare.error(y, wanted) < compare.FLOAT64) == same
        assert [ring.k_BGSK.shape[1:3] for ring in state] == [(1, int(window)) for window in windows.split()]


def test_blocks_beyond_the_spans_are_not_read():
    """NaN in values would reach the output even with a weight of zero."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 64, 2, 4)).astype(np.float32) for _ in range(3))
    v[:, :32] = np.nan
    options = {"window": 64, "ramp": 4.0, "chunk": 8}
    forward = jax.jit(lambda span: op.chunkwise(q, k, v, span_H=span, **options)[0])
    seen = lambda *span: np.isfinite(np.asarray(forward(jnp.asarray(span, jnp.float32)))).all(axis=(0, 2, 3))  # noqa: E731
    assert seen(1.0, 4.0)[39:].all() and not seen(1.0, 4.0)[:39].any()  # 8 tokens are seen
    assert seen(1.0, 12.0)[47:].all() and not seen(1.0, 12.0)[:47].any()


def test_the_penalty_reaches_the_training_loss_and_shortens_spans():
    import jaxseq
    from jaxseq.train import prepare

    fields = {"model.stack": "1*(adaptive_span)", "model.width": 16, "model.vocab": 16, "train.batch": 2, "train.length": 8}
    losses, slopes = [], []
    for weight in (0.0, 1.0):
        config = jaxseq.config("transformer", **fields | {"model.adaptive_span.span_loss": weight})
        trainer = prepare(config, jax.devices()[:1])
        batch = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), trainer.abstract_batch())
        grads, values, _ = jax.jit(trainer.gradients)(trainer.init(), batch)
        losses.append(float(values["loss"]))
        slopes.append(np.asarray(nn.meta.unbox(grads)["blocks_0"]["adaptive_span"]["span"]))
    np.testing.assert_allclose(losses[1] - losses[0], 32, rtol=1e-5)  # the first span
    assert (slopes[1] - slopes[0] > 0).all()


REFUSED = {"window": 8}, {"alibi": True}, {"first_span": 300.0}, {"ramp": 0.0}, {"windows": "8"}, {"windows": "8 8 8 x"}


@pytest.mark.parametrize("fields", REFUSED, ids=str)
def test_refused_options(fields):
    with pytest.raises(UserError, match="adaptive spans|windows="):
        AdaptiveSpan(width=16, layers=2, **fields).init_state(1, 8)
