"""Floating-point operations of a JAX function, counted on its jaxpr, and the measured matmul rate of this machine.

XLA's cost analysis counts the body of a loop only once, so a network scanned over layers or over time seems far too cheap.
Here a scan counts its body `length` times, a conditional its most expensive branch, and a `while` of unknown length its body
once. A multiply-add is two operations; a transcendental function counts as one; moving data is not counted.
"""

import functools
import math
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Var

# One operation for each element of the output.
ELEMENTWISE = frozenset(
    [
        "add",
        "sub",
        "mul",
        "div",
        "rem",
        "max",
        "min",
        "neg",
        "abs",
        "sign",
        "pow",
        "integer_pow",
        "sqrt",
        "rsqrt",
        "cbrt",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log1p",
        "sin",
        "cos",
        "tan",
        "tanh",
        "logistic",
        "erf",
        "erfc",
        "erf_inv",
        "square",
        "add_any",
        "atan2",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "asinh",
        "acosh",
        "atanh",
        "lgamma",
        "digamma",
        "floor",
        "ceil",
        "round",
        "select_n",
        "clamp",
        "nextafter",
    ]
)
# One operation for each element of the input.
REDUCING = frozenset(
    [
        "reduce_sum",
        "reduce_max",
        "reduce_min",
        "reduce_prod",
        "argmax",
        "argmin",
        "cumsum",
        "cumprod",
        "cummax",
        "cummin",
        "cumlogsumexp",
        "scatter-add",
        "scatter_add",
        "reduce_window_sum",
        "reduce_window_max",
    ]
)


def count(function: Callable, *args: Any, **kwargs: Any) -> int:
    """Operations of one call `function(*args)`; arguments may be ShapeDtypeStructs."""
    return count_jaxpr(jax.make_jaxpr(function)(*args, **kwargs))


def count_jaxpr(closed: ClosedJaxpr, only: Collection[str] | None = None) -> int:
    """Operations of a traced function; `only`: of these primitives, such as PRODUCTS."""
    return _jaxpr(closed.jaxpr, only)


def _jaxpr(jaxpr: Jaxpr, only: Collection[str] | None) -> int:
    """Operations of the equations whose results are used: others are not run (flax's scan leaves such equations)."""
    used, total = {var for var in jaxpr.outvars if isinstance(var, Var)}, 0
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or not used.isdisjoint(eqn.outvars):
            total += _equation(eqn, only)
            used.update(var for var in eqn.invars if isinstance(var, Var))
    return total


def _equation(eqn, only: Collection[str] | None) -> int:
    name, of = eqn.primitive.name, functools.partial(_jaxpr, only=only)
    if name in NESTED:
        return NESTED[name](eqn, of)
    if only is not None and name not in only:
        return sum(of(inner) for inner in _inner(eqn.params))
    if name in RULES:
        return RULES[name](eqn)
    if name in ELEMENTWISE:
        return _size(eqn.outvars[0]) if _floating(eqn.outvars[0]) else 0
    if name in REDUCING:
        return _size(eqn.invars[0]) if _floating(eqn.outvars[0]) else 0
    return sum(of(inner) for inner in _inner(eqn.params))


def _inner(params: dict) -> Iterator[Jaxpr]:
    """The jaxprs among an equation's parameters: jit, remat, custom derivatives and so on."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _size(var) -> int:
    return math.prod(var.aval.shape)


def _floating(var) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.inexact)


def _dot_general(eqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2 * _size(eqn.outvars[0]) * math.prod(shape[dim] for dim in contracted)


def _ragged_dot(eqn) -> int:
    """Each row is multiplied by the matrix of its group, or each group of rows makes one matrix: no row is used twice."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    groups = eqn.outvars[0].aval.shape[0] if set(numbers.lhs_ragged_dimensions) & set(contracted) else 1
    shape = eqn.invars[0].aval.shape
    return 2 * _size(eqn.outvars[0]) // groups * math.prod(shape[dim] for dim in contracted)


def _convolution(eqn) -> int:
    """An output element sums over the kernel's taps and input channels (its shape holds those of one group)."""
    numbers = eqn.params["dimension_numbers"]
    kernel = eqn.invars[1].aval.shape
    return 2 * _size(eqn.outvars[0]) * math.prod(kernel) // kernel[numbers.rhs_spec[0]]


def _fft(eqn) -> int:
    """5 n log2 n for a complex transform of n points, half of it for a real one: the usual convention."""
    lengths = eqn.params["fft_lengths"]
    points = math.prod(lengths)
    real = eqn.params["fft_type"] in (jax.lax.FftType.RFFT, jax.lax.FftType.IRFFT)
    widest = max(eqn.invars[0], eqn.outvars[0], key=_size)
    batch = math.prod(widest.aval.shape[: len(widest.aval.shape) - len(lengths)])
    return int(batch * (2.5 if real else 5.0) * points * math.log2(max(points, 2)))


def _kernel(eqn, of: Callable[[Jaxpr], int]) -> int:
    """`pl.kernel`: each core of a mesh runs the mesh's function once."""
    jaxprs = _inner({"jaxprs": eqn.params["jaxprs"]})
    return sum(math.prod(mesh.shape.values()) * of(jaxpr) for mesh, jaxpr in zip(eqn.params["meshes"], jaxprs, strict=True))


RULES: dict[str, Callable] = {
    "dot_general": _dot_general,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
    "fft": _fft,
}
PRODUCTS = ("dot_general", "ragged_dot_general", "conv_general_dilated")
# Primitives that run jaxprs: functions of the equation, and of a function that counts a jaxpr.
NESTED: dict[str, Callable] = {
    "scan": lambda eqn, of: eqn.params["length"] * of(eqn.params["jaxpr"].jaxpr),
    "while": lambda eqn, of: of(eqn.params["body_jaxpr"].jaxpr) + of(eqn.params["cond_jaxpr"].jaxpr),
    "cond": lambda eqn, of: max(of(branch.jaxpr) for branch in eqn.params["branches"]),
    # Shapes inside are those of one device.
    "shard_map": lambda eqn, of: eqn.params["mesh"].size * sum(of(inner) for inner in _inner(eqn.params)),
    "pallas_call": lambda eqn, of: math.prod(eqn.params["grid_mapping"].grid) * sum(of(inner) for inner in _inner(eqn.params)),
    "mpmd_map": _kernel,
    # The forward call of a custom_vjp runs only its body, not its derivative rules.
    "custom_jvp_call": lambda eqn, of: of(eqn.params["call_jaxpr"].jaxpr),
    "custom_vjp_call": lambda eqn, of: of(eqn.params["call_jaxpr"].jaxpr),
}


@functools.cache
def matmul_peak(dtype: str) -> float:
    """Operations per second of the fastest of a few square matmuls in `dtype` on one device: the reference for
    utilisation.

    Several host devices of one CPU share its cores, so for them the rate is that of the whole machine (see
    `machine_peak`).
    """
    size = 768 if jax.default_backend() == "cpu" else 8192
    ones = jnp.ones((size, size), dtype)
    multiply = jax.jit(lambda x: x @ x)
    multiply(ones).block_until_ready()
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        multiply(ones).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def machine_peak(dtype: str, devices: int) -> float:
    """`matmul_peak` of `devices` devices together."""
    return matmul_peak(dtype) * (devices if jax.default_backend() != "cpu" else jax.process_count())
