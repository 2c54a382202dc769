"""Casts weights to the dtype in which a model computes, where this changes no bit of the results.

A model keeps its weights in float32 and casts most of them at each use. In decoding, the same weights are used again and again;
casting them once halves their memory and the bytes read per token.
"""

from collections.abc import Callable
from typing import Any

import jax

MOVES = {
    "reshape", "squeeze", "transpose", "rev", "broadcast_in_dim", "slice", "dynamic_slice", "gather", "sharding_constraint",
    "copy",
}  # fmt: skip


def narrowed(params: Any, *calls: tuple[Callable, tuple]) -> Any:
    """`params`, each cast to a narrower dtype if all calls cast it to this dtype before any other use.

    calls: pairs (function, further arguments), for function(params, *arguments); they are traced, not run.
    """
    leaves, tree = jax.tree.flatten(params)
    found: list[set] = [set() for _ in leaves]
    for function, arguments in calls:
        jaxpr = jax.make_jaxpr(function)(params, *arguments).jaxpr
        for uses, var in zip(found, jaxpr.invars[: len(leaves)], strict=True):
            dtypes, escapes = _uses(jaxpr, var)
            uses |= dtypes | ({None} if escapes else set())
    return jax.tree.unflatten(tree, [_cast(leaf, uses) for leaf, uses in zip(leaves, found, strict=True)])


def _cast(leaf: jax.Array, uses: set) -> jax.Array:
    if len(uses) != 1 or None in uses or (dtype := next(iter(uses))).itemsize >= leaf.dtype.itemsize:
        return leaf
    return leaf.astype(dtype)


def _uses(jaxpr, var) -> tuple[set, set[int]]:
    """(dtypes to which a variable is cast, with None for any other use; the outputs of the jaxpr that are casts of it)."""
    known, dtypes = {var}, set()
    for eqn in jaxpr.eqns:
        for i, read in enumerate(eqn.invars):
            if not isinstance(read, type(var)) or read not in known:
                continue
            if eqn.primitive.name == "convert_element_type":
                dtypes.add(eqn.params["new_dtype"])
            elif eqn.primitive.name in MOVES and i == 0:
                known.add(eqn.outvars[0])
            elif (inner := _inner(eqn)) is not None and _enters(eqn, inner, i):
                more, outputs = _uses(inner, inner.invars[i])
                dtypes |= more
                if eqn.primitive.name == "scan" and outputs:
                    dtypes.add(None)  # stacked or carried
                known |= {eqn.outvars[o] for o in outputs}
            else:
                dtypes.add(None)
    return dtypes, {i for i, out in enumerate(jaxpr.outvars) if isinstance(out, type(var)) and out in known}


def _inner(eqn):
    """The jaxpr that an equation calls with its own operands; None if there is none, or more than one."""
    found = [getattr(value, "jaxpr", value) for value in eqn.params.values() if hasattr(getattr(value, "jaxpr", value), "eqns")]
    return found[0] if len(found) == 1 and len(found[0].invars) == len(eqn.invars) else None


def _enters(eqn, inner, i: int) -> bool:
    """Whether operand i reaches the inner jaxpr unchanged. For a scan only sliced operands do: a carry must keep its dtype."""
    outside, inside = len(eqn.invars[i].aval.shape), len(inner.invars[i].aval.shape)
    return outside == inside + (eqn.primitive.name == "scan") and eqn.primitive.name != "while"
