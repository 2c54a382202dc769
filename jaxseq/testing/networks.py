"""Mixers and models as subjects of the laws: small networks with all parameters moved away from their initial values."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jaxseq.call import Call
from jaxseq.compat import enable_x64
from jaxseq.testing import compare
from jaxseq.testing.subjects import BATCH, PIECE, PREFIX, Subject

WHOLE = 2 * PIECE + 1  # short: chunks are tested on the ops
CONTEXT = PREFIX + WHOLE
MOVE = 0.1  # standard deviation of the noise added to each parameter, so that initial zeros and ones hide no mistake


def with_dtype(module: nn.Module, dtype: DTypeLike) -> nn.Module:
    """The same network, and all modules among its fields, computing in `dtype`."""

    def change(value: Any, name: str):
        if isinstance(value, nn.Module):
            return with_dtype(value, dtype)
        if isinstance(value, tuple):
            return tuple(change(item, name) for item in value)
        if name == "dtype":
            return dtype
        return jnp.promote_types(value, dtype) if name == "residual_dtype" else value

    fields = [f.name for f in dataclasses.fields(module) if f.init and f.name not in ("name", "parent")]
    return module.clone(parent=None, **{name: change(getattr(module, name), name) for name in fields})


def moved(params: Any, key: jax.Array) -> Any:
    """Parameters with noise added. It is drawn at once for all of them, because each draw takes long to compile."""
    leaves, structure = jax.tree.flatten(params)
    ends = np.cumsum([x.size for x in leaves])
    parts = jnp.split(MOVE * jax.random.normal(key, (ends[-1] if leaves else 0,), leaves[0].dtype if leaves else None), ends[:-1])
    leaves = [x + part.reshape(x.shape).astype(x.dtype) for x, part in zip(leaves, parts, strict=False)]
    return jax.tree.unflatten(structure, leaves)


class NetworkSubject(Subject):
    """A Linen module whose `init_state(batch, context)` gives the empty state."""

    whole = WHOLE

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module, self.name = module, type(module).__name__

    def make(self, dtype: DTypeLike, key: jax.Array) -> tuple:
        key_x, key_other, key_init, key_move = jax.random.split(key, 4)
        module = with_dtype(self.module, dtype)
        x, other = self.inputs(key_x, CONTEXT, dtype), self.inputs(key_other, WHOLE, dtype)
        weights = moved(self.initial(module, key_init, x[:, :2]), key_move)
        empty = module.init_state(BATCH, CONTEXT)
        pos_BT = jnp.broadcast_to(jnp.arange(PREFIX, dtype=jnp.int32), (BATCH, PREFIX))
        state = self.call("recurrent", dtype, (x[:, :PREFIX],), weights, empty, pos_BT)[1]
        return (x[:, PREFIX:],), (other,), weights, state, empty

    def applied(
        self, form: str, dtype: DTypeLike, xs: tuple, weights: Any, state: Any, pos: jax.Array | None, **options: Any
    ) -> tuple[Any, Any]:
        """The result of `module.apply` with these options."""
        raise NotImplementedError

    def call(self, form: str, dtype: DTypeLike, xs: tuple, weights: Any, state: Any, pos: jax.Array | None) -> tuple[Any, Any]:
        return self.applied(form, dtype, xs, weights, state, pos)

    def choices(
        self, form: str, dtype: DTypeLike, xs: tuple, weights: Any, state: Any, pos: jax.Array | None
    ) -> list[np.ndarray]:
        def sown(form, dtype, *arguments):
            _, collections = self.applied(form, dtype, *arguments, mutable=["intermediates"])
            return [x for path, x in jax.tree_util.tree_leaves_with_path(collections) if jax.tree_util.DictKey("choice") in path]

        with enable_x64(True):
            return jax.device_get(self._jit("choices", sown, form, dtype)(xs, weights, state, pos))

    def inputs(self, key: jax.Array, time: int, dtype: DTypeLike) -> jax.Array:
        raise NotImplementedError

    def initial(self, module: nn.Module, key: jax.Array, x: jax.Array) -> Any:
        """Initial parameters, unboxed."""
        raise NotImplementedError


class MixerSubject(NetworkSubject):
    """A mixer as the subject of the laws."""

    kind = "mixer"
    forms_without_pos = ()  # the model always has positions

    def applied(
        self, form: str, dtype: DTypeLike, xs: tuple, weights: Any, state: Any, pos: jax.Array | None, **options: Any
    ) -> tuple[Any, Any]:
        return with_dtype(self.module, dtype).apply({"params": weights}, xs[0], state, Call.of(pos, form), **options)[:2]

    def inputs(self, key: jax.Array, time: int, dtype: DTypeLike) -> jax.Array:
        return jax.random.normal(key, (BATCH, time, self.module.width), dtype)

    def boxed(self, module: nn.Module, key: jax.Array, x: jax.Array) -> dict:
        pos_BT = jnp.zeros(x.shape[:2], jnp.int32)
        return module.init(key, x, None, Call.of(pos_BT))

    def initial(self, module: nn.Module, key: jax.Array, x: jax.Array) -> Any:
        return nn.meta.unbox(self.boxed(module, key, x)).get("params", {})


class ModelSubject(NetworkSubject):
    """A language model as the subject of the laws."""

    kind = "model"
    roundings = 2 * compare.ROUNDINGS  # errors add up over the layers
    forms_without_pos = ("recurrent",)  # LM.__call__ creates positions before it calls a form

    def applied(
        self, form: str, dtype: DTypeLike, xs: tuple, weights: Any, state: Any, pos: jax.Array | None, **options: Any
    ) -> tuple[Any, Any]:
        return with_dtype(self.module, dtype).apply({"params": weights}, xs[0], state, pos, form, **options)

    def inputs(self, key: jax.Array, time: int, dtype: DTypeLike) -> jax.Array:
        return jax.random.randint(key, (BATCH, time), 0, self.module.vocab, jnp.int32)

    def boxed(self, module: nn.Module, key: jax.Array, x: jax.Array) -> dict:
        # Losses are also sown in init; `module.init` drops them. There must be no other collection.
        return nn.Module.init(module, key, x, mutable=nn.DenyList(["intermediates", "losses"]))

    def initial(self, module: nn.Module, key: jax.Array, x: jax.Array) -> Any:
        return module.init(key, x)["params"]

    def output_dtype(self, dtype: DTypeLike) -> np.dtype:
        return np.promote_types(dtype, np.float32)

    def rows(self, state: Any, rows: slice) -> Any:
        segments = jax.tree.map(lambda s: s[:, rows], state.segments)  # [repeats, B, ...]
        return state._replace(segments=segments, next_pos_B=state.next_pos_B[rows])

    def replace_rows(self, state: Any, other: Any, rows: np.ndarray, axis: int = 0) -> Any:
        segments = super().replace_rows(state.segments, other.segments, rows, axis + 1)
        return state._replace(segments=segments, next_pos_B=super().replace_rows(state.next_pos_B, other.next_pos_B, rows))
