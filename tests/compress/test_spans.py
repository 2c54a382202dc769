"""The step `spans`: the same outputs with smaller windows, per layer and head."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseq
from jaxseq import UserError, weights
from jaxseq.compress import spans
from jaxseq.compress._work import Work
from jaxseq.models import _stack

SMALL = {"heads": 2, "max_span": 16, "ramp": 2.0, "first_span": 4.0}
SPANS_LH = np.array([[-2.0, -2.0], [-2.0, -2.0], [0.0, 2.0], [-2.0, 1.0]])  # of 4 layers and 2 heads


def made(stack: str, label: str = "adaptive_span") -> Work:
    fields = {f"model.{label}.{name}": value for name, value in SMALL.items()} if label in stack else {}
    config = jaxseq.config("transformer", **{"model.stack": stack, "model.width": 16, "model.vocab": 30} | fields)
    params = jaxseq.build(config).init(jax.random.key(0))["params"]
    leaves = weights.leaves(params)
    new = {path: jnp.asarray(SPANS_LH[: len(x)], x.dtype) for path, x in leaves.items() if path.endswith("/span")}
    return Work(config, weights.replaced(params, new, None), lambda line: None, calibration=None)  # it is not used


def logits(work: Work) -> np.ndarray:
    tokens = jax.random.randint(jax.random.key(2), (2, 40), 0, 30)
    return np.asarray(jax.jit(work.model.apply)({"params": work.params}, tokens)[0])


def slots(work: Work) -> int:
    """Tokens that the rings of all heads hold."""
    state = jax.eval_shape(lambda: work.model.init_state(1, 64))
    return sum(math.prod(x.shape[:4]) for x in jax.tree.leaves(state) if x.ndim == 5) // 2  # [L, B, G, S, K] of keys and values


STACKS = {  # stack: (label of the spans, stack with windows, windows, tokens held)
    # 16 sigmoid(-2) + 2 = 3.9; 16 sigmoid(0) + 2 = 10; 16 sigmoid(2) + 2 = 16.1; 16 sigmoid(1) + 2 = 13.7
    "4*(adaptive_span swiglu)": (
        "adaptive_span",
        "2*(adaptive_span:span0 swiglu) + 1*(adaptive_span:span1 swiglu) + 1*(adaptive_span:span2 swiglu)",
        ["4 4", "11 16", "4 14"],
        61,
    ),
    "(swiglu) + 4/2*(adaptive_span:a swiglu)": (
        "adaptive_span:a", "(swiglu) + 4/2*(adaptive_span:a_span1 swiglu)", ["4 4"], 32,
    ),
}  # fmt: skip


@pytest.mark.parametrize("stack", STACKS)
def test_the_same_outputs_with_less_memory(stack):
    label, wanted, windows, held = STACKS[stack]
    before = made(stack, label)
    after = spans.apply(before, "")
    assert after.config.model.stack == wanted
    labels = [label for label in _stack.labels(wanted) if label.startswith("adaptive_span")]
    assert [after.config.model[label].windows for label in labels] == windows
    np.testing.assert_allclose(logits(after), logits(before), rtol=1e-5, atol=1e-5)
    assert (slots(before), slots(after)) == (4 * 2 * 16, held)


@pytest.mark.parametrize(
    ("stack", "argument", "told"),
    (
        ("1*(adaptive_span swiglu)", "0.5", "no argument"),
        ("1*(adaptive_span adaptive_span)", "", "uses the label twice"),
        ("1*(attention)", "", "has none"),
    ),
)
def test_refused(stack, argument, told):
    with pytest.raises(UserError, match=told):
        spans.apply(made(stack), argument)
