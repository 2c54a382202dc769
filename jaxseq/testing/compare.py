"""Errors between two results, and their tolerances, which depend only on the dtype."""

from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.typing import DTypeLike

FLOAT64 = 1e-10  # between two forms in float64, relative to the largest value of the array
FINITE_DIFFERENCE = 1e-5  # between a gradient and a central difference in float64
ROUNDINGS = 33  # tolerance of the recurrent form against float64, in units of the dtype's epsilon
OWN_ERROR = 16.0  # tolerance of the other forms in a lower dtype, as a multiple of the recurrent form's error
LOW_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


class LawBroken(AssertionError):
    """Raised when a law fails; the message names subject, law, form, T, dtype and the size of the error."""


def is_float(x: Any) -> bool:
    """Whether x has a floating dtype."""
    return jax.dtypes.issubdtype(x.dtype, np.floating)


def epsilon(dtype: DTypeLike) -> float:
    """Machine epsilon of a dtype."""
    return float(jax.numpy.finfo(dtype).eps)


def cast(tree: Any, dtype: DTypeLike) -> Any:
    """Cast floating arrays to `dtype`, leave the others unchanged; all on the host."""
    return jax.tree.map(lambda x: np.asarray(x, dtype) if is_float(x) else np.asarray(x), tree)


def error(got: Any, wanted: Any, floor: float = 1e-6) -> float:
    """Largest difference relative to the largest wanted value, or to `floor` if that is larger; infinite if only one of them is
    NaN or infinite somewhere."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    if got.shape != wanted.shape:
        return float("inf")
    if got.size == 0:
        return 0.0
    with np.errstate(invalid="ignore"):
        difference = np.where(got == wanted, 0.0, np.abs(got - wanted))
    return float(np.max(np.where(np.isnan(difference), np.inf, difference))) / max(_largest(wanted), floor)


def _largest(wanted) -> float:
    """The largest finite magnitude."""
    return float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0))


def worst(got: Any, wanted: Any, share: float = 0.0) -> tuple[float, str]:
    """(largest `error` over the leaves of two trees, the leaf where it occurs); infinite if their structures differ.

    share: the denominator is at least this share of the largest value of all leaves. For gradients, some of which are zero up to
    rounding, such as that of the keys' bias in softmax attention.
    """
    got_leaves = jax.tree_util.tree_leaves_with_path(got)
    wanted_leaves, same = jax.tree.leaves(wanted), jax.tree.structure(got) == jax.tree.structure(wanted)
    if not same:
        return float("inf"), f"structure {jax.tree.structure(got)} instead of {jax.tree.structure(wanted)}"
    floor = max(1e-6, share * max((_largest(np.asarray(x, np.float64)) for x in wanted_leaves), default=0.0))
    errors = [
        (error(a, b, floor), jax.tree_util.keystr(path) or "value")
        for (path, a), b in zip(got_leaves, wanted_leaves, strict=True)
    ]
    return max(errors, default=(0.0, "nothing"))


def spec(tree: Any) -> tuple[Any, tuple[tuple[tuple[int, ...], str], ...]]:
    """Structure, shapes and dtypes, comparable with ==."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((tuple(x.shape), np.dtype(x.dtype).name) for x in leaves)
