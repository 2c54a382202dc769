"""Wrappers that introduce one fault into a correct op. Each must be caught by its law; otherwise that law proves nothing.

All forms are wrapped, so the forms may agree with each other; most faults pass the usual test (no state, the whole sequence,
outputs only).
"""

import functools
import types
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from jaxseq.ops import _delta
from jaxseq.ops._time import PAD, START, positions, select
from jaxseq.testing.compare import is_float


def _floats(function: Callable, state):
    """Apply `function` to each floating leaf."""
    return jax.tree.map(lambda x: function(x) if is_float(x) else x, state)


def _add(y, term, pos):
    """y + term in y's dtype, still zero at padding."""
    return (y + select(positions(pos, y) >= 0, jnp.broadcast_to(term, y.shape))).astype(y.dtype)


def ignores_state(form: Callable, xs: tuple, state: Any, pos: jax.Array | None, **kwargs: Any) -> tuple[Any, Any]:
    """The incoming state is ignored."""
    return form(*xs, state=jax.tree.map(jnp.zeros_like, state), pos=pos, **kwargs)


def returns_old_state(form: Callable, xs: tuple, state: Any, pos: jax.Array | None, **kwargs: Any) -> tuple[Any, Any]:
    """The incoming state is returned unchanged."""
    y, after = form(*xs, state=state, pos=pos, **kwargs)
    return y, after if state is None else state


def state_one_token_late(form: Callable, xs: tuple, state: Any, pos: jax.Array | None, **kwargs: Any) -> tuple[Any, Any]:
    y, _ = form(*xs, state=state, pos=pos, **kwargs)
    _, late = form(*(x[:, :-1] for x in xs), state=state, pos=None if pos is None else pos[:, :-1], **kwargs)
    return y, late


def rounds_state(form: Callable, xs: tuple, state: Any, pos: jax.Array | None, **kwargs: Any) -> tuple[Any, Any]:
    y, state = form(*xs, state=state, pos=pos, **kwargs)
    return y, _floats(lambda s: s.astype(jnp.bfloat16).astype(s.dtype), state)


def forgets_when_empty(form: Callable, xs: tuple, state: Any, pos: jax.Array | None, **kwargs: Any) -> tuple[Any, Any]:
    y, after = form(*xs, state=state, pos=pos, **kwargs)
    return y, after if xs[0].shape[1] else jax.tree.map(jnp.zeros_like, after)


def starts_from_one(form: Callable, xs: tuple, state: Any, pos: jax.Array | None, **kwargs: Any) -> tuple[Any, Any]:
    """state=None is replaced by the state after one token of ones."""
    if state is None:
        _, state = form(*(jnp.ones_like(x[:, :1]) for x in xs), state=None, **kwargs)
    return form(*xs, state=state, pos=pos, **kwargs)


def starts_without_pos(form: Callable, xs: tuple, state: Any, pos: jax.Array | None, **kwargs: Any) -> tuple[Any, Any]:
    """pos=None is treated as if each row began a document."""
    return form(*xs, state=state, pos=positions(pos, xs[0]).at[:, :1].set(START) if pos is None else pos, **kwargs)


def sees_the_future(form: Callable, xs: tuple, state: Any, pos: jax.Array | None, **kwargs: Any) -> tuple[Any, Any]:
    y, state = form(*xs, state=state, pos=pos, **kwargs)
    return _add(y, 1e-3 * jnp.sum(y, axis=1, keepdims=True), pos), state


def ignores_resets(form: Callable, xs: tuple, state: Any, pos: jax.Array | None, **kwargs: Any) -> tuple[Any, Any]:
    """Document starts do not reset the state."""
    return form(*xs, state=state, pos=None if pos is None else jnp.where(pos == START, 1, pos), **kwargs)


def counts_padding(form: Callable, xs: tuple, state: Any, pos: jax.Array | None, **kwargs: Any) -> tuple[Any, Any]:
    """Outputs are correct and nothing is NaN, but padding changes the state."""
    y, after = form(*xs, state=state, pos=pos, **kwargs)
    if pos is None:
        return y, after
    numbers = (jnp.where(jnp.isnan(x), 1, x) for x in xs)
    return y, form(*numbers, state=state, pos=jnp.where(pos == PAD, START + 1, pos), **kwargs)[1]


def lets_garbage_into_state(form: Callable, xs: tuple, state: Any, pos: jax.Array | None, **kwargs: Any) -> tuple[Any, Any]:
    """Inputs at padding are multiplied by zero instead of being masked: 0 x NaN = NaN."""
    y, state = form(*xs, state=state, pos=pos, **kwargs)
    zero = sum(0 * jnp.sum(x) for x in xs)
    return y, _floats(lambda s: s + zero.astype(s.dtype), state)


def lets_garbage_into_gradient(form: Callable, xs: tuple, state: Any, pos: jax.Array | None, **kwargs: Any) -> tuple[Any, Any]:
    """Values are correct, but NaN is masked only after a product whose backward pass multiplies it by zero."""
    y, state = form(*xs, state=state, pos=pos, **kwargs)
    zero = sum(0 * jnp.sum(x * x) for x in xs)
    return _add(y, jnp.where(jnp.isnan(zero), 0, zero), pos), state


def cuts_gradient(form: Callable, xs: tuple, state: Any, pos: jax.Array | None, **kwargs: Any) -> tuple[Any, Any]:
    return form(*xs, state=jax.lax.stop_gradient(state), pos=pos, **kwargs)


def widens_output(form: Callable, xs: tuple, state: Any, pos: jax.Array | None, **kwargs: Any) -> tuple[Any, Any]:
    y, state = form(*xs, state=state, pos=pos, **kwargs)
    return y.astype(jnp.promote_types(y.dtype, jnp.float32)), state


def keeps_state_in_float32(form: Callable, xs: tuple, state: Any, pos: jax.Array | None, **kwargs: Any) -> tuple[Any, Any]:
    y, state = form(*xs, state=state, pos=pos, **kwargs)
    return y, _floats(lambda s: s.astype(jnp.float32), state)


def rounds_float32_to_bfloat16(form: Callable, xs: tuple, state: Any, pos: jax.Array | None, **kwargs: Any) -> tuple[Any, Any]:
    """Rounds float32 inputs like a matrix product at an accelerator's default precision."""
    rounded = (x.astype(jnp.bfloat16).astype(x.dtype) if x.dtype == jnp.float32 else x for x in xs)
    return form(*rounded, state=state, pos=pos, **kwargs)


WRAPPERS = {
    "split": (ignores_state, returns_old_state, state_one_token_late, rounds_state),
    "unit": (forgets_when_empty,),
    "none": (starts_from_one, starts_without_pos),
    "reset": (ignores_resets,),
    "padding": (counts_padding, lets_garbage_into_state),
    "causality": (sees_the_future,),
    "gradient": (cuts_gradient, lets_garbage_into_gradient),
    "spec": (widens_output, keeps_state_in_float32),
    "dtype": (rounds_float32_to_bfloat16,),
}


def _like(op, name: str, **changes) -> types.SimpleNamespace:
    names = ("FORMS", "example", "stress", "summary", "combine", "apply", "canonical")
    parts = {k: getattr(op, k) for k in names if hasattr(op, k)}
    return types.SimpleNamespace(**(parts | changes), __name__=f"{getattr(op, '__name__', type(op).__name__)} that {name}")


def _wrapped(op, wrapper: Callable):
    def wrap(form):
        @functools.wraps(form)
        def wrapped(*xs, state=None, pos=None, **kwargs):
            return wrapper(form, xs, state, pos, **kwargs)

        return wrapped

    return _like(op, wrapper.__name__, FORMS={name: wrap(form) for name, form in op.FORMS.items()})


def _structures(op) -> list[tuple[str, Any]]:
    """Ops with a fault in their declarations instead of in their forms."""
    recurrent = op.FORMS["recurrent"]

    def empty_example(*args):
        example = op.example(*args)
        return example._replace(state=jax.tree.map(jnp.zeros_like, example.state))

    def chunkwise(*xs, chunk=0, **kwargs):
        return recurrent(*xs, **kwargs)

    wrong = [
        ("loops", _like(op, "loops_in_parallel", FORMS={"recurrent": recurrent, "parallel": recurrent})),
        ("loops", _like(op, "loops_in_chunkwise", FORMS={"recurrent": recurrent, "chunkwise": chunkwise})),
        ("example", _like(op, "has_an_empty_example", example=empty_example)),
    ]
    if hasattr(op, "summary"):
        forgetful = lambda summary, state: op.apply(summary, jax.tree.map(jnp.zeros_like, state))  # noqa: E731
        wrong.append(("summary", _like(op, "combines_in_reverse", combine=lambda first, second: op.combine(second, first))))
        wrong.append(("summary", _like(op, "applies_to_nothing", apply=forgetful)))
    else:
        wrong.append(("summary", _like(op, "combines_no_summary", combine=lambda first, second: second)))
    return wrong


def _inexact(op) -> list[Any]:
    """Ops that are correct only on benign or short inputs; both forms of each, so that the whole op is run."""

    def cancels(*xs, state=None, pos=None, **kwargs):
        """Loses digits on long sequences, like differences of long sums."""
        y, state = op.FORMS["parallel"](*xs, state=state, pos=pos, **kwargs)
        return jax.lax.reduce_precision(y, 8, 14) if y.shape[1] > 64 else y, state

    def by_powers(*xs, **kwargs):
        with mock.patch.object(_delta, "unit_triangular_inverse", power_product):
            return op.FORMS["parallel"](*xs, **kwargs)

    forms = [cancels, by_powers] if getattr(op, "combine", None) is _delta.combine else [cancels]
    return [_like(op, form.__name__, FORMS={"recurrent": op.FORMS["recurrent"], "parallel": form}) for form in forms]


def power_product(A_BHTT: jax.Array) -> jax.Array:
    """(I - A)^-1 as (I + A)(I + A^2)(I + A^4) …: exact, but with repeated keys its terms grow like binomial coefficients."""
    time = A_BHTT.shape[-1]
    eye = jnp.eye(time, dtype=A_BHTT.dtype)
    inverse, power, reach = eye + A_BHTT, A_BHTT, 2
    while reach < time:
        power = power @ power
        inverse = inverse @ (eye + power)
        reach *= 2
    return inverse


def wrong_ops(op: Any) -> list[tuple[str, Any]]:
    """(law, wrong op) pairs: the law must fail for that op."""
    wrapped = [(law, _wrapped(op, wrapper)) for law, wrappers in WRAPPERS.items() for wrapper in wrappers]
    return wrapped + _structures(op) + [("stress", wrong) for wrong in _inexact(op)]
