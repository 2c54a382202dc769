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


def loops(jaxpr) -> list[float]:
    """Lengths of all loops in a jaxpr, at any depth; a `while` whose end is not known when tracing counts as infinite.

    `lax.fori_loop` with static bounds is a scan. A Pallas call is one step: its grid is the kernel's own business.
    """
    lengths = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            continue
        if eqn.primitive.name == "scan":
            lengths.append(eqn.params["length"])
        elif eqn.primitive.name == "while":
            lengths.append(float("inf"))
        for value in eqn.params.values():
            for inner in _inner(value):
                lengths += loops(inner)
    return lengths


def longest_loop(function, *args) -> float:
    """Length of the longest loop in `function(*args)`; nothing is compiled or run."""
    return max(loops(jax.make_jaxpr(function)(*args).jaxpr), default=0)
