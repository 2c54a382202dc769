"""Counts the sequential steps of a form in its jaxpr: the length of the longest loop at a given T."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax

from jaxseq.ops._time import AT_MOST

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


def _bound(eqn) -> float:
    """The most steps of a `while`: declared by `jaxseq.ops.time.while_at_most`, else infinite."""
    found = re.findall(rf"{AT_MOST}(\d+)", str(eqn.source_info.name_stack))
    return float(found[-1]) if found else math.inf


def _carries(scan) -> bool:
    """Whether a scan has a carry: an output of the scan with the same shape as in its body, because other outputs are stacked
    along a new axis. (The parameters that give the number of carries differ between versions of JAX.)"""
    body = scan.params["jaxpr"].jaxpr.outvars
    return any(len(out.aval.shape) == len(var.aval.shape) for out, var in zip(scan.outvars, body, strict=True))


def longest(jaxpr: Any) -> float:
    """Steps of the longest nest of loops in a jaxpr; infinite for a `while` without a declared bound.

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


def longest_loop(function: Callable, *args: Any) -> float:
    """Steps of the longest nest of loops in `function(*args)`; nothing is compiled or run."""
    return longest(jax.make_jaxpr(function)(*args).jaxpr)
