"""Base of all networks: parameters as plain arrays or boxed with metadata, scanned layers, checks of config fields."""

import contextlib
import contextvars
from collections.abc import Callable, Container, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.errors import UserError
from jaxseq.layers import metadata

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}
BYTE_VOCAB = 257  # 256 bytes and the document boundary; used if a config sets no vocabulary
REMAT = {
    "none": None,  # store all activations
    "full": jax.checkpoint_policies.nothing_saveable,  # store the input of each layer, recompute the rest
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # store the outputs of matrix products
}


_unscanned = contextvars.ContextVar("unscanned", default=False)


@contextlib.contextmanager
def unscanned() -> Iterator[None]:
    """Context manager: functions traced inside unroll their layers instead of scanning; parameters and results are the same."""
    token = _unscanned.set(True)
    try:
        yield
    finally:
        _unscanned.reset(token)


class Network(nn.Module):
    """Base of whole models. A subclass defines `example`, inputs with valid shapes and dtypes."""

    collections: ClassVar[tuple[str, ...]] = ("params",)  # collections that `init` returns
    optional: ClassVar[tuple[str, ...]] = ()  # parameters that fine-tuning may add or leave out

    @nn.nowrap
    def example(self) -> tuple:
        """Example inputs for `init`."""
        raise NotImplementedError(f"{type(self).__name__} has no example of its inputs")

    @property
    def capacity(self) -> int | None:
        """Maximum number of tokens in a document; None: no limit."""
        return None

    @nn.nowrap
    def check_length(self, tokens: int) -> None:
        """Raises UserError if a document of this many tokens exceeds `capacity`. Call it outside jit, where positions are
        concrete."""
        if self.capacity is not None and tokens > self.capacity:
            raise UserError(
                f"this model has learned {self.capacity} positions and cannot read {tokens} tokens; "
                "give it fewer, or raise model.max_positions and train"
            )

    @nn.nowrap
    def check_positions(self, tokens_BT: jax.Array, pos_BT: jax.Array | None) -> None:
        """`check_length` for the tokens of one call; inside jit a given `pos` is not concrete and not checked."""
        if pos_BT is None:
            self.check_length(tokens_BT.shape[1])
        elif not isinstance(pos_BT, jax.core.Tracer) and np.size(pos_BT):
            self.check_length(int(np.max(np.asarray(pos_BT))) + 1)  # np, because jnp would trace it inside jit

    @nn.nowrap
    def init(self, rngs: Any, *inputs: Any, **kwargs: Any) -> dict:
        """{collection: tree of plain arrays}; see `boxed` for the metadata. Default inputs: those of `example`.

        It is compiled as one program, in which only the parameters are computed and not the outputs.
        """

        def initial(rngs, inputs):
            return nn.meta.unbox(super(Network, self).init(rngs, *inputs, mutable=self.collections, **kwargs))

        return jax.jit(initial)(rngs, inputs or self.example())

    @nn.nowrap
    def boxed(self) -> dict:
        """{collection: tree of jaxseq.layers.Parameter around ShapeDtypeStructs}: logical axes and optimiser groups."""

        def init(key):
            # Only traced: the example takes no memory.
            return super(Network, self).init(key, *self.example(), mutable=self.collections)

        return metadata(jax.eval_shape(init, jax.random.key(0)))


def scan(
    layer: nn.Module, repeats: int, carry: Any, xs: Any, call: Callable, remat: str = "none", distinct: int | None = None
) -> tuple[Any, Any]:
    """Apply `repeats` copies of `layer` in sequence, `carry, y = call(layer, carry, x)`, compiled once; returns (carry, ys).

    xs, ys: leaves [repeats, …], one slice per copy. Values that `call` closes over are shared by all copies. distinct: the
    number of copies with their own weights (None: all). Each is applied repeats / distinct times in succession; values that it
    sows have the axes [distinct, repeats / distinct, …].
    """
    body = call if remat == "none" else nn.remat(call, prevent_cse=False, policy=REMAT[remat])
    axes, rngs = {"batch_stats": 0, "losses": 0, "intermediates": 0, "calibration": 0}, {"params": True, "dropout": True}
    if distinct is None or distinct == repeats:
        return _scanned(body, repeats, variable_axes=axes | {"params": 0}, split_rngs=rngs)(layer, carry, xs)
    times = repeats // distinct
    again = _scanned(body, times, variable_axes=axes, variable_broadcast="params", split_rngs=rngs | {"params": False})

    def applied(layer, carry, xs):
        if not layer.is_initializing():
            return again(layer, carry, xs)
        carry, y = body(layer, carry, jax.tree.map(lambda x: x[0], xs))  # initialisers may read the number of the layer
        return carry, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (times, *leaf.shape)), y)

    xs = jax.tree.map(lambda x: x.reshape(distinct, times, *x.shape[1:]), xs)
    scanned = _scanned(applied, distinct, variable_axes=axes | {"params": 0}, split_rngs=rngs)
    carry, ys = scanned(layer, carry, xs)
    return carry, jax.tree.map(lambda y: y.reshape(repeats, *y.shape[2:]), ys)


def _scanned(body: Callable, length: int, **options: Any) -> Callable:
    unroll = length if _unscanned.get() else 1
    return nn.scan(body, length=length, unroll=unroll, metadata_params={nn.PARTITION_NAME: "layers"}, **options)


def fields(model: ConfigDict) -> dict[str, Any]:
    """The fields of `config.model` that are fields of the network."""
    return {name: value for name, value in model.to_dict().items() if name not in ("kind", "weights")}


def check(model: ConfigDict | dict, **known: Container[str]) -> None:
    """Raises UserError if the value of one of these fields is not among its known values."""
    for field, choices in known.items():
        if model[field] not in choices:
            raise UserError(f"there is no model.{field} {model[field]!r}; choose one of: {', '.join(choices)}")
