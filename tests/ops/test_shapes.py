"""Arguments of the wrong shape are refused by every op, in every form."""

import jax
import numpy as np
import pytest
from helpers.laws import cells, of_op

from jaxseq import registry
from jaxseq.compat import enable_x64
from jaxseq.testing.subjects import PREFIX, patterns

FORMS = ("recurrent", "parallel", "chunkwise")
TIME = 7


def longer(x, axis: int):
    return np.concatenate([x, np.take(x, [0], axis=axis)], axis=axis)


def mistakes(xs, weights, state, pos):
    """What is wrong, and the arguments."""
    for i, x in enumerate(xs):
        yield f"rank of input {i}", ((*xs[:i], x[..., None], *xs[i + 1 :]), weights, state, pos)
        if len(xs) > 1:
            for axis in (0, 1):
                yield f"axis {axis} of input {i}", ((*xs[:i], longer(x, axis), *xs[i + 1 :]), weights, state, pos)
    for name, w in weights.items():
        for axis in range(w.ndim):
            if w.shape[axis] == xs[0].shape[-1]:
                yield f"axis {axis} of {name}", (xs, weights | {name: longer(w, axis)}, state, pos)
    yield "batch of the state", (xs, weights, jax.tree.map(lambda s: longer(s, 0), state), pos)
    yield "length of pos", (xs, weights, state, longer(pos, 1))
    yield "batch of pos", (xs, weights, state, longer(pos, 0))


@pytest.mark.parametrize("name, form", cells("ops", registry.names("ops"), FORMS))
def test_wrong_shapes_raise(name, form):
    subject = of_op(name)[0]
    with enable_x64(True):
        case = subject.case(np.float64)
        right = case.part(0, TIME), case.weights, case.state, patterns(TIME, PREFIX)
        jax.eval_shape(lambda *a: subject.call(form, np.float64, *a), *right)
        passed = []
        for what, arguments in mistakes(*right):
            try:
                jax.eval_shape(lambda *a: subject.call(form, np.float64, *a), *arguments)
            except AssertionError:  # chex
                continue
            except Exception as error:
                passed.append(f"{what}: {type(error).__name__} from deep inside")
            else:
                passed.append(f"{what}: accepted")
    assert not passed
