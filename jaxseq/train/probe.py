"""Runs a step again to find the first non-finite array and the norms of each layer's activations and gradients."""

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseq import layers, weights
from jaxseq.train import structure
from jaxseq.train.step import Trainer, TrainState

SOWN = "jaxseq_probe"
Path = tuple[str, ...]


class Place(NamedTuple):
    """A module's output, or a parameter's gradient or value, of one layer of a scanned stack or outside of any."""

    path: Path
    stack: int  # number of names in the path that belong to the stack; 0 outside
    layer: int  # 0 outside
    finite: bool
    norm: float  # root mean square of an output, Euclidean norm of a gradient

    def __str__(self) -> str:
        path = "/".join(self.path) or "the model"
        if not self.stack:
            return path
        return f"layer {self.layer} of {'/'.join(self.path[: self.stack])}, {'/'.join(self.path[self.stack :]) or 'the block'}"

    @property
    def module(self) -> Path:
        """The module of a gradient or an output: directly inside the stack, or at the top level."""
        return self.path[: self.stack + 1]


class _Recorded:
    """A model whose `apply` records for every module's output whether it is finite, and its root mean square."""

    def __init__(self, model: nn.Module):
        self.model, self.order, self.found = model, [], {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def _record(self, method, args, kwargs, context):
        result = method(*args, **kwargs)
        floats = [x for x in jax.tree.leaves(result) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)]
        if context.method_name == "__call__" and floats:
            if context.module.path not in self.order:
                self.order.append(context.module.path)
            x = floats[0].astype(jnp.promote_types(floats[0].dtype, jnp.float32))
            rms = jnp.sqrt(jnp.mean(jnp.square(x)))
            context.module.sow("intermediates", SOWN, jnp.stack([jnp.all(jnp.isfinite(x)).astype(x.dtype), rms]))
        return result

    def apply(self, variables, *inputs, mutable=None, **more):
        if mutable is None:  # the head may run in a loop over blocks of tokens, which cannot return sown values
            return self.model.apply(variables, *inputs, **more)
        with nn.intercept_methods(self._record):
            outputs, changed = self.model.apply(variables, *inputs, mutable=[*mutable, "intermediates"], **more)
        changed = dict(changed)
        self.found = changed.pop("intermediates", {})
        return outputs, changed


class Probe:
    """Runs parts of a trainer's step again and returns their results, place by place."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        boxes = structure.boxed(trainer.config, trainer.model)["params"]
        is_box = lambda leaf: isinstance(leaf, layers.Parameter)  # noqa: E731
        leaves = [(_names(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(boxes, is_leaf=is_box)]
        self.stacked = {path for path, leaf in leaves if is_box(leaf) and leaf.names[:1] == ("layers",)}
        self.paths = [path for path, _ in leaves]
        self.order: list[Path] = []

    def _stack(self, path: Path) -> int:
        """The number of names of `path` that belong to a stack: up to the first module whose parameters are all stacked."""
        for count in range(1, len(path) + 1):
            inside = [other for other in self.paths if other[:count] == path[:count]]
            if inside and self.stacked.issuperset(inside):
                return count
        return 0

    def _places(self, path: Path, values: np.ndarray) -> list[Place]:
        """values: [2] or, in a stack, [layers, 2]: finite and norm; [layers, times, 2] for outputs of shared blocks."""
        stack = self._stack(path)
        rows = values.reshape(-1, 2) if stack else values[None]
        return [Place(path, stack, layer, bool(row[0] == 1), float(row[1])) for layer, row in enumerate(rows)]

    def when(self, place: Place) -> tuple[int, int, int]:
        """The order of a place in the forward pass, after `outputs` has been called. Arrays outside of all modules, such as an
        embedding, come first."""
        within = [i for i, path in enumerate(self.order) if place.path[: len(path)] == path and path]
        own = self.order.index(place.path) if place.path in self.order else min(within, default=-1)
        if not place.stack:
            return own, 0, own
        inside = [i for i, path in enumerate(self.order) if path[: place.stack] == place.path[: place.stack]]
        return min(inside, default=own), place.layer, own

    def outputs(self, state: TrainState, batch: dict[str, jax.Array]) -> list[Place]:
        """Every module's output in the order of the forward pass. With several micro-batches: those of the first bad one, or
        of the first one if none is bad."""
        count, first = self.trainer.config.train.accumulate, []
        rng = jax.random.fold_in(jax.random.fold_in(self.trainer.key, 1), state.step)
        for index in range(count):
            micro = batch if count == 1 else {name: array[index::count] for name, array in batch.items()}
            key = rng if count == 1 else jax.random.fold_in(rng, index)
            with self.trainer.scope():
                found = jax.device_get(self._forward(state.variables, micro, key))
            places = [place for path, values in _sown(found) for place in self._places(path, values)]
            places.sort(key=self.when)
            if not all(place.finite for place in places):
                return places
            first = first or places
        return first

    @functools.cached_property
    def _forward(self):
        def run(variables, batch, rng):
            model = _Recorded(self.trainer.model)
            self.trainer.objective.loss(model, variables, batch, rng, form=self.trainer.plan, train=True)
            self.order = model.order
            return model.found

        return jax.jit(run)

    def leaves(self, tree: Any) -> list[Place]:
        """Every leaf of a tree like the parameters, layer by layer."""
        with self.trainer.scope():
            found = jax.device_get(self._judged(tree))
        return [place for path, values in found.items() for place in self._places(path, values)]

    @functools.cached_property
    def _judged(self):
        def run(tree):
            found = {}
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                path = _names(path)
                axes = tuple(range(1 if self._stack(path) else 0, leaf.ndim))
                x = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
                finite = jnp.all(jnp.isfinite(x), axis=axes).astype(x.dtype)
                found[path] = jnp.stack([finite, jnp.sqrt(jnp.sum(jnp.square(x), axis=axes))], axis=-1)
            return found

        return jax.jit(run)

    @functools.cached_property
    def gradients(self) -> jax.stages.Wrapped:
        """`trainer.gradients`, compiled."""
        return jax.jit(self.trainer.gradients)

    def norms(self, state: TrainState, batch: dict[str, jax.Array]) -> dict[str, float]:
        """{"activation_rms/MODULE/LAYER": …, "gradient_norm/MODULE/LAYER": …} for the modules of every layer; modules
        outside of the stacks have no LAYER."""
        with self.trainer.scope():
            grads, _, _ = self.gradients(state, batch)
        modules = [place for place in self.outputs(state, batch) if place.path == place.module]
        outputs = {_key("activation_rms", place): place.norm for place in modules}
        squares: dict[str, float] = {}
        for place in sorted(self.leaves(grads), key=self.when):
            key = _key("gradient_norm", place)
            squares[key] = squares.get(key, 0.0) + place.norm**2
        return outputs | {key: math.sqrt(square) for key, square in squares.items()}


def _key(kind: str, place: Place) -> str:
    return "/".join([kind, *(place.module or ("model",)), *([str(place.layer)] if place.stack else [])])


def lines(norms: dict[str, float]) -> list[str]:
    """The result of `Probe.norms` as text: one line per module and layer."""
    found: dict[str, list[str]] = {}
    for key, value in norms.items():
        kind, _, place = key.partition("/")
        found.setdefault(place, []).append(f"{kind.replace('_', ' ')} {value:.3g}")
    return [f"{place}: {', '.join(values)}" for place, values in found.items()]


def _names(path: tuple) -> Path:
    return tuple(weights.path_of(path).split("/"))


def _sown(tree: Any, path: Path = ()) -> Iterable[tuple[Path, np.ndarray]]:
    """(path of a module, the values sown there); for a module that is called several times, the worst."""
    for name, value in tree.items():
        if name == SOWN:
            calls = np.stack(value)
            yield path, np.stack([calls[..., 0].min(axis=0), calls[..., 1].max(axis=0)], axis=-1)
        elif hasattr(value, "items"):
            yield from _sown(value, (*path, name))
