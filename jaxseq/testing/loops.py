"""Sequential steps of a form, counted in its jaxpr: how long is the longest loop at a given T?"""

import jax


def _inner(value):
    """The jaxprs that sit in an equation's parameter."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _inner(item)
    elif hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield from _inner(value.jaxpr)


def longest(jaxpr) -> float:
    """Steps of the longest nest of loops in a jaxpr; a `while` whose end is not known when tracing counts as infinite.

    A loop inside a loop multiplies it. A scan that carries nothing (`lax.map`) is no sequence: it counts once.
    `lax.fori_loop` with static bounds is a scan. A Pallas call is one step: its grid is the kernel's own business.
    """
    found = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            continue
        inside = max((longest(inner) for value in eqn.params.values() for inner in _inner(value)), default=0.0)
        if eqn.primitive.name == "scan":
            inside = max(inside, 1.0) * (eqn.params["length"] if eqn.params["num_carry"] else 1)
        elif eqn.primitive.name == "while":
            inside = float("inf")
        found = max(found, inside)
    return found


def longest_loop(function, *args) -> float:
    """Steps of the longest nest of loops in `function(*args)`; nothing is compiled or run."""
    return longest(jax.make_jaxpr(function)(*args).jaxpr)
