"""Linear attention whose state decays by a factor per key channel: what WKV-5, -6 and -7 share.

The cumulative log-decay c_t of a channel makes a product of a token's query and an earlier token's key weigh e^{c_t - c_s}.
Splitting that into e^{c_t} and e^{-c_s} overflows. Blocks of 16 tokens avoid it: against earlier blocks both factors are taken
from the block's own beginning, where each is at most 1; inside the block the difference is formed before exp
(Yang et al. 2024, arXiv:2312.06635, §4.2, does the same in two levels).
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxseq.ops import _time

BLOCK = 16


def prepare(init_state: Callable, v_BTHV, like_r, state, pos):
    """(accumulation dtype, positions, state) of a call; like_r: what has the shape [B, T, H, K], r first, log_w second."""
    r_BTHK = like_r[0]
    chex.assert_rank([r_BTHK, v_BTHV], 4)
    chex.assert_equal_shape(like_r)
    chex.assert_equal_shape_prefix([r_BTHK, v_BTHV], 3)
    pos_BT = _time.positions(pos, r_BTHK)
    chex.assert_shape(pos_BT, r_BTHK.shape[:2])
    acc = _time.accumulation_dtype(r_BTHK, v_BTHV, like_r[1])
    sizes = (r_BTHK.shape[0], *r_BTHK.shape[2:], v_BTHV.shape[3])
    state = init_state(*sizes, acc) if state is None else state
    chex.assert_shape(state.S_BHKV, sizes)
    return acc, pos_BT, state


def products(x_BTHK, y_BTHK, c_x_BTHK, c_y_BTHK, mask_BTS):
    """sum_K x_t y_s e^{c_x[t] - c_y[s]} where the mask holds, else 0: [B, H, T, S].

    c_y falls with time and c_x[t] <= c_y[s] wherever the mask holds, which may be for s <= t alone.
    """
    time = x_BTHK.shape[1]
    rows = []
    for start in range(0, time, BLOCK):
        block = slice(start, min(start + BLOCK, time))
        x, c_x = x_BTHK[:, block], c_x_BTHK[:, block]
        near_BTS = mask_BTS[:, block, block]
        gap = c_x[:, :, None] - c_y_BTHK[:, None, block]
        weight = jnp.exp(jnp.where(near_BTS[..., None, None], gap, -jnp.inf))
        parts = [jnp.einsum("bthk,bshk,btshk->bhts", x, y_BTHK[:, block], weight)]
        if start:
            reference = c_y_BTHK[:, start - 1 : start]
            # Where the mask hides a pair, clipping keeps the factor finite; where it does not, nothing is clipped.
            x_now = x * jnp.exp(jnp.minimum(c_x - reference, 0))
            y_then = y_BTHK[:, :start] * jnp.exp(reference - c_y_BTHK[:, :start])
            far_BTS = mask_BTS[:, block, :start]
            parts.insert(0, jnp.where(far_BTS[:, None], jnp.einsum("bthk,bshk->bhts", x_now, y_then), 0))
        if block.stop < time:
            parts.append(jnp.zeros((*parts[-1].shape[:3], time - block.stop), parts[-1].dtype))
        rows.append(jnp.concatenate(parts, axis=3))
    return jnp.concatenate(rows, axis=2)


def cumulative(log_w_BTHK, pos_BT, acc):
    """Cumulative log-decay up to and with each token, and before it; padding and starts contribute none."""
    log_w_BTHK = _time.select(pos_BT > _time.START, log_w_BTHK.astype(acc))
    c_BTHK = jnp.cumsum(log_w_BTHK, axis=1)
    return c_BTHK, c_BTHK - log_w_BTHK


def before(seg_BT):
    """[B, T, S] bool: s is an earlier token of t's document."""
    time = seg_BT.shape[1]
    return (seg_BT[:, :, None] == seg_BT[:, None]) & jnp.tril(jnp.ones((time, time), bool), -1)


def chunk_parallel(totals, combine, state, apply):
    """States in front of each chunk [X, ...] and after the last, from the chunks' summaries, by an associative scan."""
    prefix = jax.lax.associative_scan(combine, totals)
    after = jax.vmap(lambda total: apply(total, state))(prefix)
    front = jax.tree.map(lambda s, a: jnp.concatenate([s[None], a[:-1]]), state, after)
    return front, jax.tree.map(lambda a: a[-1], after)
