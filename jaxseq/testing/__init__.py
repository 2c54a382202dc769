"""Checks the laws that every architecture must satisfy, for those of this package and for your own: see `check_laws`."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax

import jaxseq
from jaxseq import registry
from jaxseq.compat import enable_x64
from jaxseq.errors import UserError
from jaxseq.testing import hygiene, numerics, stream, structure
from jaxseq.testing import stress as hard
from jaxseq.testing.compare import LawBroken
from jaxseq.testing.networks import MixerSubject, ModelSubject
from jaxseq.testing.subjects import OpSubject, Subject

__all__ = ["LAWS", "LawBroken", "check_law", "check_laws", "laws_table", "subjects"]


def _by_name(*laws) -> dict:
    return {law.__name__: law for law in laws}


_OF_STREAMS = (
    *(stream.split, stream.unit, stream.none, stream.reset, stream.padding, stream.causality),
    *(numerics.gradient, numerics.spec, numerics.dtype),
)
LAWS = {
    "op": _by_name(*_OF_STREAMS, structure.loops, structure.summary, structure.example, hard.stress),
    "mixer": _by_name(*_OF_STREAMS, hygiene.parameters),
    "model": _by_name(*_OF_STREAMS, hygiene.parameters, hygiene.remat, hygiene.layers, hygiene.ragged),
}


def subjects(thing: Any) -> list[Subject]:
    """The subjects to test. An op whose example sets options is tested a second time with the default options."""
    if isinstance(thing, str):
        named = _named(thing)
        model = f"{thing} (model)" if len(named) > 1 else thing
        return [subject for one in named for subject in _subjects(one, model)]
    return _subjects(thing, None)


def _subjects(thing: Any, name: str | None) -> list[Subject]:
    if hasattr(thing, "FORMS"):
        subject = OpSubject(thing)
        return [subject, OpSubject(thing, defaults=True)] if subject.has_options() else [subject]
    subject = ModelSubject(thing) if hasattr(thing, "vocab") else MixerSubject(thing)
    subject.name = name or subject.name
    return [subject]


def _named(name: str) -> list[Any]:
    """The op and the architecture of that name (`gru` is both). Raises UserError if there is neither.

    The architecture is built as a narrow model with two layers per segment.
    """
    found = [registry.load("ops", name)] if name in registry.names("ops") else []
    if name in jaxseq.names():
        stack = re.sub(r"\d+\s*\*", "2*", jaxseq.config(name).model.stack)
        found.append(jaxseq.build(jaxseq.config(name, **{"model.stack": stack, "model.width": 32, "model.vocab": 11})))
    if found:
        return found
    known = ", ".join((*registry.names("ops"), *jaxseq.names()))
    raise UserError(f"there is no op and no architecture {name!r}; choose one of: {known}")


def check_law(subject: Subject, law: str) -> float:
    """Check one law on a subject. Returns the largest relative error; raises LawBroken if it exceeds the tolerance."""
    try:
        with enable_x64(True), jax.default_matmul_precision("highest"):
            return LAWS[subject.kind][law](subject)
    except LawBroken:
        raise
    except Exception as error:
        error.add_note(f"while checking {subject.name} for the law {law!r}")
        raise


def check_laws(thing: Any) -> dict[str, dict[str, float]]:
    """Check an architecture for all laws. Returns {subject: {law: largest relative error}}, see `laws_table`.

    `thing` is one of:

    - the name of an op or of an architecture of this package: "retention", "retnet" ("gru" names both; both are checked);
    - an op: a module, or any object with `FORMS = {"recurrent": …, "parallel": …, "chunkwise": …}` and
      `example(key, batch, time, dtype) -> jaxseq.ops.Example`; a form is called as
      `form(*xs, state=None, pos=None, **weights, **options) -> (y, state)`; optional: `summary`, `combine`, `apply`,
      `canonical`, `stress(key, batch, time, dtype) -> {case: Example}` (hard inputs; by default some are made from the example).
      The option `chunk` of a form is set to a small number, except for hard inputs;
    - a mixer: an instance of a `jaxseq.layers.Mixer`, preferably small, e.g. `Mine(width=16, layers=2)`;
    - a model: the result of `jaxseq.build(config)`; use a few narrow layers, because it is compiled about thirty times.

    Raises LawBroken, an AssertionError that names the law, the form, T, the dtype and the size of the error. Exceptions raised by
    an op or a module get a note with the law, the form and T. The laws are defined in the docstrings of `jaxseq.testing.stream`,
    `numerics`, `structure`, `stress` and `hygiene`. jax_enable_x64 is switched on during the checks. An op takes about 20 s on
    one core.

        import jaxseq.testing, my_op
        print(jaxseq.testing.laws_table(jaxseq.testing.check_laws(my_op)))
    """
    return {s.name: {law: check_law(s, law) for law in LAWS[s.kind]} for s in subjects(thing)}


def laws_table(reports: Mapping[str, Mapping[str, float]], kinds: Mapping[str, Iterable[str]] = LAWS) -> str:
    """Text table of subjects x laws with the largest error ("0": bitwise equal); MISSING: not run, BROKEN: the law failed.

    `kinds`: the laws of each kind of subject; a row with one of them is expected to have all of them.
    """
    laws = list(dict.fromkeys(law for kind in kinds.values() for law in kind))
    laws = [law for law in laws if any(law in row for row in reports.values())]
    of_kind = {frozenset(kind) for kind in kinds.values()}

    def cell(row, law):
        if law in row:
            return "BROKEN" if row[law] != row[law] else "0" if row[law] == 0 else f"{row[law]:.0e}"
        together = frozenset().union(*(kind for kind in of_kind if kind & set(row)))  # a row may have several kinds
        required = min((kind for kind in of_kind if set(row) <= kind), key=len, default=together)
        return "MISSING" if law in required else ""

    width = max(map(len, reports), default=0)
    lines = [" " * width + "".join(f"{law:>11}" for law in laws)]
    lines += [f"{name:<{width}}" + "".join(f"{cell(row, law):>11}" for law in laws) for name, row in reports.items()]
    return "\n".join(lines)
