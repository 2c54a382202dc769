"""Sampling of the next token: temperature, then top-k, then top-p on the renormalised rest."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sampling(NamedTuple):
    """Settings of sampling; arrays, so that other values need no new compilation."""

    temperature: jax.Array  # > 0
    top_k: jax.Array  # int32; 0: all
    top_p: jax.Array  # in (0, 1]; 1: all
    seed_B: jax.Array  # uint32
    stop_V: jax.Array  # bool: ids that end a row


def keep_top(logits_BV: jax.Array, top_k: jax.Array | int = 0, top_p: jax.Array | float = 1.0) -> jax.Array:
    """logits_BV with -inf outside the top_k largest and, among these, outside the nucleus.

    The nucleus is the smallest set of the likeliest tokens whose probability, renormalised after top-k, reaches top_p
    (Holtzman et al. 2020, arXiv:1904.09751, §3.1). Of equal logits, the lower id counts as likelier. 0 and 1 keep all.
    """
    return jax.lax.cond((jnp.asarray(top_k) > 0) | (jnp.asarray(top_p) < 1), _keep_top, lambda x, *_: x, logits_BV, top_k, top_p)


def _keep_top(logits_BV: jax.Array, top_k: jax.Array | int, top_p: jax.Array | float) -> jax.Array:
    order_BV = jnp.argsort(-logits_BV, axis=-1, stable=True)
    sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
    size = logits_BV.shape[-1]
    sorted_BV = jnp.where(jnp.arange(size) < jnp.where(top_k > 0, top_k, size), sorted_BV, -jnp.inf)
    p_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
    kept_BV = jnp.where((before_BV < top_p) | (top_p >= 1), sorted_BV, -jnp.inf)
    return jnp.take_along_axis(kept_BV, jnp.argsort(order_BV, axis=-1), axis=-1)


def filtered(logits: jax.Array, sampling: Sampling, greedy: bool = False) -> jax.Array:
    """Logits [..., V] of the distribution that a token is drawn from: after temperature, top-k and top-p, at least float32.

    greedy: that of the token with the largest logit alone, the lowest id in a tie.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if greedy:
        return jnp.where(jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool), 0.0, -jnp.inf)
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / sampling.temperature
    return keep_top(logits, sampling.top_k, sampling.top_p)


def draw(logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
    """One id [B] int32 per row from softmax(logits), by the Gumbel-max trick: row i depends only on its logits and its key."""
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:], logits_BV.dtype))(keys_B)
    return jnp.argmax(logits_BV + noise_BV, axis=-1).astype(jnp.int32)


def sample(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling, greedy: bool = False) -> jax.Array:
    """One id [B] int32 per row: that of the largest logit, or drawn after temperature, top-k and top-p."""
    if greedy:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    return draw(filtered(logits_BV, sampling), keys_B)


def token_keys(seed_B: jax.Array, number_B: jax.Array) -> jax.Array:
    """The random keys [B] of tokens with these numbers in their rows."""
    return jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))(seed_B, number_B)
