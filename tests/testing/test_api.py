"""`check_laws` on an external op: a running sum whose state is defined only up to a factor, the gauge."""

import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from jaxseq import testing
from jaxseq.errors import UserError
from jaxseq.ops import _time
from jaxseq.ops._example import Example


class SumState(NamedTuple):
    h_BD: jax.Array
    gauge_BD: jax.Array  # the sum is h * gauge; each form may choose another gauge


def recurrent(x_BTD, *, state=None, pos=None):
    acc = _time.accumulation_dtype(x_BTD)
    if state is None:
        zeros_BD = jnp.zeros((x_BTD.shape[0], x_BTD.shape[2]), acc)
        state = SumState(zeros_BD, zeros_BD)

    def step(state, x_BD):
        sum_BD = state.h_BD * state.gauge_BD + x_BD.astype(acc)
        return SumState(sum_BD, jnp.ones_like(sum_BD)), sum_BD.astype(x_BD.dtype)

    return _time.scan_time(step, state, (x_BTD,), _time.positions(pos, x_BTD))


def parallel(x_BTD, *, state=None, pos=None):
    if state is None:
        state = recurrent(x_BTD[:, :0])[1]
    if x_BTD.shape[1] == 0:
        return x_BTD, state
    pos_BT = _time.positions(pos, x_BTD)
    (clean_BTD,) = _time.clean(pos_BT, x_BTD)
    same_BTS = _time.segments(pos_BT)[:, :, None] == _time.segments(pos_BT)[:, None]
    mask_BTS = same_BTS & jnp.tril(jnp.ones(same_BTS.shape[1:], bool))
    before_BD = state.h_BD * state.gauge_BD
    y_BTD = jnp.einsum("bts,bsd->btd", mask_BTS.astype(before_BD.dtype), clean_BTD.astype(before_BD.dtype))
    y_BTD += _time.select(_time.segments(pos_BT) == 0, jnp.broadcast_to(before_BD[:, None], y_BTD.shape))
    after = SumState(y_BTD[:, -1] / 2, jnp.full_like(before_BD, 2))
    return _time.select(_time.valid(pos_BT), y_BTD).astype(x_BTD.dtype), after


def example(key, batch, time, dtype):
    key_x, key_state = jax.random.split(key)
    prefix = jax.random.normal(key_state, (batch, 20, 3), dtype) + 1
    return Example((jax.random.normal(key_x, (batch, time, 3), dtype),), {}, {}, recurrent(prefix)[1])


def op(**changes):
    parts = {"FORMS": {"recurrent": recurrent, "parallel": parallel}, "example": example}
    canonical = lambda state: state.h_BD * state.gauge_BD  # noqa: E731
    return types.SimpleNamespace(**(parts | {"canonical": canonical} | changes), __name__="running_sum")


def test_own_op_passes_and_the_table_shows_every_law():
    reports = testing.check_laws(op())
    assert set(reports["running_sum"]) == set(testing.LAWS["op"])
    table = testing.laws_table(reports)
    assert "MISSING" not in table and all(law in table for law in testing.LAWS["op"])
    assert not jax.config.jax_enable_x64


def test_message_names_law_form_length_dtype_and_size():
    late = lambda x_BTD, *, state=None, pos=None: parallel(x_BTD, state=None, pos=pos)  # noqa: E731
    with pytest.raises(AssertionError) as caught:
        testing.check_laws(op(FORMS={"recurrent": recurrent, "parallel": late}))
    for part in ("running_sum", "'split'", "33:parallel", "T=33", "float64", "outputs differ by"):
        assert part in str(caught.value)


def test_gauge_without_canonical_is_refused():
    with pytest.raises(testing.LawBroken, match="states differ"):
        testing.check_laws(op(canonical=lambda state: state))


def test_table_marks_missing_and_broken_cells():
    laws = dict.fromkeys(testing.LAWS["op"], 0.0)
    del laws["reset"]
    table = testing.laws_table({"one": laws | {"split": float("nan")}})
    assert "MISSING" not in table  # `reset` was not run, so it has no column
    table = testing.laws_table({"one": laws | {"split": float("nan")}, "two": dict.fromkeys(testing.LAWS["op"], 1e-12)})
    assert table.count("MISSING") == 1 and table.count("BROKEN") == 1 and "1e-12" in table


def test_an_op_and_an_architecture_are_known_by_name():
    assert [s.kind for s in testing.subjects("short_conv")] == ["op"] * len(testing.subjects("short_conv"))
    (retnet,) = testing.subjects("retnet")
    assert (retnet.kind, retnet.name) == ("model", "retnet")
    names = [(s.kind, s.name) for s in testing.subjects("gru")]  # an op and an architecture
    assert {kind for kind, _ in names} == {"op", "model"} and len(set(names)) == len({name for _, name in names})
    with pytest.raises(UserError, match="no op and no architecture 'retnett'"):
        testing.check_laws("retnett")


def test_what_an_op_raises_itself_is_told_with_law_form_and_length():
    def broken(x_BTD, *, state=None, pos=None):
        if x_BTD.shape[1] > 1:
            raise TypeError("of its own")
        return recurrent(x_BTD, state=state, pos=pos)

    with pytest.raises(TypeError, match="of its own") as raised:
        testing.check_laws(op(FORMS={"recurrent": recurrent, "parallel": broken}))
    told = " ".join(raised.value.__notes__)
    assert "form 'parallel', T=" in told and "checking running_sum for the law 'split'" in told


def test_a_row_of_several_kinds_of_columns_misses_what_is_left_out_of_each():
    kinds = {"quick": ("one", "two"), "slow": ("three", "four")}
    rows = {"whole": dict.fromkeys(("one", "two", "three", "four"), 0.0), "part": {"one": 0.0, "two": 0.0, "three": 0.0}}
    assert testing.laws_table(rows, kinds).count("MISSING") == 1
    assert "MISSING" not in testing.laws_table(rows | {"part": {"one": 0.0, "two": 0.0}}, kinds)
