"""Does JAX use the accelerator that is here? On a runtime whose plugin does not match, it falls back to the CPU in silence."""

import importlib.metadata
import os
import re
import sys
from pathlib import Path

import jax


def unused(root: Path = Path("/"), platform: str | None = None) -> str | None:
    """One line that says which accelerator is there while JAX computes on the CPU, and how to install what is missing.

    None when JAX uses an accelerator, when there is none, or when JAX_PLATFORMS chose the CPU.

    Args:
      root: where /dev and /proc lie.
      platform: what JAX computes on; by default it is asked, which starts its backends.
    """
    if os.environ.get("JAX_PLATFORMS", "").lower() == "cpu" or (platform or jax.default_backend()) != "cpu":
        return None
    version = importlib.metadata.version("jax")
    if (root / "proc/driver/nvidia/version").exists() or (root / "dev/nvidia0").exists():
        install = f"pip install 'jax[cuda{_cuda(root)}]=={version}'"
        return f"an NVIDIA GPU is here, but JAX {version} computes on the CPU: {install}, or set JAX_PLATFORMS=cpu to keep it so"
    if any((root / "dev").glob("accel[0-9]*")) or any((root / "dev/vfio").glob("[0-9]*")):
        install = f"pip install 'jax[tpu]=={version}'"
        return f"a TPU is here, but JAX {version} computes on the CPU: {install}, or set JAX_PLATFORMS=cpu to keep it so"
    return None


def warn() -> None:
    """Prints what `unused` says, on standard error."""
    if line := unused():
        print(line, file=sys.stderr)


def _cuda(root: Path) -> int:
    """The CUDA release that the driver can run: JAX's plugin for CUDA 13 needs a driver of release 580 or newer."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return 12
    release = re.search(r"\b(\d{3,})\.\d+", text)
    return 13 if release and int(release[1]) >= 580 else 12
