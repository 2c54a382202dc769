"""Counts the sequential steps of a form in its jaxpr: the length of the longest loop at a given T."""

import math

import jax
from jax.extend.core import Literal

PALLAS = ("pallas_call", "mpmd_map")  # the second is `pl.kernel`


def _inner(value):
    """The jaxprs inside a parameter of an equation."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _inner(item)
    elif hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield from _inner(value.jaxpr)


def _conjuncts(jaxpr):
    """The equations whose results are combined by `and` into the only output of a jaxpr."""
    made = {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}
    queue = [jaxpr.outvars[0]]
    while queue:
        eqn = None if isinstance(var := queue.pop(), Literal) else made.get(var)
        if eqn is not None and eqn.primitive.name in ("and", "convert_element_type"):
            queue += eqn.invars
        elif eqn is not None:
            yield eqn


def _bound(eqn) -> float:
    """Maximum number of steps of a `while`. Its condition must include `counter < literal`, with a counter that starts at a
    literal and is incremented by one per step; otherwise infinite."""
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
    """Whether a scan has a carry: an output of the scan with the same shape as in its body, because other outputs are stacked
    along a new axis. (The parameters that give the number of carries differ between versions of JAX.)"""
    body = scan.params["jaxpr"].jaxpr.outvars
    return any(len(out.aval.shape) == len(var.aval.shape) for out, var in zip(scan.outvars, body, strict=True))


def longest(jaxpr) -> float:
    """Steps of the longest nest of loops in a jaxpr; infinite if a `while` has no static bound.

    Steps of nested loops are multiplied. A scan without carry (`lax.map`) is not sequential and counts as one step.
    `lax.fori_loop` with static bounds is a scan. A Pallas call counts as one step, whatever its grid.
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
