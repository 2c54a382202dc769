"""The stream laws: splitting, packing or padding a sequence, and the form used for each segment, do not change the result.

    run(x1 ++ x2, s) == let (y1, s1) = run(x1, s); (y2, s2) = run(x2, s1) in (y1 ++ y2, s2)
    run([], s)       == ([], s)

Everything is compared in float64 with the `recurrent` form. A law is a function of a subject; it returns the largest error
found, or raises LawBroken. No op is exempt, and tolerances depend only on the dtype (compare.py).
"""

import numpy as np

from jaxseq.ops._time import PAD
from jaxseq.testing import compare
from jaxseq.testing.check import Check, garbage, positions, run
from jaxseq.testing.subjects import BATCH, PIECE, Subject

PLANS = 6  # number of random splits of a sequence, in addition to the whole sequence in each form


def _plans(forms: tuple[str, ...], whole: int, seed: int = 0):
    """Lists of (length, form) whose lengths are 1, PIECE or `whole` and sum to `whole`."""
    rng = np.random.default_rng(seed)
    yield from ([(whole, form)] for form in forms)
    pieces = [PIECE] * (whole // PIECE) + [1] * (whole % PIECE)
    for _ in range(PLANS):
        yield [(int(n), str(rng.choice(forms))) for n in rng.permutation(pieces)]


def split(subject: Subject) -> float:
    """Outputs and final state do not depend on how the sequence is split, nor on the form used for each segment."""
    check, case, pos = Check(subject, "split"), subject.case(np.float64), positions(subject, subject.whole)
    wanted = run(subject, "recurrent", case.xs, case.state, pos)
    for plan in _plans(subject.forms, subject.whole):
        state, ys, start = case.state, [], 0
        for length, form in plan:
            stop = start + length
            y, state = run(subject, form, case.part(start, stop), state, pos[:, start:stop])
            ys.append(y)
            start = stop
        got = np.concatenate(ys, axis=1), state
        check.result(got, wanted, " ".join(f"{n}:{form}" for n, form in plan), subject.whole)
    return check.largest


def unit(subject: Subject) -> float:
    """T = 0 gives an empty output, with the usual shape and dtype, and returns the state bit for bit."""
    check, case = Check(subject, "unit"), subject.case(np.float64)
    for form in subject.forms:
        like = run(subject, "recurrent", case.part(0, 1), case.state, positions(subject, 1))[0]
        y, state = run(subject, form, case.part(0, 0), case.state, positions(subject, 0))
        check.same((y.shape, y.dtype), ((BATCH, 0, *like.shape[2:]), like.dtype), form, 0, "the output's shape")
        check.same(compare.spec(state), compare.spec(case.state), form, 0, "the state's spec")
        check.close(compare.worst(state, case.state), form, 0, "states", allowed=0.0)
    return check.largest


def none(subject: Subject) -> float:
    """state=None equals the empty state, which a padded row returns; pos=None means no document start and no padding."""
    check, case, pos = Check(subject, "none"), subject.case(np.float64), positions(subject, PIECE)
    xs = case.part(0, PIECE)
    document = np.broadcast_to(np.arange(PIECE, dtype=np.int32), pos.shape)
    padded, ongoing = np.full_like(pos, PAD), subject.next_position + document
    empty = run(subject, "recurrent", xs, None, padded)[1]
    for form in subject.forms:
        wanted = run(subject, "recurrent", xs, empty, pos)
        check.result(run(subject, form, xs, None, pos), wanted, form, PIECE, "state=None: ")
        wanted = run(subject, "recurrent", xs, case.empty, pos)[0]
        check.close(compare.worst(run(subject, form, xs, None, pos)[0], wanted), form, PIECE, "state=None: outputs")
        state = run(subject, form, xs, None, padded)[1]
        check.close(subject.compare_states(state, empty), form, PIECE, "empty states", allowed=0.0)
        if form in subject.forms_without_pos:
            wanted = run(subject, "recurrent", xs, case.state, ongoing)
            check.result(run(subject, form, xs, case.state, None), wanted, form, PIECE, "pos=None: ")
            wanted = run(subject, "recurrent", xs, case.state, document)[0]
            found = compare.worst(run(subject, form, xs, None, None)[0], wanted)
            check.close(found, form, PIECE, "state=None, pos=None: outputs")
    return check.largest


def reset(subject: Subject) -> float:
    """Documents packed into a row, followed by NaN at padding, give the same results as the documents one by one."""
    check, case, count = Check(subject, "reset"), subject.case(np.float64), subject.whole // PIECE
    document = np.arange(PIECE, dtype=np.int32)
    row = np.concatenate([subject.next_position + document, *[document] * (count - 1)])
    alone = []
    for i in range(count):
        part = slice(i * PIECE, (i + 1) * PIECE)
        state, pos = case.empty if i else case.state, np.tile(row[part], (BATCH, 1))
        alone.append(run(subject, "recurrent", case.part(part.start, part.stop), state, pos))
    y = np.concatenate([y for y, _ in alone], axis=1)
    y = np.pad(y, ((0, 0), (0, subject.whole - len(row))) + ((0, 0),) * (y.ndim - 2))
    pos = np.tile(np.pad(row, (0, subject.whole - len(row)), constant_values=PAD), (BATCH, 1))

    pos[0, len(row) - PIECE :], y[0, len(row) - PIECE :] = PAD, 0  # one row has one document fewer
    xs = tuple(garbage(x, pos) for x in case.xs)
    for form in subject.forms:
        got_y, got = run(subject, form, xs, case.state, pos)
        check.close(compare.worst(got_y, y), form, subject.whole, "outputs")
        for rows, last in ((slice(0, 1), alone[-2]), (slice(1, None), alone[-1])):
            found = subject.compare_states(subject.rows(got, rows), subject.rows(last[1], rows))
            check.close(found, form, subject.whole, "states")
    return check.largest


def padding(subject: Subject) -> float:
    """At PAD the output is zero and the state is unchanged; inputs there, NaN included, have no effect."""
    check, case, pos = Check(subject, "padding"), subject.case(np.float64), positions(subject, subject.whole)
    xs = tuple(garbage(x, pos) for x in case.xs)
    for form in subject.forms:
        y, state = got = run(subject, form, xs, case.state, pos)
        check.result(got, run(subject, form, case.xs, case.state, pos), form, subject.whole, "with NaN under PAD, ", allowed=0.0)
        check.zero(y[pos == PAD], form, subject.whole, "outputs under PAD and zero")
        last = slice(-1, None)  # this row is all padding
        found = subject.compare_states(subject.rows(state, last), subject.rows(case.state, last))
        check.close(found, form, subject.whole, "states of a padded row", allowed=0.0)
    return check.largest


def causality(subject: Subject) -> float:
    """Changing the inputs from token t on does not change outputs before t, up to a few roundings (of an iterative solver)."""
    check, case, pos = Check(subject, "causality"), subject.case(np.float64), positions(subject, subject.whole)
    for form in subject.forms:
        y = run(subject, form, case.xs, case.state, pos)[0]
        for t in (1, 4, 5, PIECE, subject.whole - 1):
            xs = tuple(np.concatenate([x[:, :t], z[:, t:]], axis=1) for x, z in zip(case.xs, case.other, strict=True))
            changed = run(subject, form, xs, case.state, pos)[0]
            found = compare.worst(changed[:, :t], y[:, :t])
            check.close(found, form, subject.whole, f"outputs before t={t}, changed", allowed=32 * compare.epsilon(np.float64))
    return check.largest
