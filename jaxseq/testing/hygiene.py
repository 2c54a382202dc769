"""Laws about how a network is built: parameters and their groups, scanned layers, rematerialisation, ragged batches."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.call import Call
from jaxseq.layers import Parameter
from jaxseq.ops._time import PAD
from jaxseq.testing import compare
from jaxseq.testing.check import Check, positions, run
from jaxseq.testing.networks import ModelSubject, NetworkSubject, with_dtype
from jaxseq.testing.subjects import BATCH, PIECE, quick


def parameters(subject: NetworkSubject) -> float:
    """`init` returns only the collection 'params'; each parameter has logical axes and an optimiser group.

    Only matrices have weight decay; norms, biases, other vectors, A_log and D have none.
    Parameters are float32 when the computation is in bfloat16.
    """
    check = Check(subject, "parameters")
    for dtype in (np.float64, *compare.LOW_DTYPES.values()):
        module, case = with_dtype(subject.module, dtype), subject.case(dtype)
        boxed = jax.eval_shape(lambda x, module=module: subject.boxed(module, jax.random.key(0), x), case.part(0, 2)[0])
        if set(boxed) - {"params"}:
            check.fail("init", 2, f"collections {sorted(boxed)} instead of 'params' alone", dtype)
        boxes = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda x: isinstance(x, Parameter))
        for path, box in boxes:
            name = jax.tree_util.keystr(path)
            if not isinstance(box, Parameter):
                check.fail("init", 2, f"{name} was not made by jaxseq.layers.param", dtype)
            check.same(len(box.names), len(box.value.shape), "init", 2, f"{name}: the number of axes", dtype)
            check.same(box.value.dtype, np.promote_types(dtype, np.float32), "init", 2, f"{name}: dtype", dtype)
            own_axes = [axis for axis in box.names if axis != "layers"]
            if box.decay and (len(own_axes) < 2 or name.rpartition("['")[2][:-2] in ("A_log", "D")):
                check.fail("init", 2, f"{name} has weight decay", dtype)
            if not (math.isfinite(box.lr) and box.lr > 0):
                check.fail("init", 2, f"{name}: learning-rate multiplier {box.lr}", dtype)
    return check.largest


def _whole(subject: ModelSubject, module, what):
    """The result of `what(module, params, tokens, state, pos)`, jitted, in float64."""
    case, pos = subject.case(np.float64), positions(subject, PIECE)
    module = with_dtype(module, np.float64)
    function = jax.jit(lambda *arguments: what(module, *arguments, pos), compiler_options=quick())
    return jax.device_get(function(case.weights, case.part(0, PIECE)[0], case.state))


def remat(subject: ModelSubject) -> float:
    """Rematerialisation changes neither outputs nor gradients."""
    check = Check(subject, "remat")

    def values_and_gradients(module, params, tokens, state, pos):
        def loss(params):
            y, _ = module.apply({"params": params}, tokens, state, pos, "chunkwise")
            return (y**2).sum(), y

        return jax.grad(loss, has_aux=True)(params)

    wanted = _whole(subject, subject.module.clone(remat="none"), values_and_gradients)
    for policy in ("full", "dots"):
        got = _whole(subject, subject.module.clone(remat=policy), values_and_gradients)
        check.close(compare.worst(got, wanted), "chunkwise", PIECE, f"remat {policy!r}: outputs and gradients")
    return check.largest


def layers(subject: ModelSubject) -> float:
    """The scan over layers equals applying the layers one by one, each with its parameters and slice of the state."""
    check = Check(subject, "layers")
    case, pos, form = subject.case(np.float64), positions(subject, PIECE), "recurrent"
    module = with_dtype(subject.module, np.float64)
    tokens = case.part(0, PIECE)[0]

    def one_by_one(params, tokens, state):
        x = module.apply({"params": params}, jnp.where(pos >= 0, tokens, 0), pos, method="embed")
        index, after, streams = 0, [], {}
        for i, (block, repeats) in enumerate(zip(module.blocks, module.repeats, strict=True)):
            states, times = [], repeats // module.distinct[i] if module.distinct else 1
            for n in range(repeats):
                own = jax.tree.map(lambda a, n=n // times: a[n], params[f"blocks_{i}"])
                before = jax.tree.map(lambda a, n=n: a[n], state.segments[i])
                call = Call.of(pos, form, layer=index, streams=streams)
                x, s, written = block.clone(name=None).apply({"params": own}, x, before, call)
                streams = streams | written
                states.append(s)
                index += 1
            after.append(jax.tree.map(lambda *s: jnp.stack(s), *states))
        return x, tuple(after)

    x, segments = jax.jit(one_by_one, compiler_options=quick())(case.weights, tokens, case.state)

    def rest(module, x):
        return module.logits(module.final_norm(x))

    logits = module.apply({"params": case.weights}, x, method=rest)
    logits = np.where((pos >= 0)[..., None], logits, 0)
    y, state = run(subject, form, (tokens,), case.state, pos)
    check.close(compare.worst(y, logits), form, PIECE, "logits")
    check.close(compare.worst(state.segments, jax.device_get(segments)), form, PIECE, "states")
    return check.largest


def ragged(subject: ModelSubject) -> float:
    """Padding may be anywhere in `pos`: left and right padding give the same results; next_pos counts only real tokens."""
    check, case = Check(subject, "ragged"), subject.case(np.float64)
    tokens = case.part(0, PIECE)[0]
    real, start = PIECE - 3, subject.next_position
    rows = start + np.arange(PIECE, dtype=np.int32)
    spread = np.array([0, PAD, 1, 2, PAD, PAD, 3], np.int32)
    suffix = np.where(np.arange(PIECE) < real, rows, PAD)
    for pos in (np.roll(suffix, PIECE - real), np.where(spread == PAD, PAD, start + spread)):
        where = np.flatnonzero(pos != PAD)
        packed = np.concatenate([tokens[:, where], tokens[:, pos == PAD]], axis=1)
        for form in subject.forms:
            got = run(subject, form, (tokens,), case.state, np.tile(pos, (BATCH, 1)))
            y, state = run(subject, form, (packed,), case.state, np.tile(suffix, (BATCH, 1)))
            check.close(compare.worst(got[0][:, where], y[:, :real]), form, PIECE, "logits under padding's rearrangement")
            check.zero(got[0][:, pos == PAD], form, PIECE, "logits under PAD and zero")
            check.close(subject.compare_states(got[1], state), form, PIECE, "states")
            check.same(got[1].next_pos_B.tolist(), [start + real] * BATCH, form, PIECE, "next_pos_B")
    _, state = run(subject, "recurrent", case.xs, case.state, positions(subject, subject.whole))
    ends = [int(row[row != PAD][-1]) + 1 if (row != PAD).any() else start for row in positions(subject, subject.whole)]
    check.same(state.next_pos_B.tolist(), ends, "recurrent", subject.whole, "next_pos_B")
    return check.largest
