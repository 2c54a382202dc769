"""The check of one law on one subject: comparisons that raise LawBroken, and the largest error so far."""

from typing import Any, NoReturn

import numpy as np
from jax.typing import DTypeLike

from jaxseq.ops._time import PAD
from jaxseq.testing import compare
from jaxseq.testing.subjects import Subject, patterns


class Check:
    """Compares results under one law for one subject; `largest` is the largest error so far."""

    def __init__(self, subject: Subject, law: str):
        self.subject, self.law, self.largest = subject, law, 0.0

    def close(
        self, found: tuple[float, str], form: str, time: int, what: str, allowed: float = compare.FLOAT64,
        dtype: DTypeLike = np.float64,
    ) -> None:  # fmt: skip
        """Fail if the error is larger than `allowed`; `found` is (error, leaf), as returned by compare.worst."""
        size, where = found
        if not size <= allowed:
            self.fail(form, time, f"{what} differ by {size:.2e} (allowed {allowed:.2e}) in {where}", dtype)
        self.largest = max(self.largest, size)

    def result(self, got: tuple[Any, Any], wanted: tuple[Any, Any], form: str, time: int, what: str = "", **options: Any) -> None:
        """Fail if two (y, state) differ."""
        self.close(compare.worst(got[0], wanted[0]), form, time, what + "outputs", **options)
        self.close(self.subject.compare_states(got[1], wanted[1]), form, time, what + "states", **options)

    def zero(self, x: Any, form: str, time: int, what: str) -> None:
        self.close(compare.worst(x, 0 * np.nan_to_num(x)), form, time, what, allowed=0.0)

    def same(self, got: Any, wanted: Any, form: str, time: int, what: str, dtype: DTypeLike = np.float64) -> None:
        if got != wanted:
            self.fail(form, time, f"{what} is {got} instead of {wanted}", dtype)

    def fail(self, form: str, time: int, what: str, dtype: DTypeLike = np.float64) -> NoReturn:
        place = f"form {form!r}, T={time}, {np.dtype(dtype).name}"
        raise compare.LawBroken(f"{self.subject.name} breaks the law {self.law!r} ({place}): {what}")


def run(subject: Subject, form: str, xs: tuple, state: Any, pos: Any, dtype: DTypeLike = np.float64) -> tuple[Any, Any]:
    return subject.run(form, dtype, xs, subject.case(dtype).weights, state, pos)


def positions(subject: Subject, time: int) -> np.ndarray:
    return patterns(time, subject.next_position)


def garbage(x: np.ndarray, pos: np.ndarray) -> np.ndarray:
    """x with NaN at padding; integers are replaced by other integers of the same range."""
    mask = (pos == PAD).reshape(pos.shape + (1,) * (x.ndim - 2))
    return np.where(mask, np.asarray(np.nan, x.dtype) if compare.is_float(x) else x.max() - x, x)
