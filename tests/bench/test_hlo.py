"""Costs counted in HLO text: trips of loops, slices, collectives."""

import jax
import jax.numpy as jnp
import pytest

from jaxseq.bench import hlo

# As XLA writes it for TPUs: the trips of the loop are in its condition, S(1) is on-chip memory, groups are axes of a mesh.
TPU = """HloModule jit_step, is_scheduled=true

%fused (param_0.1: f32[8,4,100], param_1.2: s32[]) -> f32[4,100] {
  %param_0.1 = f32[8,4,100]{2,1,0:T(8,128)} parameter(0)
  %param_1.2 = s32[]{:T(128)} parameter(1)
  %constant.1 = s32[]{:T(128)} constant(0)
  %slice.1 = f32[1,4,100]{2,1,0:T(8,128)} dynamic-slice(%param_0.1, %param_1.2, %constant.1, /*index=3*/%constant.1)
  ROOT %bitcast.1 = f32[4,100]{1,0:T(8,128)} bitcast(%slice.1)
}

%body (arg: (s32[], f32[8,4,100])) -> (s32[], f32[8,4,100]) {
  %arg = (s32[]{:T(128)}, f32[8,4,100]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %stack = f32[8,4,100]{2,1,0:T(8,128)} get-tuple-element(%arg), index=1
  %fusion.1 = f32[4,100]{1,0:T(8,128)S(1)} fusion(%stack, %i), kind=kLoop, calls=%fused
  %all-reduce.1 = f32[4,100]{1,0:T(8,128)S(1)} all-reduce(%fusion.1), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[8,4,100]{2,1,0:T(8,128)}) tuple(%i, %stack)
}

%condition (arg.1: (s32[], f32[8,4,100])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(8)
  %arg.1 = (s32[]{:T(128)}, f32[8,4,100]{2,1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %constant.5), direction=LT
}

ENTRY %main (p: f32[8,4,100]) -> f32[8,4,100] {
  %p = f32[8,4,100]{2,1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %tuple.2 = (s32[]{:T(128)}, f32[8,4,100]{2,1,0:T(8,128)}) tuple(%zero, %p)
  %while.1 = (s32[]{:T(128)}, f32[8,4,100]{2,1,0:T(8,128)}) while(%tuple.2), condition=%condition, body=%body
  ROOT %out = f32[8,4,100]{2,1,0:T(8,128)} get-tuple-element(%while.1), index=1
}
"""


def test_a_loop_counts_as_often_as_it_runs_and_a_sliced_stack_is_read_once():
    found = hlo.costs(TPU)
    assert found.bytes == 8 * 4 * 100 * 4 + 8 * 4  # the stack once, and the counter; the slices stay on the chip
    assert found.collectives == {"all-reduce": (8, 8 * 2 * (4 * 100 * 4) * 3 / 4)} and found.unknown == 0


def test_a_loop_of_unknown_length_is_told():
    found = hlo.costs(TPU.replace("compare(%i.1, %constant.5)", "compare(%i.1, %i.1)").replace("constant(8)", "constant(a)"))
    assert found.unknown == 1 and found.collectives["all-reduce"][0] == 1


@pytest.mark.parametrize(
    ("line", "group"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, x", 4),
        ("replica_groups=[2,4]<=[8], x", 4),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}, x", 4),
        ("no groups", 1),
    ],
)
def test_groups_in_each_way_of_writing(line, group):
    assert hlo._group(line) == group


def test_a_scan_reads_each_slice_of_its_input_once():
    """Compiled here: traffic grows with the length as the input does, not with its square."""

    def run(xs):
        return jax.lax.scan(lambda carry, x: (jnp.tanh(carry @ x), carry.sum()), jnp.ones((64, 64)), xs)

    found = {n: hlo.costs(jax.jit(run).lower(jnp.ones((n, 64, 64))).compile().as_text()) for n in (8, 64)}
    assert all(cost.unknown == 0 for cost in found.values())
    assert found[64].bytes == pytest.approx(8 * found[8].bytes, rel=0.1)
    assert found[64].bytes >= 2 * 64 * 64 * 64 * 4
