"""What the supported versions of JAX (0.7.2 to 0.12) name differently, in one place."""

import jax

if hasattr(jax, "enable_x64"):
    enable_x64 = jax.enable_x64
else:  # before 0.8
    from jax.experimental import enable_x64

__all__ = ["enable_x64"]
