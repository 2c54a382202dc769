"""Random numbers of blocks that depend on nothing but integers, so that a sequence is read alike wherever it stands."""

import jax
import jax.numpy as jnp


def draw(count: jax.Array, picks: int, *names: jax.Array | int) -> jax.Array:
    """[..., picks] int32: different numbers from 0 to count - 1, uniformly distributed; -1 beyond the first `count`.

    The numbers are a function of `names`, integers that broadcast against `count`. Floyd's algorithm (Bentley & Floyd 1987,
    "A sample of brilliance"): for j = count - picks .. count - 1, draw from 0 .. j, and take j itself if that was taken before.
    """
    seed, found = jnp.uint32(picks), []
    for name in names:
        seed = _mixed(seed ^ jnp.asarray(name).astype(jnp.uint32))
    few = count < picks  # then all numbers are taken in order
    for pick in range(picks):
        last = jnp.maximum(count - picks + pick, 0)
        number = (_mixed(seed ^ jnp.uint32(pick)) % (last + 1).astype(jnp.uint32)).astype(jnp.int32)
        again = jnp.any(jnp.stack([number == other for other in found] or [jnp.zeros(number.shape, bool)]), axis=0)
        number = jnp.where(again, last, number)
        found.append(jnp.where(few, jnp.where(pick < count, pick, -1), number))
    shape = jnp.broadcast_shapes(count.shape, seed.shape)
    return jnp.stack(found, axis=-1) if found else jnp.zeros((*shape, 0), jnp.int32)


def _mixed(x: jax.Array) -> jax.Array:
    """The last step of MurmurHash3 (Appleby), which maps a 32-bit integer to one whose bits look random."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
