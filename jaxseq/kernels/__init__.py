"""Pallas kernels of ops, one file per op and platform: `OP_tpu.py`, `OP_gpu.py`. Each adds the form `pallas` to its op.

They are opt-in: a kernel runs only if the form "pallas" is requested.
"""

import importlib
import importlib.util
from collections.abc import Callable

import jax


def forms(op: str, platform: str | None = None) -> dict[str, Callable]:
    """{"pallas": form} if the op has a kernel for the platform ("tpu", "gpu"; None: the default backend), else {}."""
    name = f"{__name__}.{op}_{platform or jax.default_backend()}"
    return {"pallas": importlib.import_module(name).pallas} if importlib.util.find_spec(name) else {}
