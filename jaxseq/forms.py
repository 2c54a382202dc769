"""Chooses the form in which each op of a program runs: by name, per mixer label, or from a committed table of measurements.

A `form` is a name ("recurrent", "parallel", "chunkwise", "pallas", "auto") or a choice per mixer label, where "*" stands for all
other labels: the mapping `{"attention": "pallas", "*": "chunkwise"}`, or the same as text, "attention=pallas,*=chunkwise".
"auto" uses the form in `ops/_auto.json` that `jaxseq bench ops --write` found fastest on this platform for the purpose (training
with packed rows, or prefill of one document), the dtype, the sizes ("small" or "large") and the length of the rows.

A `Plan` holds the form, the platform and the purpose of a program. A program makes it once, by `plan`; all its ops are looked up
through it.
"""

import dataclasses
import functools
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp

from jaxseq import registry, shards
from jaxseq.errors import UserError

Form = str | tuple[tuple[str, str], ...]

PURPOSES = ("train", "prefill", "decode")
SMALL = 256  # numbers per token of an op's first input, such as heads times head size

_log = logging.getLogger("jaxseq.forms")


def freeze(form: "str | Mapping[str, str] | Form") -> Form:
    """The form as a hashable value: a choice per label becomes a sorted tuple of (label, name).

    Raises UserError for text with "=" that is not of the form "label=name,label=name".
    """
    if isinstance(form, str) and "=" in form:
        pairs = [tuple(part.strip() for part in item.split("=")) for item in form.split(",")]
        if any(len(pair) != 2 or not all(pair) for pair in pairs) or len({label for label, *_ in pairs}) < len(pairs):
            raise UserError(f"the form {form!r} must name one form per label, such as 'attention=pallas,*=chunkwise'")
        return tuple(sorted(pairs))
    return tuple(sorted(form.items())) if isinstance(form, Mapping) else form


def of_label(form: Form, label: str | None) -> str:
    """The form for the mixer with this label; if there is no such label, the form of "*", or else "chunkwise"."""
    if isinstance(form, str):
        return form
    forms = dict(form)
    return forms.get(label, forms.get("*", "chunkwise"))


@functools.cache
def table() -> dict:
    """{"choices": {platform: {op: {KEY: [[largest T, form], …]}}}, "measured": …}; KEY: see `key`; last row: also larger T."""
    return json.loads(resources.files("jaxseq.ops").joinpath("_auto.json").read_text(encoding="utf-8"))


def size_class(shape: Sequence[int]) -> str:
    """"small" or "large": whether an input with this shape after [B, T] has up to SMALL numbers per token."""
    return "small" if math.prod(shape) <= SMALL else "large"


def key(purpose: str, dtype: str, size: str) -> str:
    """Of a row of choices. Decoding of several tokens is prefill."""
    return f"{'train' if purpose == 'train' else 'prefill'} {dtype} {size}"


@functools.cache
def automatic(op: str, time: int, platform: str, purpose: str = "train", dtype: str = "float32", size: str = "small") -> str:
    """The form that was measured to be the fastest for this op. For T = 1 it is always "recurrent".

    What was not measured uses the figures of small sizes, then of float32, then of both; an op or a platform without figures
    runs in the chunkwise form. Each choice is logged once.
    """
    if time == 1:
        return "recurrent"
    measured = table()["choices"].get(platform, {}).get(op, {})
    near = dict.fromkeys(key(purpose, own, its) for own in (dtype, "float32") for its in (size, "small"))
    rows = next((measured[name] for name in near if measured.get(name)), None)
    if rows is None:
        _log.info("auto: %s is unmeasured on %s: chunkwise", op, platform)
        return "chunkwise"
    form = next((form for limit, form in rows if time <= limit), rows[-1][1])
    _log.info("auto: %s at T=%d (%s) on %s runs in its %s form", op, time, key(purpose, dtype, size), platform, form)
    return form


def find(op: str, form: str, platform: str) -> Callable:
    """The function of op `op` in `form`. A Pallas kernel runs on each device's shard. Raises UserError if there is none."""
    forms = registry.load("ops", op).FORMS
    if form in forms:
        return forms[form]
    from jaxseq import kernels  # Pallas is imported only when a kernel is requested

    pallas = kernels.forms(op, platform)
    if form not in pallas:
        raise UserError(f"{op} has no form {form!r} on {platform}; choose one of: {', '.join([*forms, *pallas, 'auto'])}")
    return shards.by_letters(pallas[form])


def _stored(x: jax.Array) -> jax.Array:
    """x, whose values and gradients XLA stores once on CPU, if several operations read them.

    XLA repeats cheap elementwise operations in every operation that reads their result, even if this one reads them transposed,
    which takes 50 times as long per element. It does not repeat a division, and does not know that this one divides by 1.
    """
    return x / jax.lax.optimization_barrier(jnp.ones((), x.dtype)) if jnp.issubdtype(x.dtype, jnp.inexact) else x


@dataclasses.dataclass(frozen=True)
class Plan:
    """Decides the form of each op of one program. Hashable, so that it can be a static argument of `jax.jit`.

    platform: of the devices that the program is compiled for ("cpu", "gpu", "tpu"), which may not be the default backend.
    purpose: "train", "prefill" or "decode". seen(op, form, xs, kwargs): called for each op that is traced.
    """

    form: Form
    platform: str
    purpose: str
    seen: Callable[[str, str, tuple, dict], None] | None = None

    def op(self, name: str, label: str | None = None) -> Callable[..., tuple[Any, Any]]:
        """Op `name` in the form of the mixer with this label: a function of the op's own arguments that returns (y, state).

        It runs in the named scope "op:NAME:FORM", which profiles and `jax.make_jaxpr` show.
        """
        form = of_label(self.form, label)

        def call(*xs, **kwargs):
            dtype = jnp.result_type(xs[0]).name
            chosen = form
            if form == "auto":
                chosen = automatic(name, xs[0].shape[1], self.platform, self.purpose, dtype, size_class(xs[0].shape[2:]))
            function = find(name, chosen, self.platform)
            if self.seen:
                self.seen(name, chosen, xs, kwargs)
            with jax.named_scope(f"op:{name}:{chosen}"):
                if self.platform != "cpu" or self.purpose != "train":
                    return function(*xs, **kwargs)
                y, state = function(*map(_stored, xs), **kwargs)
                return _stored(y), state

        return call


def plan(
    form: "str | Mapping[str, str] | Form | Plan", purpose: str = "prefill", platform: str | None = None,
    seen: Callable[[str, str, tuple, dict], None] | None = None,
) -> Plan:  # fmt: skip
    """The plan of a program that runs in `form`; a Plan is returned unchanged. platform: default `jax.default_backend()`.

    Raises UserError for an unknown purpose.
    """
    if isinstance(form, Plan):
        return form
    if purpose not in PURPOSES:
        raise UserError(f"there is no purpose {purpose!r}; choose one of: {', '.join(PURPOSES)}")
    return Plan(freeze(form), platform or jax.default_backend(), purpose, seen)
