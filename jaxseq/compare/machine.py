"""On what a comparison was run."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax
import psutil

PACKAGES = ("jaxseq", "jax", "jaxlib", "flax", "optax", "numpy")


def describe() -> dict[str, Any]:
    """The machine as plain data; takes a moment, because the rate of a large matrix product is measured."""
    from jaxseq.train.flops import matmul_peak

    device = jax.local_devices()[0]
    return {
        "platform": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "cpu": processor(),
        "cores": cores(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # of other programs, as we begin
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "matmul_flops_per_second": matmul_peak("float32"),
    }


def processor() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
