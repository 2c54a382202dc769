"""WKV of RWKV-7: a generalised delta rule, diagonal decay plus a rank-one correction (Peng et al. 2025, arXiv:2503.14456, §3).

    S_t = (diag(e^{log_w_t}) + b_t^T a_t) S_{t-1} + k_t^T v_t          S [K, V] per head
    y_t = r_t S_t

The paper writes S transposed. In RWKV-7 a = -kappa and b = kappa * (its in-context learning rate), kappa a unit vector; the
delta rule is log_w = 0, a = -k, b = beta k. log_w <= 0. State: S_BHKV in the accumulation dtype, in which everything is computed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxseq.ops import _decay, _time
from jaxseq.ops._example import Example, repeated, stresses

CHUNK = 32  # tokens whose triangular system is solved at once


class WKV7State(NamedTuple):
    S_BHKV: jax.Array


class Summary(NamedTuple):
    """What a segment of input does to any state: S -> A S + S'."""

    A_BHKK: jax.Array  # zero if a document starts in the segment
    S_BHKV: jax.Array


def init_state(batch: int, heads: int, key_size: int, value_size: int, dtype=jnp.float32) -> WKV7State:
    return WKV7State(jnp.zeros((batch, heads, key_size, value_size), _time.accumulation_dtype(jnp.zeros((), dtype))))


def _prepare(r_BTHK, log_w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK, state, pos):
    return _decay.prepare(init_state, v_BTHV, [r_BTHK, log_w_BTHK, k_BTHK, a_BTHK, b_BTHK], state, pos)


def recurrent(r_BTHK, log_w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK, *, state=None, pos=None):
    """One token after another."""
    xs = (r_BTHK, log_w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK)
    acc, pos_BT, state = _prepare(*xs, state, pos)

    def step(state, *xs):
        r_BHK, log_w_BHK, k_BHK, v_BHV, a_BHK, b_BHK = (x.astype(acc) for x in xs)
        read_BHV = jnp.einsum("bhk,bhkv->bhv", a_BHK, state.S_BHKV)
        S_BHKV = jnp.exp(log_w_BHK)[..., None] * state.S_BHKV
        S_BHKV += b_BHK[..., None] * read_BHV[..., None, :] + k_BHK[..., None] * v_BHV[..., None, :]
        return WKV7State(S_BHKV), jnp.einsum("bhk,bhkv->bhv", r_BHK, S_BHKV).astype(xs[0].dtype)

    return _time.scan_time(step, state, xs, pos_BT)


def _sandwich(X_BHTT, R_BHTT):
    """X R X. Rounded to bfloat16, an accelerator's default, an inverse would be none."""
    return jnp.matmul(jnp.matmul(X_BHTT, R_BHTT, precision="highest"), X_BHTT, precision="highest")


@jax.custom_jvp
def unit_triangular_inverse(A_BHTT):
    """(I - A)^-1 of a strictly lower triangular A, by halves: [[P, 0], [-R, Q]]^-1 = [[P^-1, 0], [Q^-1 R P^-1, Q^-1]].

    All blocks of a size are inverted at once: with X the inverse of the diagonal blocks and R what joins them in pairs, the
    next X is X + X R X, log2 T times two matrix products. The product (I + A)(I + A^2)(I + A^4) ... costs the same, but its
    terms grow like binomial coefficients where keys repeat, and cancel.
    """
    time = A_BHTT.shape[-1]
    inverse, size, index_T = jnp.eye(time, dtype=A_BHTT.dtype) + jnp.zeros_like(A_BHTT), 1, jnp.arange(time)
    while size < time:
        block_T = index_T // size
        joins_TT = (block_T[:, None] == block_T + 1) & (block_T[:, None] % 2 == 1)
        joint_BHTT = jnp.where(joins_TT, A_BHTT, 0)
        inverse += joint_BHTT if size == 1 else _sandwich(inverse, joint_BHTT)
        size *= 2
    return inverse


@unit_triangular_inverse.defjvp
def _(primals, tangents):
    inverse_BHTT = unit_triangular_inverse(*primals)
    return inverse_BHTT, _sandwich(inverse_BHTT, tangents[0])


class _Chunk(NamedTuple):
    """A chunk solved for any incoming state S: the reads are u_t = a_t S_{t-1} = u0_t + U_t S."""

    u0_BTHV: jax.Array
    U_BTHK: jax.Array
    decays: _decay.Decays


def _products(function, x, ys, decays, mask_BTS):
    """`function`, one of `_decay`'s products, of x with each y: [len(y), B, H, T, S]."""
    return jax.vmap(lambda y: function(x, y, decays, mask_BTS))(jnp.stack(ys))


def _solve(log_w, k, v, a, b, pos_BT) -> _Chunk:
    """u_t = a_t e^{c_{t-1}} S + sum_{s<t} a_t e^{c_{t-1} - c_s} (b_s u_s + k_s v_s), a triangular system."""
    seg_BT = _time.segments(pos_BT)
    decays = _decay.decays(log_w, pos_BT, v.dtype)
    with_b_BHTS, with_k_BHTS = _products(_decay.products_before, a, (b, k), decays, _decay.before(seg_BT))
    inverse_BHTS = unit_triangular_inverse(with_b_BHTS)
    from_k_BHTS = inverse_BHTS @ with_k_BHTS
    in_BTHK = a * _time.select(seg_BT == 0, decays.before_BTHK)
    U_BTHK = jnp.einsum("bhts,bshk->bthk", inverse_BHTS, in_BTHK)
    return _Chunk(jnp.einsum("bhts,bshv->bthv", from_k_BHTS, v), U_BTHK, decays)


def _outputs(r, k, v, b, chunk: _Chunk, S_BHKV, pos_BT):
    seg_BT, decays = _time.segments(pos_BT), chunk.decays
    time = seg_BT.shape[1]
    u_BTHV = chunk.u0_BTHV + jnp.einsum("bthk,bhkv->bthv", chunk.U_BTHK, S_BHKV)
    mask_BTS = _decay.before(seg_BT) | jnp.eye(time, dtype=bool)
    with_k_BHTS, with_b_BHTS = _products(_decay.products, r, (k, b), decays, mask_BTS)
    y_BTHV = jnp.einsum("bhts,bshv->bthv", with_k_BHTS, v) + jnp.einsum("bhts,bshv->bthv", with_b_BHTS, u_BTHV)
    in_BTHK = r * _time.select(seg_BT == 0, decays.upto_BTHK)
    return y_BTHV + jnp.einsum("bthk,bhkv->bthv", in_BTHK, S_BHKV)


def _summary(k, v, b, chunk: _Chunk, pos_BT) -> Summary:
    out_BTHK = _time.select(_time.last_segment(pos_BT), chunk.decays.after_BTHK)
    S_BHKV = jnp.einsum("bthk,bthv->bhkv", b * out_BTHK, chunk.u0_BTHV) + jnp.einsum("bthk,bthv->bhkv", k * out_BTHK, v)
    decay_BHK = chunk.decays.upto_BTHK[:, -1]
    A_BHKK = jnp.einsum("bthk,bthj->bhkj", b * out_BTHK, chunk.U_BTHK)
    A_BHKK += decay_BHK[..., None] * jnp.eye(decay_BHK.shape[-1], dtype=decay_BHK.dtype)
    return Summary(_time.select(_time.continues(pos_BT), A_BHKK), S_BHKV)


def combine(first: Summary, second: Summary) -> Summary:
    """The summary of two segments, one after the other; associative."""
    return Summary(second.A_BHKK @ first.A_BHKK, second.A_BHKK @ first.S_BHKV + second.S_BHKV)


def apply(summary: Summary, state: WKV7State) -> WKV7State:
    return WKV7State(summary.A_BHKK @ state.S_BHKV + summary.S_BHKV)


def summary(r_BTHK, log_w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK, *, pos=None) -> Summary:
    """What the segment does to any state; one triangular system of size T. T >= 1."""
    acc, pos_BT, _ = _prepare(r_BTHK, log_w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK, None, pos)
    xs = _time.clean(pos_BT, log_w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK)
    log_w, k, v, a, b = (x.astype(acc) for x in xs)
    return _summary(k, v, b, _solve(log_w, k, v, a, b, pos_BT), pos_BT)


def parallel(r_BTHK, log_w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK, *, state=None, pos=None):
    """All chunks of CHUNK tokens at once, their states joined by an associative scan over [K, K] matrices."""
    xs = (r_BTHK, log_w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK)
    acc, pos_BT, state = _prepare(*xs, state, pos)
    time = r_BTHK.shape[1]
    if time == 0:
        return v_BTHV.astype(r_BTHK.dtype), state
    r, log_w, k, v, a, b = xs = tuple(x.astype(acc) for x in _time.clean(pos_BT, *xs))
    if time <= CHUNK:
        chunk = _solve(log_w, k, v, a, b, pos_BT)
        y_BTHV = _outputs(r, k, v, b, chunk, state.S_BHKV, pos_BT)
        state = apply(_summary(k, v, b, chunk, pos_BT), state)
        return _time.select(_time.valid(pos_BT), y_BTHV).astype(r_BTHK.dtype), state
    pos_ZBC, r, log_w, k, v, a, b = _time.split_chunks(CHUNK, pos_BT, *xs)
    chunks = jax.vmap(_solve)(log_w, k, v, a, b, pos_ZBC)
    front, state = _decay.chunk_parallel(jax.vmap(_summary)(k, v, b, chunks, pos_ZBC), combine, state, apply)
    y = jax.vmap(_outputs)(r, k, v, b, chunks, front.S_BHKV, pos_ZBC)
    return _time.select(_time.valid(pos_BT), _time.join_chunks(y, time)).astype(r_BTHK.dtype), state


def chunkwise(r_BTHK, log_w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK, *, state=None, pos=None, chunk: int = CHUNK):
    """The delta rule in matrix products inside each chunk, the state carried between; memory linear in T."""
    xs = (r_BTHK, log_w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK)
    _, pos_BT, state = _prepare(*xs, state, pos)
    if r_BTHK.shape[1] == 0:
        return v_BTHV.astype(r_BTHK.dtype), state
    return _time.scan_chunks(parallel, state, xs, pos_BT, chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}


def example(key: jax.Array, batch: int, time: int, dtype=jnp.float32) -> Example:
    def inputs(key, time):
        keys = jax.random.split(key, 6)
        r, k, kappa, rate, log_w = (jax.random.normal(k, (batch, time, 2, 4), dtype) for k in keys[:5])
        v_BTHV = jax.random.normal(keys[5], (batch, time, 2, 3), dtype)
        kappa /= jnp.linalg.norm(kappa, axis=-1, keepdims=True)
        return r, -0.6 * jax.nn.sigmoid(log_w - 2), 0.5 * k, v_BTHV, -kappa, 0.5 * kappa * jax.nn.sigmoid(rate)

    key_x, key_prefix = jax.random.split(key)
    state = recurrent(*inputs(key_prefix, 32))[1]
    return Example(inputs(key_x, time), {}, {}, state)


def stress(key: jax.Array, batch: int, time: int, dtype=jnp.float32) -> dict[str, Example]:
    """"repeated": one key, which never decays and whose value each token replaces in full; "large": rate 1.9."""
    base = example(key, batch, time, dtype)
    r, log_w, k, v, a, _ = base.xs
    (kappa,) = repeated(a)

    def decayed(log_w):
        return base._replace(xs=(r, log_w, k, v, kappa, -0.9 * kappa))

    replaced = base._replace(xs=(r, 0 * log_w, -kappa, v, kappa, -kappa))
    overshot = base._replace(xs=(r, jnp.full_like(log_w, -0.05), -kappa, v, kappa, -1.9 * kappa))
    return stresses(key, base, log_w.shape, decayed, replaced, overshot)
