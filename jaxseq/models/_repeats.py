"""What differs between the repetitions of a block that shares its weights: a scale, and changes of low rank."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq import weights
from jaxseq.call import Call, Mixed
from jaxseq.layers import Parameter, metadata, param, uniform
from jaxseq.weights import Adapted


class Own(NamedTuple):
    """The parameters of repetitions of a block; () for none of this kind. In each array the first axis is the repetition."""

    scale: Any = ()  # [N, D]
    changes: Any = ()  # {path of a matrix in the block: an Adapted with a [N, …, R] and b [N, R, …], and no base}


class Changes(nn.Module):
    """The parameters of all N repetitions of a block. They start without an effect.

    scale: the repetition computes y + s (y - x) with y = block(x) and its own s [D], initially zero. rank: each matrix W of the
    block is W + a b in the repetition, b initially zero (Relaxed Recursive Transformers, Bae et al. 2024, arXiv:2410.20672, §2.2;
    there a b starts as the truncated SVD of the difference from the layers of a model without sharing).
    """

    block: nn.Module
    repeats: int
    width: int
    rank: int = 0
    scale: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> Own:
        zeros, changes = nn.initializers.zeros, {}
        shape, axes = (self.repeats, self.width), ("layers", "norm")
        scale = param(self, "scale", zeros, shape, axes, decay=False) if self.scale else ()
        for path, box in _matrices(self.block, self.width, self.dtype).items() if self.rank else ():
            factors, leads = weights.factors(box, self.rank), weights.leading(box)
            first = uniform(math.prod(box.value.shape[leads : leads + len(box.contracts)]) ** -0.5)
            a, b = (
                self._stacked(f"{path.replace('/', '_')}_{name}", factor, init)
                for name, factor, init in zip("ab", factors, (first, zeros), strict=True)
            )
            changes[path] = Adapted(None, a, b, None, len(box.contracts), 1.0)
        return Own(scale, changes)

    def _stacked(self, name: str, box: Parameter, init: Any) -> Any:
        shape, axes = (self.repeats, *box.value.shape), ("layers", *box.names)
        return param(self, name, init, shape, axes, contracts=box.contracts)


def _matrices(block: nn.Module, width: int, dtype: Any) -> dict[str, Parameter]:
    """The boxes of a block's matrices by their path."""

    def init():
        x_BTD, pos_BT = jnp.zeros((1, 2, width), dtype), jnp.arange(2, dtype=jnp.int32)[None]
        return block.clone(parent=None, name=None).init(jax.random.key(0), x_BTD, None, Call.of(pos_BT), mutable="params")

    boxes = weights.leaves(metadata(jax.eval_shape(init))["params"])
    return {path: box for path, box in boxes.items() if box.contracts}


def run(block: nn.Module, own: Own, x_BTD: jax.Array, state: Any, call: Call) -> Mixed:
    """One repetition of a block, with its own parameters."""

    def changed(variables):
        """The block's parameters with W + a b in place of W."""
        params = variables["params"]
        new = {path: dataclasses.replace(change, base=weights.at(params, path)) for path, change in own.changes.items()}
        return variables | {"params": weights.replaced(params, new, weights.is_node)}

    call_block = lambda block, *args: block(*args)  # noqa: E731
    if own.changes and not block.is_initializing():
        call_block = nn.map_variables(call_block, "params", trans_in_fn=changed)
    mixed = call_block(block, x_BTD, state, call)
    if isinstance(own.scale, tuple):
        return mixed
    y_BTD = mixed.y_BTD
    return mixed._replace(y_BTD=y_BTD + (own.scale * (y_BTD - x_BTD)).astype(y_BTD.dtype))
