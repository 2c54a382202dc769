"""What all networks have in common: parameters as plain arrays or boxed with metadata, scanned layers, fields of a config."""

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
BYTE_VOCAB = 257  # 256 bytes and the document boundary, for a config that names no vocabulary
REMAT = {
    "none": None,  # keep every activation
    "full": jax.checkpoint_policies.nothing_saveable,  # keep each layer's input, compute the rest again
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep the outputs of matrix products
}


_unscanned = contextvars.ContextVar("unscanned", default=False)


@contextlib.contextmanager
def unscanned() -> Iterator[None]:
    """What is traced within it has its layers one after another instead of in a loop; parameters and results are the same."""
    token = _unscanned.set(True)
    try:
        yield
    finally:
        _unscanned.reset(token)


class Network(nn.Module):
    """A whole model; what inherits says in `example` what inputs look like."""

    collections: ClassVar[tuple[str, ...]] = ("params",)  # what `init` makes
    optional: ClassVar[tuple[str, ...]] = ()  # parameters that fine-tuning may add or leave out

    @nn.nowrap
    def example(self) -> tuple:
        """Inputs that `init` can be given."""
        raise NotImplementedError(f"{type(self).__name__} has no example of its inputs")

    @property
    def capacity(self) -> int | None:
        """Tokens of one document that the model can read; None: any number."""
        return None

    @nn.nowrap
    def check_length(self, tokens: int) -> None:
        """Raises UserError where a document of so many tokens is longer than the model can read. Ask it before a loop is
        compiled: inside, positions are no longer known."""
        if self.capacity is not None and tokens > self.capacity:
            raise UserError(
                f"this model has learned {self.capacity} positions and cannot read {tokens} tokens; "
                "give it fewer, or raise model.max_positions and train"
            )

    @nn.nowrap
    def check_positions(self, tokens_BT: jax.Array, pos_BT: jax.Array | None) -> None:
        """The same of one call's tokens, as far as their positions are known: inside jit those that are given are not."""
        if pos_BT is None:
            self.check_length(tokens_BT.shape[1])
        elif not isinstance(pos_BT, jax.core.Tracer) and np.size(pos_BT):
            self.check_length(int(np.max(np.asarray(pos_BT))) + 1)  # jnp would trace it inside jit

    @nn.nowrap
    def init(self, rngs, *inputs, **kwargs) -> dict:
        """{collection: tree of plain arrays}; the metadata boxes are in `boxed`. Without inputs: those of `example`."""
        return nn.meta.unbox(super().init(rngs, *(inputs or self.example()), mutable=self.collections, **kwargs))

    @nn.nowrap
    def boxed(self) -> dict:
        """{collection: tree of jaxseq.layers.Parameter around ShapeDtypeStructs}: logical axes and optimiser groups."""

        def init(*inputs):
            return super(Network, self).init(*inputs, mutable=self.collections)

        return metadata(jax.eval_shape(init, jax.random.key(0), *self.example()))


def scan(layer: nn.Module, repeats: int, carry: Any, xs: Any, call: Callable, remat: str = "none") -> tuple[Any, Any]:
    """carry, ys: `repeats` copies of `layer` one after another, `carry, y = call(layer, carry, x)`; compiled once.

    xs, ys: leaves [repeats, …], one slice a copy. What `call` closes over is the same for all of them.
    """
    body = call if remat == "none" else nn.remat(call, prevent_cse=False, policy=REMAT[remat])
    scanned = nn.scan(
        body,
        variable_axes={"params": 0, "batch_stats": 0, "losses": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=0,
        out_axes=0,
        length=repeats,
        unroll=repeats if _unscanned.get() else 1,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(layer, carry, xs)


def check(model: ConfigDict | dict, **known: Container[str]) -> None:
    """Raises UserError for the first of these fields whose value is none of the known ones."""
    for field, choices in known.items():
        if model[field] not in choices:
            raise UserError(f"there is no model.{field} {model[field]!r}; choose one of: {', '.join(choices)}")
