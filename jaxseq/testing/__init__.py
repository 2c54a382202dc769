"""The laws that every architecture is held to, for this package's own and for anyone's: see `check_laws`."""

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
    """What the laws are put to. An op whose example sets options is put to them once more with those at their defaults."""
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
    """The op and the model of the architecture of that name (`gru` is both). Raises UserError where there is neither.

    The model is narrow and has two layers a segment.
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
    """Put one law to a subject. Returns the largest relative error that passed; raises LawBroken."""
    try:
        with enable_x64(True), jax.default_matmul_precision("highest"):
            return LAWS[subject.kind][law](subject)
    except LawBroken:
        raise
    except Exception as error:
        error.add_note(f"while {subject.name} was held to the law {law!r}")
        raise


def check_laws(thing: Any) -> dict[str, dict[str, float]]:
    """Hold an architecture to every law; {subject: {law: largest relative error}}, which `laws_table` prints.

    `thing` is one of:

    - the name of an op or of an architecture of this package: "retention", "retnet" (both, where both have it: "gru");
    - an op: a module, or any object with `FORMS = {"recurrent": …, "parallel": …, "chunkwise": …}` and
      `example(key, batch, time, dtype) -> jaxseq.ops._example.Example`; a form is called as
      `form(*xs, state=None, pos=None, **weights, **options) -> (y, state)`; optional: `summary`, `combine`, `apply`,
      `canonical`, `stress(key, batch, time, dtype) -> {case: Example}` (hard inputs; without it some are made from the example).
      A form's option `chunk` is set to a small number, but for hard inputs;
    - a mixer: an instance of a `jaxseq.layers.Mixer`, as small as you like, e.g. `Mine(width=16, layers=2)`;
    - a model: what `jaxseq.build(config)` returns; take a few layers of small width, it is compiled some thirty times.

    Raises LawBroken, an AssertionError that names the law, the form, T, the dtype and the size of the error; what an op or a
    module raises itself gets a note with the law, the form and T. What the
    laws say stands in the docstrings of `jaxseq.testing.stream`, `numerics`, `structure`, `stress` and `hygiene`. Everything runs
    in float64 for the while, whatever `jax_enable_x64` is. Expect 20 s for an op on one core.

        import jaxseq.testing, my_op
        print(jaxseq.testing.laws_table(jaxseq.testing.check_laws(my_op)))
    """
    return {s.name: {law: check_law(s, law) for law in LAWS[s.kind]} for s in subjects(thing)}


def laws_table(reports: Mapping[str, Mapping[str, float]], kinds: Mapping[str, Iterable[str]] = LAWS) -> str:
    """Subjects x laws with the largest error let pass ("0": equal bit for bit); MISSING was not run, BROKEN did not hold.

    `kinds`: the columns that belong together, of which a row has all or none.
    """
    laws = list(dict.fromkeys(law for kind in kinds.values() for law in kind))
    laws = [law for law in laws if any(law in row for row in reports.values())]
    of_kind = {frozenset(kind) for kind in kinds.values()}

    def cell(row, law):
        if law in row:
            return "BROKEN" if row[law] != row[law] else "0" if row[law] == 0 else f"{row[law]:.0e}"
        together = frozenset().union(*(kind for kind in of_kind if kind & set(row)))  # of a row that has several kinds
        required = min((kind for kind in of_kind if set(row) <= kind), key=len, default=together)
        return "MISSING" if law in required else ""

    width = max(map(len, reports), default=0)
    lines = [" " * width + "".join(f"{law:>11}" for law in laws)]
    lines += [f"{name:<{width}}" + "".join(f"{cell(row, law):>11}" for law in laws) for name, row in reports.items()]
    return "\n".join(lines)
