"""Subjects of the laws: an op, a mixer or a model, each as one function of inputs, weights, state and positions."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxseq.compat import enable_x64
from jaxseq.ops._time import PAD
from jaxseq.testing import compare

FORMS = ("recurrent", "parallel", "chunkwise")
BATCH = 5  # one row for each pattern of positions
PIECE = 7  # T is 1, PIECE or the subject's `whole`, so that few programs are compiled
PREFIX = 15  # tokens that make the initial state of subjects without an example state
CHUNK = 4


@functools.cache
def quick() -> dict[str, Any]:
    """Compiler options that reduce compile time to a third, if this jax and its backend support them; run time does not
    matter here."""
    known: dict[str, Any] = {}
    for name, value in {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}.items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


class Case(NamedTuple):
    """Arguments on the host. xs have [BATCH, whole, ...]; `other` are different inputs; `empty` is the empty state."""

    xs: tuple
    other: tuple
    weights: Any
    state: Any
    empty: Any

    def part(self, start: int, stop: int) -> tuple:
        return tuple(x[:, start:stop] for x in self.xs)


def canonical_by_class(state: Any) -> Any:
    """The state with each part replaced by its `canonical()`, if its class has one: equivalent states become equal."""
    gauged = lambda part: hasattr(part, "canonical")  # noqa: E731
    return jax.tree.map(lambda part: part.canonical() if gauged(part) else part, state, is_leaf=gauged)


class Subject:
    """Base: `call` is the function under test, `make` returns its arguments; both are traced once per form, T and dtype.

    kind: "op", "mixer" or "model", selects the laws; exact_caches: a state leaf in a low dtype must be a copy of inputs;
    forms_without_pos: the forms that are tested with `pos=None`.
    """

    kind: str
    name: str
    forms: tuple[str, ...] = FORMS
    exact_caches = False
    compiler_options: dict[str, Any] | None = None  # None: `quick`, with fewer optimisations than in users' programs
    whole = 33  # odd: several chunks and a remainder
    roundings = compare.ROUNDINGS  # tolerance of the recurrent form against float64, in units of the dtype's epsilon
    next_position = PREFIX  # position of the first token after the state, for rows that continue a document

    @property
    def forms_without_pos(self) -> tuple[str, ...]:
        return self.forms

    def __init__(self):
        self._cases: dict[str, Case] = {}
        self._compiled: dict[tuple, Callable] = {}

    def call(self, form: str, dtype: DTypeLike, xs: tuple, weights: Any, state: Any, pos: jax.Array | None) -> tuple[Any, Any]:
        raise NotImplementedError

    def called(self, form: str, dtype: DTypeLike, xs: tuple, weights: Any, state: Any, pos: jax.Array | None) -> tuple[Any, Any]:
        """`call`; adds a note with form, T and dtype to its exceptions."""
        try:
            return self.call(form, dtype, xs, weights, state, pos)
        except Exception as error:
            error.add_note(f"in form {form!r}, T={xs[0].shape[1]}, {np.dtype(dtype).name}")
            raise

    def make(self, dtype: DTypeLike, key: jax.Array) -> tuple:
        """The fields of a Case, traced."""
        raise NotImplementedError

    def canonical(self, state: Any) -> Any:
        return canonical_by_class(state)

    def rows(self, state: Any, rows: slice) -> Any:
        """Some rows of the batch."""
        return jax.tree.map(lambda s: s[rows], state)

    def replace_rows(self, state: Any, other: Any, rows: np.ndarray, axis: int = 0) -> Any:
        """The state with the rows in the mask `rows` taken from `other`; `axis` is the batch axis."""

        def replace(old, new):
            return np.where(np.expand_dims(rows, [i for i in range(old.ndim) if i != axis]), new.astype(old.dtype), old)

        return jax.tree.map(replace, state, other)

    def case(self, dtype: DTypeLike) -> Case:
        """The arguments, sampled once in float64; for another dtype the same numbers, rounded to the dtypes of `make`."""
        name = np.dtype(dtype).name
        if name in self._cases:
            return self._cases[name]
        with enable_x64(True):
            key = jax.random.key(0, impl="unsafe_rbg")  # threefry takes six times longer to compile
            make = functools.partial(self.make, dtype)
            if name == "float64":
                case = jax.device_get(jax.jit(make, compiler_options=quick())(key))
            else:
                case = jax.tree.map(
                    lambda x, like: np.asarray(x, like.dtype), tuple(self.case(np.float64)), jax.eval_shape(make, key)
                )
            self._cases[name] = Case(*case)
        return self._cases[name]

    def run(self, form: str, dtype: DTypeLike, xs: tuple, weights: Any, state: Any, pos: jax.Array | None) -> tuple[Any, Any]:
        """(y, state) on the host; jitted, so that laws share the compiled function."""
        with enable_x64(True):
            return jax.device_get(self._jit("run", self.called, form, dtype)(xs, weights, state, pos))

    def choices(
        self, form: str, dtype: DTypeLike, xs: tuple, weights: Any, state: Any, pos: jax.Array | None
    ) -> list[np.ndarray]:
        """Discrete choices, such as those of a router, each [..., B, T, R]: sown into 'intermediates' as 'choice'; usually none.

        The function is discontinuous at a change of choice, so rounding may flip a choice.
        """
        return []

    def compare_states(self, got: Any, wanted: Any) -> tuple[float, str]:
        if compare.spec(got) != compare.spec(wanted):
            return float("inf"), f"spec {compare.spec(got)} instead of {compare.spec(wanted)}"
        return compare.worst(self.canonical(got), self.canonical(wanted))

    def compare_values(self, got: Any, wanted: Any) -> tuple[float, str]:
        """Two (y, state) by value, whatever their dtypes."""
        got, wanted = ((compare.cast(y, np.float64), self.canonical(state)) for y, state in (got, wanted))
        return compare.worst(got, wanted)

    def output_dtype(self, dtype: DTypeLike) -> np.dtype:
        return np.dtype(dtype)

    def shapes(self, form: str, dtype: DTypeLike, xs: tuple, pos: jax.Array | None) -> tuple[Any, Any]:
        """(y, state) as ShapeDtypeStructs: nothing is compiled."""
        case = self.case(dtype)
        return jax.eval_shape(functools.partial(self.called, form, dtype), xs, case.weights, case.state, pos)

    def gradients(
        self, form: str, xs: tuple, weights: Any, state: Any, pos: jax.Array | None, cotangents: list
    ) -> tuple[Any, list]:
        """(value of <y, u> + <canonical(state), v>, list of its gradients by all floating arguments), in float64."""
        floats, rest, structure = split_floats((xs, weights, state))
        jitted = self._jit("grad", functools.partial(self._value_and_grad, structure), form, np.dtype(np.float64))
        return jax.device_get(jitted(floats, rest, pos, cotangents))

    def _value_and_grad(self, structure, form, dtype, floats, rest, pos, cotangents):
        def loss(floats):
            y, state = self.called(form, dtype, *join_floats(floats, rest, structure), pos)
            results, _, _ = split_floats((y, self.canonical(state)))
            return sum(jnp.vdot(a, u) for a, u in zip(results, cotangents, strict=True))

        return jax.value_and_grad(loss)(floats)

    def _jit(self, purpose, function, form, dtype):
        key = purpose, form, np.dtype(dtype).name
        if key not in self._compiled:
            options = quick() if self.compiler_options is None else self.compiler_options
            self._compiled[key] = jax.jit(functools.partial(function, form, dtype), compiler_options=options)
        return self._compiled[key]


def split_floats(tree: Any) -> tuple[list, list, Any]:
    """(floating leaves, other leaves with None for floats, tree structure), to be joined by `join_floats`."""
    leaves, structure = jax.tree.flatten(tree)
    floats = [x for x in leaves if compare.is_float(x)]
    return floats, [None if compare.is_float(x) else x for x in leaves], structure


def join_floats(floats: Sequence, rest: Sequence, structure: Any) -> Any:
    """Inverse of `split_floats`."""
    floats = iter(floats)
    return jax.tree.unflatten(structure, [next(floats) if x is None else x for x in rest])


class OpSubject(Subject):
    """An op module, or any object with FORMS, example and __name__. `defaults`: use the default options, not the example's."""

    kind = "op"
    exact_caches = True

    def __init__(self, op, defaults: bool = False, forms: tuple[str, ...] | None = None):
        super().__init__()
        self.op, self.defaults = op, defaults
        self.forms = forms or tuple(op.FORMS)
        self.name = getattr(op, "__name__", type(op).__name__).rpartition(".")[2] + (" (default options)" if defaults else "")
        self.options: dict[str, Any] = {}

    def variant(self, op: Any) -> "OpSubject":
        """Another op with the arguments of this one. Only its recurrent form is used, or both forms of an op with two."""
        other = OpSubject(op, self.defaults, tuple(f for f in op.FORMS if f == "recurrent" or len(op.FORMS) == 2))
        if op.example is self.op.example:
            other._cases, other.options = self._cases, self.options
        return other

    def options_of(self, function: Callable, options: dict[str, Any]) -> dict[str, Any]:
        parameters = inspect.signature(function).parameters
        if self.defaults:
            options = {k: v for k, v in options.items() if parameters[k].default is inspect.Parameter.empty}
        return options | ({"chunk": CHUNK} if "chunk" in parameters else {})

    def call(self, form: str, dtype: DTypeLike, xs: tuple, weights: Any, state: Any, pos: jax.Array | None) -> tuple[Any, Any]:
        function = self.op.FORMS[form]
        return function(*xs, state=state, pos=pos, **weights, **self.options_of(function, self.options))

    def canonical(self, state: Any) -> Any:
        return self.op.canonical(state) if hasattr(self.op, "canonical") else super().canonical(state)

    def summary(self, xs: tuple, weights: Any, pos: jax.Array | None) -> Any:
        def function(form, dtype, xs, weights, pos):
            return self.op.summary(*xs, pos=pos, **weights, **self.options_of(self.op.summary, self.options))

        return jax.device_get(self._jit("summary", function, "summary", np.float64)(xs, weights, pos))

    def make(self, dtype: DTypeLike, key: jax.Array) -> tuple:
        time = PREFIX + self.whole
        key, key_other = jax.random.split(key)
        xs, weights, self.options, state = self.op.example(key, BATCH, time, dtype)
        other = self.op.example(key_other, BATCH, self.whole, dtype).xs
        # Padding does not change the state: a segment of padding returns the empty state, sized for `time` tokens.
        pos_BT = jnp.full((BATCH, time), PAD)
        empty = self.call("recurrent", dtype, xs, weights, None, pos_BT)[1]
        if self.defaults:
            pos_BT = pos_BT.at[:, :PREFIX].set(jnp.arange(PREFIX))
            state = self.call("recurrent", dtype, xs, weights, None, pos_BT)[1]
        return tuple(x[:, PREFIX:] for x in xs), other, weights, state, empty

    def has_options(self) -> bool:
        """Whether the example sets options that have defaults; then the defaults are tested too."""
        self.case(np.float64)
        parameters = inspect.signature(self.op.FORMS["recurrent"]).parameters
        return any(parameters[k].default is not inspect.Parameter.empty for k in self.options)


def patterns(time: int, next_position: int = PREFIX) -> np.ndarray:
    """pos [BATCH, time], one row each: continues · continues, then a new document · three documents, then padding · continues,
    then padding · only padding."""
    a, b, t = time // 3, time // 2, np.arange(time)
    rows = (
        next_position + t,
        np.where(t < a, next_position + t, t - a),
        np.where(t < b, t, np.where(t == b, 0, np.where(t < time - max(1, time // 6), t - b - 1, PAD))),
        np.where(t < max(1, time // 4), next_position + t, PAD),
        np.full(time, PAD),
    )
    return np.stack(rows).astype(np.int32)
