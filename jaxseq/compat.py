"""Differences between the supported versions of JAX (0.7.2 to 0.12)."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

if hasattr(jax, "enable_x64"):
    enable_x64 = jax.enable_x64
else:  # before 0.8
    from jax.experimental import enable_x64

__all__ = ["einsum", "enable_x64"]


def einsum(subscripts: str, *arrays: jax.Array, dtype: DTypeLike) -> jax.Array:
    """`jnp.einsum` with sums and result in `dtype`, which is at least as precise as the arrays' dtypes.

    XLA of some versions before JAX 0.10 cannot multiply bfloat16 matrices to a float32 result on processors with bfloat16
    instructions ("DotThunk: Unsupported element type", seen with 0.7.2). On the CPU these versions convert the arrays first; the
    result is the same, as a product of two bfloat16 numbers is exact in float32.
    """
    if jax.__version_info__ < (0, 10) and jax.default_backend() == "cpu":
        arrays = tuple(x.astype(dtype) for x in arrays)
    return jnp.einsum(subscripts, *arrays, preferred_element_type=dtype)
