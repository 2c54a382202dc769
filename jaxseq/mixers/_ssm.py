"""Shared by S4, S4D and H3: initial state matrices, step sizes and discretisation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jaxseq.errors import UserError
from jaxseq.layers import Initializer, Linear, Mixer, param, scaled_uniform, uniform

FREQUENCIES = ("lin", "inv", "legs")
DISCRETISATIONS = ("zoh", "bilinear")


@functools.cache
def hippo(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HiPPO-LegS, A = V (diag(lam) - P P*) V*, one of each conjugate pair: lam, P, B [size / 2], complex.

    A + P P^T is skew-symmetric plus -1/2 I, so V comes from a Hermitian eigensolver (S4, arXiv:2111.00396, §2.2, theorem 1).
    """
    n = np.arange(size)
    p, b = np.sqrt(n + 0.5), np.sqrt(2 * n + 1)
    normal = -np.tril(np.outer(b, b), -1) - np.diag(n + 1.0) + np.outer(p, p)
    imag, v = np.linalg.eigh(-1j * (normal + np.eye(size) / 2))
    half = slice(size // 2, None)  # ascending: the upper half is positive
    to_mode = v[:, half].conj().T
    return -0.5 + 1j * imag[half], to_mode @ p, to_mode @ b


@functools.cache
def frequencies(name: str, size: int) -> np.ndarray:
    """Imaginary parts [size / 2] of the S4D-Lin, S4D-Inv or S4D-LegS matrix (Gu et al. 2022, arXiv:2206.11893, §4.3)."""
    n = np.arange(size // 2)
    if name == "legs":
        return np.imag(hippo(size)[0])
    return math.pi * n if name == "lin" else size / math.pi * (size / (2 * n + 1) - 1)


def check(size: int, frequency: str, rule: str) -> int:
    """Complex state values per channel, size / 2. Raises UserError for an odd size or an unknown frequency or rule."""
    if size % 2 or size < 2:
        raise UserError(f"state_size={size} counts real numbers, two for each conjugate pair; make it even and positive")
    for what, value, known in (("frequencies", frequency, FREQUENCIES), ("discretisation", rule, DISCRETISATIONS)):
        if value not in known:
            raise UserError(f"there is no {what} {value!r}; choose one of: {', '.join(known)}")
    return size // 2


def constant(value: np.ndarray) -> Initializer:
    """The same values in every channel; complex values as a last axis of two."""
    if np.iscomplexobj(value):
        value = np.stack([np.real(value), np.imag(value)], axis=-1)
    return lambda key, shape, dtype: jnp.broadcast_to(jnp.asarray(value, dtype), shape)


def complex_normal(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Complex normal with variance 1, [..., 2]."""
    return math.sqrt(0.5) * jax.random.normal(key, shape, dtype)


def log_uniform(low: float, high: float) -> Initializer:
    """log(dt) uniform in [log(low), log(high)]."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, math.log(low), math.log(high))


def packed(x: jax.Array) -> jax.Array:
    """[..., N, 2] -> [..., 2N]: real parts, then imaginary parts."""
    return jnp.concatenate([x[..., 0], x[..., 1]], axis=-1)


def matrix(module: Mixer, channels: int, imag: np.ndarray, lr: float) -> jax.Array:
    """diag(A) [channels, 2N] with real parts -exp(A_log), initially -1/2, and trained imaginary parts, initially `imag`."""
    shape, axes = (channels, len(imag)), ("embed", None)
    log_DN = param(module, "A_log", constant(np.full(len(imag), math.log(0.5))), shape, axes, decay=False, lr=lr)
    imag_DN = param(module, "A_imag", constant(imag), shape, axes, decay=False, lr=lr)
    return jnp.concatenate([-jnp.exp(log_DN), imag_DN], axis=-1)


def discretise(rule: str, A_DM: jax.Array, b_DM: jax.Array, dt_D: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(poles, input map) of x' = A x + b u with step dt, by zero-order hold or the bilinear rule (S4D, eq. 3 and §3.1)."""
    re, im = jnp.split(A_DM * dt_D[:, None], 2, axis=-1)
    z, a = jax.lax.complex(re, im), jax.lax.complex(*jnp.split(A_DM, 2, axis=-1))
    b = jax.lax.complex(*jnp.split(b_DM, 2, axis=-1))
    if rule == "zoh":
        p, b = jnp.exp(z), b * _expm1(re, im) / a
    else:
        p, b = (1 + z / 2) / (1 - z / 2), b * dt_D[:, None] / (1 - z / 2)
    p_DM, b_DM = (jnp.concatenate([x.real, x.imag], axis=-1) for x in (p, b))
    return p_DM, b_DM


def _expm1(re, im):
    """exp(re + i im) - 1, accurate near 0."""
    return jax.lax.complex(jnp.expm1(re) * jnp.cos(im) - 2 * jnp.sin(im / 2) ** 2, jnp.exp(re) * jnp.sin(im))


def diagonal(
    module: Mixer, channels: int, size: int, frequency: str, rule: str, dt: tuple[float, float], lr: float, input_map: bool
) -> dict[str, jax.Array]:  # fmt: skip
    """Weights of `diagonal_ssm` for `channels` channels: S4D's parameters, discretised. `dt`: range of the initial steps."""
    modes, axes = check(size, frequency, rule), ("embed", None, None)
    log_dt_D = param(module, "log_dt", log_uniform(*dt), (channels,), ("embed",), decay=False, lr=lr)
    A_DM = matrix(module, channels, frequencies(frequency, size), lr)
    ones = constant(np.ones(modes, complex))
    if input_map:
        b_DM = packed(param(module, "B", ones, (channels, modes, 2), axes, decay=False, lr=lr))
    else:
        b_DM = jnp.zeros_like(A_DM).at[:, :modes].set(1)
    c_DM = 2 * packed(param(module, "C", complex_normal, (channels, modes, 2), axes, decay=False))
    d_D = param(module, "D", jax.nn.initializers.normal(1.0), (channels,), ("embed",), decay=False)
    p_DM, b_DM = discretise(rule, A_DM, b_DM, jnp.exp(log_dt_D))
    return {"p_DM": p_DM, "b_DM": b_DM, "c_DM": c_DM, "d_D": d_D}


def gated_output(module: Mixer, y_BTD: jax.Array) -> jax.Array:
    """GLU(W gelu(y) + b), which mixes the channels (S4, §3.4); W and b are initialised like torch's linear layers."""
    gelu_BTD = nn.gelu(y_BTD, approximate=False)
    init, bias_init = scaled_uniform(), uniform(module.width**-0.5)
    axes = "mlp", None, "embed"
    out = Linear((2, module.width), axes, 1, True, init, module.dtype, bias_init, name="out")(gelu_BTD)
    return out[..., 0, :] * nn.sigmoid(out[..., 1, :])
