"""WKV of RWKV-4: a weighted mean of the past whose weights decay exponentially (Peng et al. 2023, arXiv:2305.13048, eq. 16).

    y_t = (sum_{i<t} e^{(t-1-i) w + k_i} v_i + e^{u + k_t} v_t) / (the same without v)

`w_D < 0` is the log-decay of a channel; `u_D` is a bonus for the current token alone and never enters the state. State:
numerator p and denominator q, both scaled by e^-o with o the running maximum of their exponents (appendix D), in the
accumulation dtype. (p, q, o) and (p e^-c, q e^-c, o + c) represent the same state: compare states by `canonical`.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxseq.ops import _time
from jaxseq.ops._example import Example, stresses

EMPTY = -1e30  # exponent of the empty state: finite, so that EMPTY - EMPTY is not NaN


class WKV4State(NamedTuple):
    """Numerator p and denominator q, scaled by e^-o, all [B, D], in the accumulation dtype."""

    p_BD: jax.Array  # sum of e^{k - o} v, decayed
    q_BD: jax.Array  # sum of e^{k - o}, decayed
    o_BD: jax.Array  # common exponent, factored out of p and q

    def canonical(self) -> "WKV4State":
        """The equivalent state with q = 1; the empty state is unchanged."""
        some_BD = self.q_BD > 0
        q_BD = jnp.where(some_BD, self.q_BD, 1)
        return WKV4State(self.p_BD / q_BD, jnp.where(some_BD, 1, 0.0), jnp.where(some_BD, self.o_BD + jnp.log(q_BD), EMPTY))


class Summary(NamedTuple):
    """Effect of a segment on the incoming state: decay it by e^log_A, or reset it, then add (p, q, o)."""

    log_A_BD: jax.Array
    forget_BD: jax.Array  # bool: a document starts in the segment
    p_BD: jax.Array
    q_BD: jax.Array
    o_BD: jax.Array


def init_state(batch: int, width: int, dtype: DTypeLike = jnp.float32) -> WKV4State:
    """The empty state, in the accumulation dtype for inputs of `dtype`."""
    zeros_BD = jnp.zeros((batch, width), _time.accumulation_dtype(jnp.zeros((), dtype)))
    return WKV4State(zeros_BD, zeros_BD, zeros_BD + EMPTY)


canonical = WKV4State.canonical


def _prepare(k_BTD, v_BTD, w_D, u_D, state, pos):
    chex.assert_rank([k_BTD, v_BTD], 3)
    chex.assert_equal_shape([k_BTD, v_BTD])
    chex.assert_shape([w_D, u_D], k_BTD.shape[2:])
    pos_BT = _time.positions(pos, k_BTD)
    chex.assert_shape(pos_BT, k_BTD.shape[:2])
    acc = _time.accumulation_dtype(k_BTD, v_BTD)
    state = init_state(k_BTD.shape[0], k_BTD.shape[2], acc) if state is None else state
    chex.assert_shape(list(state), (k_BTD.shape[0], k_BTD.shape[2]))
    return acc, w_D.astype(acc), u_D.astype(acc), pos_BT, state


def _add(p1, q1, o1, p2, q2, o2):
    """Sum of two scaled pairs (p, q), scaled by the larger of their exponents."""
    o = jax.lax.stop_gradient(jnp.maximum(o1, o2))  # p / q does not depend on o
    a, b = jnp.exp(o1 - o), jnp.exp(o2 - o)
    return a * p1 + b * p2, a * q1 + b * q2, o


def _read(state: WKV4State, k, v, u):
    """y_t from the state before the token."""
    p, q, _ = _add(state.p_BD, state.q_BD, state.o_BD, v, jnp.ones_like(v), u + k)
    return p / q


def recurrent(
    k_BTD: jax.Array, v_BTD: jax.Array, *, w_D: jax.Array, u_D: jax.Array, state: WKV4State | None = None,
    pos: jax.Array | None = None,
) -> tuple[jax.Array, WKV4State]:  # fmt: skip
    """One token after another (appendix D)."""
    acc, w_D, u_D, pos_BT, state = _prepare(k_BTD, v_BTD, w_D, u_D, state, pos)

    def step(state, k_BD, v_BD):
        dtype, k_BD, v_BD = v_BD.dtype, k_BD.astype(acc), v_BD.astype(acc)
        after = _add(state.p_BD, state.q_BD, state.o_BD + w_D, v_BD, jnp.ones_like(v_BD), k_BD)
        return WKV4State(*after), _read(state, k_BD, v_BD, u_D).astype(dtype)

    empty = init_state(k_BTD.shape[0], k_BTD.shape[2], acc)
    return _time.scan_time(step, state, (k_BTD, v_BTD), pos_BT, empty=empty)


def combine(first: Summary, second: Summary) -> Summary:
    """The summary of two segments, one after the other; associative."""
    o1 = jnp.where(second.forget_BD, EMPTY, first.o_BD + second.log_A_BD)
    p, q, o = _add(first.p_BD, first.q_BD, o1, second.p_BD, second.q_BD, second.o_BD)
    return Summary(first.log_A_BD + second.log_A_BD, first.forget_BD | second.forget_BD, p, q, o)


def apply(summary: Summary, state: WKV4State) -> WKV4State:
    """The state after a segment with this summary, for the state before it."""
    nothing = jnp.zeros_like(state.p_BD)
    whole = combine(Summary(nothing, nothing.astype(bool), *state), summary)
    return WKV4State(whole.p_BD, whole.q_BD, whole.o_BD)


def _scan(k_BTD, v_BTD, w_D, pos_BT, acc) -> Summary:
    """Summaries of every prefix, [B, T, D] each, by an associative scan over (decay, max, numerator, denominator)."""
    real_BTD = jnp.broadcast_to(_time.valid(pos_BT)[..., None], k_BTD.shape)
    tokens = Summary(
        log_A_BD=jnp.where(real_BTD, w_D, 0),
        forget_BD=jnp.broadcast_to((pos_BT == _time.START)[..., None], k_BTD.shape),
        p_BD=jnp.where(real_BTD, v_BTD.astype(acc), 0),
        q_BD=real_BTD.astype(acc),
        o_BD=jnp.where(real_BTD, k_BTD.astype(acc), EMPTY),
    )
    return jax.lax.associative_scan(combine, tokens, axis=1)


def summary(k_BTD: jax.Array, v_BTD: jax.Array, *, w_D: jax.Array, u_D: jax.Array, pos: jax.Array | None = None) -> Summary:
    """The `Summary` of the segment. T >= 1."""
    acc, w_D, _, pos_BT, _ = _prepare(k_BTD, v_BTD, w_D, u_D, None, pos)
    k_BTD, v_BTD = _time.clean(pos_BT, k_BTD, v_BTD)
    return jax.tree.map(lambda x: x[:, -1], _scan(k_BTD, v_BTD, w_D, pos_BT, acc))


def parallel(
    k_BTD: jax.Array, v_BTD: jax.Array, *, w_D: jax.Array, u_D: jax.Array, state: WKV4State | None = None,
    pos: jax.Array | None = None,
) -> tuple[jax.Array, WKV4State]:  # fmt: skip
    """An associative scan over time; memory linear in T."""
    acc, w_D, u_D, pos_BT, state = _prepare(k_BTD, v_BTD, w_D, u_D, state, pos)
    if k_BTD.shape[1] == 0:
        return v_BTD, state
    k_BTD, v_BTD = _time.clean(pos_BT, k_BTD, v_BTD)
    prefix = _scan(k_BTD, v_BTD, w_D, pos_BT, acc)
    at = jax.tree.map(lambda s: s[:, None], state)
    after = apply(prefix, WKV4State(*(jnp.broadcast_to(s, k_BTD.shape) for s in at)))
    before = jax.tree.map(lambda s, a: jnp.concatenate([s, a[:, :-1]], axis=1), at, after)
    start_BT1 = (pos_BT == _time.START)[..., None]
    empty = (0, 0, EMPTY)
    before = WKV4State(*(jnp.where(start_BT1, e, b) for e, b in zip(empty, before, strict=True)))
    y_BTD = _read(before, k_BTD.astype(acc), v_BTD.astype(acc), u_D)
    y_BTD = _time.select(_time.valid(pos_BT), y_BTD).astype(v_BTD.dtype)
    return y_BTD, jax.tree.map(lambda a: a[:, -1], after)


def chunkwise(
    k_BTD: jax.Array, v_BTD: jax.Array, *, w_D: jax.Array, u_D: jax.Array, state: WKV4State | None = None,
    pos: jax.Array | None = None, chunk: int = 64,
) -> tuple[jax.Array, WKV4State]:  # fmt: skip
    """An associative scan inside each chunk; the state is carried from chunk to chunk."""
    _, _, _, pos_BT, state = _prepare(k_BTD, v_BTD, w_D, u_D, state, pos)
    if k_BTD.shape[1] == 0:
        return v_BTD, state

    def form(*xs, state, pos):
        return parallel(*xs, w_D=w_D, u_D=u_D, state=state, pos=pos)

    return _time.scan_chunks(form, state, (k_BTD, v_BTD), pos_BT, chunk)


FORMS = {"recurrent": recurrent, "parallel": parallel, "chunkwise": chunkwise}
CUT = "affine"


def example(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> Example:
    """Random inputs, weights and state, see `jaxseq.ops.Example`."""
    def inputs(key, time):
        return tuple(jax.random.normal(k, (batch, time, 5), dtype) for k in jax.random.split(key))

    key_x, key_prefix, key_u = jax.random.split(key, 3)
    weights = {"w_D": -jnp.exp(jnp.linspace(-4, 0, 5, dtype=dtype)), "u_D": jax.random.normal(key_u, (5,), dtype)}
    state = recurrent(*inputs(key_prefix, 32), **weights)[1]
    return Example(inputs(key_x, time), weights, {}, state)


def stress(key: jax.Array, batch: int, time: int, dtype: DTypeLike = jnp.float32) -> dict[str, Example]:
    """The hard inputs by name, see `jaxseq.ops.stresses`."""
    base = example(key, batch, time, dtype)
    k_BTD, v_BTD = base.xs
    large = base._replace(xs=(30 * k_BTD, v_BTD), weights=jax.tree.map(lambda w: 8 * w, base.weights))

    def decayed(w_D):
        return base._replace(weights=base.weights | {"w_D": w_D})

    return stresses(key, base, k_BTD.shape[2:], decayed, large=large)
