"""Selects the form of an op: by name, per mixer label, or from a committed table of measurements.

A `form` is a name ("recurrent", "parallel", "chunkwise", "pallas", "auto") or a mapping from mixer labels to names,
`{"attention": "pallas", "retention": "chunkwise"}`, where the label "*" stands for all others. "auto" uses the fastest form in
`ops/_auto.json`, which `jaxseq bench --write` measures for a platform; each choice is logged once.
"""

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from importlib import resources

import jax

from jaxseq import registry
from jaxseq.errors import UserError

Form = str | tuple[tuple[str, str], ...]

_log = logging.getLogger("jaxseq.forms")


def freeze(form: str | Mapping[str, str] | Form) -> Form:
    """The form as a hashable value: a mapping becomes a sorted tuple of its items."""
    return tuple(sorted(form.items())) if isinstance(form, Mapping) else form


def of_label(form: Form, label: str) -> str:
    """The form for the mixer with this label; if a mapping has no such label, the form of "*", or else "chunkwise"."""
    if isinstance(form, str):
        return form
    forms = dict(form)
    return forms.get(label, forms.get("*", "chunkwise"))


@functools.cache
def table() -> dict:
    """{platform: {op: [[largest T, form], …]}}; the last row of an op also holds for larger T."""
    return json.loads(resources.files("jaxseq.ops").joinpath("_auto.json").read_text(encoding="utf-8"))


@functools.cache
def automatic(op: str, time: int, platform: str) -> str:
    """The fastest measured form of this op for this length and platform; "chunkwise" if there is no measurement."""
    rows = table()["choices"].get(platform, {}).get(op, [])
    longest = [form for limit, form in rows if time <= limit] + [form for _, form in rows[-1:]]
    form = "recurrent" if time == 1 else (longest + ["chunkwise"])[0]
    _log.info("auto: %s at T=%d on %s runs in its %s form", op, time, platform, form)
    return form


def op(name: str, form: str, time: int) -> Callable:
    """The function of op `name` in `form`. Raises UserError if the op has no such form."""
    if form == "auto":
        form = automatic(name, time, jax.default_backend())
    forms = registry.load("ops", name).FORMS
    if form in forms:
        return forms[form]
    from jaxseq import kernels  # Pallas is imported only when a kernel is requested

    pallas = kernels.forms(name)
    if form not in pallas:
        raise UserError(f"{name} has no form {form!r}; choose one of: {', '.join([*forms, *pallas, 'auto'])}")
    return pallas[form]


@contextlib.contextmanager
def recording(seen: Callable[[str, str, tuple, dict], None]) -> Iterator[None]:
    """Context manager: calls `seen(op, form, xs, kwargs)` for each op that is traced, to list the ops that a network runs."""
    global op
    lookup = op

    def heard(name, form, time):
        function = lookup(name, form, time)
        chosen = automatic(name, time, jax.default_backend()) if form == "auto" else form

        def call(*xs, **kwargs):
            seen(name, chosen, xs, kwargs)
            return function(*xs, **kwargs)

        return call

    op = heard
    try:
        yield
    finally:
        op = lookup
