"""Pallas kernels against the recurrent form, in TPU interpret mode; compiled for TPU chips if libtpu is installed."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu

import jaxseq
from jaxseq import kernels
from jaxseq.kernels._aot import compile_for_tpu
from jaxseq.ops import attention
from jaxseq.train import prepare

default = kernels.forms("attention", "tpu")["pallas"]
flash = functools.partial(default, block_q=16, block_k=16)
BATCH, KEY, VALUE = 2, 8, 6
# In interpret mode the run time is that of the kernel's steps; only compilation can be made faster.
compiled = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


@pytest.fixture(autouse=True)
def simulator():
    with pltpu.force_tpu_interpret_mode():
        yield


def inputs(seed: int, time: int, heads: int = 2, kv_heads: int = 1, dtype=jnp.float32):
    random = np.random.default_rng(seed)
    shapes = (heads, KEY), (kv_heads, KEY), (kv_heads, VALUE)
    return tuple(jnp.asarray(random.normal(size=(BATCH, time, *shape)), dtype) for shape in shapes)


def state_after(time: int, context: int, window: int | None, kv_heads: int = 1, dtype=jnp.float32):
    empty = attention.init_state(BATCH, context, kv_heads, KEY, VALUE, dtype)
    run = compiled(functools.partial(attention.recurrent, window=window))
    return run(*inputs(1, time, kv_heads, kv_heads, dtype), state=empty)[1]


def positions(time: int, padding: int = 0):
    """A row that continues a document, then starts two, the first with one token; a row that continues a document and is
    padded."""
    pos_BT = np.tile(np.arange(3, time + 3), (BATCH, 1))
    pos_BT[0, time // 2 :] = np.arange(time - time // 2)
    pos_BT[0, time // 2 - 1] = 0
    pos_BT[1, time - padding :] = -1
    return jnp.asarray(pos_BT, jnp.int32)


def error(got, want) -> float:
    """The largest difference relative to the largest value, over all arrays of a tree."""
    got, want = (jax.tree.map(lambda x: np.asarray(x, np.float64), tree) for tree in (got, want))
    return max(jax.tree.leaves(jax.tree.map(lambda g, w: np.max(np.abs(g - w)) / max(np.max(np.abs(w)), 1), got, want)))


def with_gradients(form, xs, state, pos, **options):
    """(y, state) and the gradient of random sums of both, with respect to the inputs and the arrays of the state."""

    def loss(xs, kv):
        before = None if state is None else attention.AttentionState(*kv, state.count_B)
        y, after = form(*xs, state=before, pos=pos, **options)
        weights = (np.random.default_rng(9).normal(size=x.shape).astype(x.dtype) for x in (y, *after[:2]))
        return sum(jnp.sum(x * w) for x, w in zip((y, *after[:2]), weights, strict=True)), (y, after)

    kv = () if state is None else state[:2]
    gradients, results = jax.grad(loss, argnums=(0, 1), has_aux=True)(xs, kv)
    return results, gradients


@pytest.mark.parametrize(
    ("time", "heads", "prefix", "context", "window", "block_k"),
    [(37, (4, 2), 11, 50, None, 32), (50, (2, 1), 9, 5, 5, 16), (40, (2, 1), None, None, 6, 16)],
    ids=["context", "window", "window, no state"],
)
def test_attention_agrees_with_the_recurrent_form(time, heads, prefix, context, window, block_k):
    xs, pos = inputs(0, time, *heads), positions(time, padding=7)
    state = None if prefix is None else state_after(prefix, context, window, heads[1])
    form = functools.partial(default, block_q=16, block_k=block_k)
    got, want = (
        compiled(functools.partial(with_gradients, f, window=window))(xs, state, pos) for f in (form, attention.recurrent)
    )
    assert error(got, want) < 3e-6


def test_attention_is_one_form_among_others():
    """For any split of the sequence and any form of each segment, also with default blocks: the same outputs and final state."""
    window, time = 9, 45
    xs, state, pos = inputs(0, time), state_after(13, window, window), positions(time)
    want = compiled(functools.partial(attention.recurrent, window=window))(*xs, state=state, pos=pos)
    plan = (8, attention.recurrent), (20, flash), (0, flash), (16, default), (1, flash)
    ys, start = [], 0
    for length, form in plan:
        piece = slice(start, start + length)
        y, state = compiled(functools.partial(form, window=window))(*(x[:, piece] for x in xs), state=state, pos=pos[:, piece])
        ys.append(y)
        start += length
    assert start == time
    assert error((jnp.concatenate(ys, axis=1), state), want) < 3e-6


def test_garbage_under_padding_does_not_leak():
    """Also not into a row of padding only."""
    time = 20
    xs, pos = inputs(0, time), positions(time, padding=time)
    dirty = tuple(jnp.where((pos < 0)[:, :, None, None], jnp.nan, x) for x in xs)
    got = compiled(functools.partial(with_gradients, flash))(dirty, None, pos)
    assert error(got, compiled(functools.partial(with_gradients, attention.recurrent))(xs, None, pos)) < 3e-6
    assert all(bool(jnp.all(x[pos < 0] == 0)) for x in (got[0][0], *got[1][0]))


def test_bfloat16_differs_by_its_rounding():
    time, window = 30, 12
    xs, state, pos = inputs(0, time, dtype=jnp.bfloat16), state_after(15, window, window, dtype=jnp.bfloat16), positions(time)
    got = compiled(functools.partial(with_gradients, flash, window=window))(xs, state, pos)
    wide_xs, wide_kv = jax.tree.map(lambda x: x.astype(jnp.float32), (xs, state[:2]))
    wide_state = attention.AttentionState(*wide_kv, state.count_B)
    want = compiled(functools.partial(with_gradients, attention.recurrent, window=window))(wide_xs, wide_state, pos)
    assert {x.dtype.name for x in jax.tree.leaves((got[0][0], got[0][1][:2], got[1]))} == {"bfloat16"}
    assert error(got, want) < 2**-6


def test_kernels_are_opt_in():
    assert "pallas" not in attention.FORMS
    assert kernels.forms("attention", "cpu") == {}
    check = "import sys, jaxseq.ops.attention; sys.exit('jax.experimental.pallas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize(
    ("time", "size", "window", "dtype"),
    [(2048, 128, None, jnp.bfloat16), (2048, 64, None, jnp.float32), (8192, 128, 1024, jnp.bfloat16)],
    ids=["bfloat16", "float32", "window"],
)
def test_attention_compiles_for_eight_v5e_chips(time, size, window, dtype):
    pytest.importorskip("libtpu", reason="libtpu is the compiler: pip install libtpu")
    batch, heads, kv_heads, slots = 8, 8, 2, window or time

    def array(length, count):
        return jax.ShapeDtypeStruct((batch, length, count, size), dtype)

    def forward_and_backward(q, k, v, old_k, old_v, count_B, pos, dy):
        def run(q, k, v, old_k, old_v):
            return default(q, k, v, state=attention.AttentionState(old_k, old_v, count_B), pos=pos, window=window)

        y, vjp, state = jax.vjp(run, q, k, v, old_k, old_v, has_aux=True)
        return y, state, vjp(dy)

    arguments = array(time, heads), *(array(length, kv_heads) for length in (time, time, slots, slots))
    integers = jax.ShapeDtypeStruct((batch,), jnp.int32), jax.ShapeDtypeStruct((batch, time), jnp.int32)
    with pltpu.force_tpu_interpret_mode(None):
        program = compile_for_tpu(forward_and_backward, *arguments, *integers, array(time, heads))
    assert program.as_text().count('custom_call_target="tpu_custom_call"') == 3  # forward, dq, dk and dv
    scores = heads * time * (slots + time) * 4  # bytes of an array of all scores, which must not exist
    assert program.memory_analysis().temp_size_in_bytes < scores / 4


@pytest.mark.parametrize("sizes", ({"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}), ids=["data", "tensor"])
def test_a_training_step_with_the_kernel_compiles_for_eight_v5e_chips(sizes):
    """The form is chosen by the config for the chips of the mesh, although the default backend is another."""
    pytest.importorskip("libtpu", reason="libtpu is the compiler: pip install libtpu")
    fields = {"model.stack": "2*(attention swiglu)", "model.width": 256, "model.dtype": "bfloat16"}
    training = {"train.form": "attention=pallas,*=chunkwise", "train.batch": 8, "train.length": 256}
    config = jaxseq.config("transformer", **fields, **training, **{f"mesh.{axis}": n for axis, n in sizes.items()})
    devices = topologies.get_topology_desc("v5e:2x4", platform="tpu").devices
    with pltpu.force_tpu_interpret_mode(None), jax.default_matmul_precision("default"):
        program = prepare(config, devices).compile()
    assert program.as_text().count('custom_call_target="tpu_custom_call"') == 3
