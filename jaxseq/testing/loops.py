"""Sequential steps of a form, counted in its jaxpr: how long is the longest loop at a given T?"""

import math

import jax
from jax.extend.core import Literal

PALLAS = ("pallas_call", "mpmd_map")  # the second is `pl.kernel`


def _inner(value):
    """The jaxprs that sit in an equation's parameter."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _inner(item)
    elif hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield from _inner(value.jaxpr)


def _conjuncts(jaxpr):
    """The equations whose results are joined by `and` into a jaxpr's only output."""
    made = {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}
    queue = [jaxpr.outvars[0]]
    while queue:
        eqn = None if isinstance(var := queue.pop(), Literal) else made.get(var)
        if eqn is not None and eqn.primitive.name in ("and", "convert_element_type"):
            queue += eqn.invars
        elif eqn is not None:
            yield eqn


def _bound(eqn) -> float:
    """Steps that a `while` takes at most: its condition must hold that a counter, which begins at a literal and grows by one
    each time, is less than a literal. Infinite without such a counter."""
    condition, body = eqn.params["cond_jaxpr"].jaxpr, eqn.params["body_jaxpr"].jaxpr
    consts, body_consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    bounds = [math.inf]
    for test in _conjuncts(condition):
        left, right = (*test.invars, None)[:2]
        if test.primitive.name != "lt" or not isinstance(right, Literal) or left not in condition.invars[consts:]:
            continue
        i = condition.invars[consts:].index(left)
        counter, start = body.invars[body_consts + i], eqn.invars[consts + body_consts + i]
        grows = [e for e in body.eqns if e.primitive.name == "add" and body.outvars[i] in e.outvars and e.invars[0] is counter]
        by_one = grows and isinstance(grows[0].invars[1], Literal) and grows[0].invars[1].val == 1
        if by_one and isinstance(start, Literal):
            bounds.append(float(right.val - start.val))
    return min(bounds)


def _carries(scan) -> bool:
    """Whether a scan has a carry. Its outputs are the body's: a carry in the same shape, the others stacked in one axis more.
    (The parameters that tell them apart differ between versions of JAX.)"""
    body = scan.params["jaxpr"].jaxpr.outvars
    return any(len(out.aval.shape) == len(var.aval.shape) for out, var in zip(scan.outvars, body, strict=True))


def longest(jaxpr) -> float:
    """Steps of the longest nest of loops in a jaxpr; a `while` without a bound that tracing knows counts as infinite.

    A loop inside a loop multiplies it. A scan that carries nothing (`lax.map`) is no sequence: it counts once.
    `lax.fori_loop` with static bounds is a scan. A Pallas call is one step: its grid is the kernel's own business.
    """
    found = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in PALLAS:
            continue
        inside = max((longest(inner) for value in eqn.params.values() for inner in _inner(value)), default=0.0)
        if eqn.primitive.name == "scan":
            inside = max(inside, 1.0) * (eqn.params["length"] if _carries(eqn) else 1)
        elif eqn.primitive.name == "while":
            inside = max(inside, 1.0) * _bound(eqn)
        found = max(found, inside)
    return found


def longest_loop(function, *args) -> float:
    """Steps of the longest nest of loops in `function(*args)`; nothing is compiled or run."""
    return longest(jax.make_jaxpr(function)(*args).jaxpr)
