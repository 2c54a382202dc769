"""Laws about the structure of an op: its loops, its summaries, its example."""

import jax
import numpy as np

from jaxseq.testing import compare
from jaxseq.testing.check import Check, positions, run
from jaxseq.testing.loops import longest_loop
from jaxseq.testing.subjects import BATCH, CHUNK, PIECE, OpSubject

LONG = 1024  # T at which loops are counted; nothing of this length is compiled
SHARE = 0.3  # of the output's norm that the example's state must carry at T = PIECE


def loops(subject: OpSubject) -> float:
    """The parallel form has no loop of T steps; the loops of the chunkwise form take one step per chunk.

    A step may contain loops of bounded length (iterations of a solver) if that length does not depend on the chunk size.
    """
    check, case = Check(subject, "loops"), subject.case(np.float64)

    def longest(form, time, chunk=CHUNK):
        xs = tuple(jax.ShapeDtypeStruct((BATCH, time, *x.shape[2:]), x.dtype) for x in case.xs)
        pos, function = jax.ShapeDtypeStruct((BATCH, time), np.int32), subject.op.FORMS[form]
        options = subject.options_of(function, subject.options)
        options |= {"chunk": chunk} if "chunk" in options else {}
        return longest_loop(lambda xs, pos: function(*xs, state=case.state, pos=pos, **case.weights, **options), xs, pos)

    if "parallel" in subject.forms and (steps := longest("parallel", LONG)) >= LONG:
        check.fail("parallel", LONG, f"a loop of {steps:.0f} steps")
    if "chunkwise" in subject.forms:
        inside, longer = longest("chunkwise", CHUNK), longest("chunkwise", 2 * CHUNK, 2 * CHUNK)
        if longer > inside:
            check.fail("chunkwise", CHUNK, f"a loop of {inside:.0f} steps in a chunk, of {longer:.0f} in one twice as long")
        more = longest("chunkwise", 2 * LONG) - longest("chunkwise", LONG)
        if not more <= LONG / CHUNK * max(inside, 1):  # `not <=` also fails for NaN, the difference of two unbounded loops
            check.fail("chunkwise", LONG, f"{more:.0f} more steps for {LONG} more tokens in chunks of {CHUNK}")
    return 0.0


def summary(subject: OpSubject) -> float:
    """apply(summary(x), s) equals the state after recurrent(x, s); combine joins the summaries of two segments, associatively."""
    check, case, op = Check(subject, "summary"), subject.case(np.float64), subject.op
    if not hasattr(op, "summary"):
        for name in ("combine", "apply"):
            if hasattr(op, name):
                check.fail("summary", 0, f"the op has {name} and no summary")
        return 0.0
    pos = positions(subject, 3 * PIECE)

    def segment(start, stop):
        return subject.summary(case.part(start, stop), case.weights, pos[:, start:stop])

    first, second, third = (segment(i * PIECE, (i + 1) * PIECE) for i in range(3))
    state = case.state
    for i, piece in enumerate((first, second, third)):
        part = slice(i * PIECE, (i + 1) * PIECE)
        wanted = run(subject, "recurrent", case.part(part.start, part.stop), state, pos[:, part])[1]
        state = jax.device_get(op.apply(piece, state))
        check.close(subject.compare_states(state, wanted), "summary", PIECE, "applied summaries and states")
    left, right = (op.combine(op.combine(first, second), third), op.combine(first, op.combine(second, third)))
    check.close(compare.worst(left, right), "summary", PIECE, "the two orders of combine")
    whole = segment(0, 3 * PIECE)
    check.same(compare.spec(left), compare.spec(whole), "summary", 3 * PIECE, "the spec of combined summaries")
    check.close(compare.worst(left, whole), "summary", 3 * PIECE, "combined summaries and the whole's")
    check.close(
        subject.compare_states(jax.device_get(op.apply(left, case.state)), state), "summary", 3 * PIECE, "states"
    )
    return check.largest


def example(subject: OpSubject) -> float:
    """At least SHARE of the example's output comes from its state, so that the laws detect a form that ignores the state."""
    check, case = Check(subject, "example"), subject.case(np.float64)
    pos = np.broadcast_to(subject.next_position + np.arange(PIECE, dtype=np.int32), (BATCH, PIECE))
    y = run(subject, "recurrent", case.part(0, PIECE), case.state, pos)[0]
    without = run(subject, "recurrent", case.part(0, PIECE), case.empty, pos)[0]
    share = float(np.linalg.norm(y - without) / np.linalg.norm(y))
    if not share >= SHARE:
        check.fail("recurrent", PIECE, f"the state carries {share:.0%} of the output; it must be at least {SHARE:.0%}")
    return 0.0
