"""Which form of an op runs: named by the user, per mixer if they like, or read from a committed table of measurements.

A `form` is a name ("recurrent", "parallel", "chunkwise", "pallas", "auto") or one name per mixer label,
`{"attention": "pallas", "retention": "chunkwise"}`, where the label "*" stands for all others. "auto" reads
`ops/_auto.json`, which `jaxseq bench --write` makes on a platform; every choice is logged once.
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
    """A hashable form: a mapping becomes its sorted pairs."""
    return tuple(sorted(form.items())) if isinstance(form, Mapping) else form


def of_label(form: Form, label: str) -> str:
    """The form that the mixer with this label runs in; those a mapping leaves out run in "chunkwise" or in that of "*"."""
    if isinstance(form, str):
        return form
    forms = dict(form)
    return forms.get(label, forms.get("*", "chunkwise"))


@functools.cache
def table() -> dict:
    """{platform: {op: [[longest T, form], …]}}; the last row of an op holds for every longer T."""
    return json.loads(resources.files("jaxseq.ops").joinpath("_auto.json").read_text(encoding="utf-8"))


@functools.cache
def automatic(op: str, time: int, platform: str) -> str:
    """The measured choice for this op, length and platform; "chunkwise" where nothing was measured."""
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
    from jaxseq import kernels  # Pallas is imported only by those who ask for a kernel

    pallas = kernels.forms(name)
    if form not in pallas:
        raise UserError(f"{name} has no form {form!r}; choose one of: {', '.join([*forms, *pallas, 'auto'])}")
    return pallas[form]


@contextlib.contextmanager
def recording(seen: Callable[[str, str, tuple, dict], None]) -> Iterator[None]:
    """While it lasts, `seen(op, form, xs, kwargs)` hears of every op that is called: what a network runs, found by tracing it."""
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
