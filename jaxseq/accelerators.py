"""Detects an accelerator that JAX does not use: without a matching plugin, JAX silently falls back to the CPU."""

import importlib.metadata
import os
import re
import sys
from pathlib import Path

import jax


def unused(root: Path = Path("/"), platform: str | None = None) -> str | None:
    """A one-line warning if the machine has an accelerator but JAX computes on the CPU; it says what to install.

    None if JAX uses an accelerator, if there is none, or if JAX_PLATFORMS selects the CPU.

    Args:
      root: the folder that contains /dev and /proc.
      platform: the platform of JAX; by default JAX is asked, which starts its backends.
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
    """Prints the warning of `unused` on standard error."""
    if line := unused():
        print(line, file=sys.stderr)


def _cuda(root: Path) -> int:
    """The CUDA version that the driver supports: JAX's plugin for CUDA 13 needs driver release 580 or newer."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return 12
    release = re.search(r"\b(\d{3,})\.\d+", text)
    return 13 if release and int(release[1]) >= 580 else 12
