"""Functions of other libraries that compute what an op computes, timed beside its forms: jax.nn's attention, with cuDNN on GPUs
in 16 bits, and tokamax's where it is installed."""

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Form = Callable[..., tuple[jax.Array, None]]


def functions(
    op: str, xs: Sequence[jax.Array], weights: Mapping[str, Any], options: Mapping[str, Any], dtype: str
) -> dict[str, Form]:
    """{name: a function of the op's arguments that returns (y, None)} for a call with these. It needs `packed`: whether rows hold
    several documents, which makes a mask of [B, 1, T, T]."""
    if op != "attention" or weights or not options.keys() <= {"window", "scale"} or xs[1].shape != xs[2].shape:
        return {}
    found = {"jax.nn": functools.partial(_attention, jax.nn.dot_product_attention)}
    if jax.default_backend() == "gpu" and dtype in ("bfloat16", "float16"):
        cudnn = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
        found["jax.nn cudnn"] = functools.partial(_attention, cudnn)
    if importlib.util.find_spec("tokamax"):
        from tokamax import dot_product_attention

        found["tokamax"] = functools.partial(_attention, dot_product_attention)
    return found


def _attention(
    function: Callable, q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, *, pos: jax.Array, packed: bool,
    window: int | None = None, scale: float | None = None,
) -> tuple[jax.Array, None]:  # fmt: skip
    """Causal attention of full rows, without padding."""
    more: dict[str, Any] = {} if window is None else {"local_window_size": (window - 1, 0)}
    if packed:
        document_BT = jnp.cumsum(pos == 0, axis=1)
        more["mask"] = document_BT[:, None, :, None] == document_BT[:, None, None, :]
    return function(q_BTHK, k_BTGK, v_BTGK, is_causal=True, scale=scale, **more), None
