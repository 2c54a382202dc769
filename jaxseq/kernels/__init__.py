"""Pallas kernels of ops, one file an op and platform: `OP_tpu.py`, `OP_gpu.py`. Each is one more form, `pallas`, of its op.

They are opt-in: nothing takes them unless the form "pallas" is asked for.
"""

import importlib
import importlib.util
from collections.abc import Callable

import jax


def forms(op: str, platform: str | None = None) -> dict[str, Callable]:
    """{"pallas": form} where the op has a kernel for the platform ("tpu", "gpu"; None: the default backend), else {}."""
    name = f"{__name__}.{op}_{platform or jax.default_backend()}"
    return {"pallas": importlib.import_module(name).pallas} if importlib.util.find_spec(name) else {}
