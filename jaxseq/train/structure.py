"""The types of a run's weights: those of config.model.weights, and adapters of low rank for fine-tuning (train.lora_rank)."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq import weights
from jaxseq.errors import UserError
from jaxseq.weights import Adapted


def boxed(config, model: nn.Module, adapters: bool = True) -> dict:
    """`model.boxed()` with the types of weights that `config` gives its parameters.

    adapters: with those of train.lora_rank. Raises UserError for types that do not fit the model.
    """
    variables = model.boxed()
    boxes = weights.typed(variables["params"], config.model.weights)
    if adapters and config.train.lora_rank:
        boxes = _with_adapters(config.train, variables["params"], boxes)
    return variables | {"params": boxes}


def check(config) -> None:
    """Raises UserError for a run that would start from random values of weights that need given ones."""
    if config.train.init:
        return
    if config.model.weights:
        raise UserError("this model was compressed, so it has no random initial values; give its workdir as train.init")
    if config.train.lora_rank:
        raise UserError("train.lora_rank trains a small change of given weights; give their workdir as train.init")


def targets(train, boxes: Any) -> dict[str, Any]:
    """{path: box} of the linear maps that get adapters: those whose path contains one of train.lora_targets, all by default."""
    wanted = [word.strip() for word in train.lora_targets.split(",") if word.strip()]
    maps = {path: box for path, box in weights.leaves(boxes).items() if box.contracts and box.contracts != (-1,)}
    found = {path: box for path, box in maps.items() if not wanted or any(word in path for word in wanted)}
    if not found:
        raise UserError(f"train.lora_targets={train.lora_targets} is part of no linear map; choose from: {', '.join(maps)}")
    return found


def _with_adapters(train, plain: Any, boxes: Any) -> Any:
    """boxes with an Adapted in place of each target. plain: those of the dense model."""
    own = weights.leaves(plain)

    def adapted(path: str, base: Any) -> Adapted:
        box = own[path]
        a, b = weights.factors(box, train.lora_rank)
        size = weights.leading(box)
        names = (*box.names[:size], *(None,) * len(box.contracts), *box.names[size + len(box.contracts) :])
        shape = (*box.value.shape[:size], *(1,) * len(box.contracts), *box.value.shape[size + len(box.contracts) :])
        magnitude = weights.box_like(box, shape, names) if train.lora_magnitude else None
        return Adapted(base, a, b, magnitude, len(box.contracts), train.lora_alpha / train.lora_rank)

    wanted = targets(train, plain)
    nodes = {path: weights.at(boxes, path) for path in wanted}
    return weights.replaced(boxes, {path: adapted(path, node) for path, node in nodes.items()}, weights.is_node)


def adapt(params: Any, boxes: Any, key: jax.Array) -> Any:
    """The parameters with new adapters, which change nothing yet: a is uniform in +-1/sqrt(inputs), b zero (PEFT's default).

    boxes: those with adapters, as from `boxed`.
    """
    nodes = jax.tree_util.tree_leaves_with_path(boxes, is_leaf=lambda node: isinstance(node, Adapted))
    new = {}
    for number, (keys, node) in enumerate(nodes):
        if not isinstance(node, Adapted):
            continue
        path = weights.path_of(keys)
        base = weights.at(params, path)
        a, b, leads = node.a.value, node.b.value, node.a.value.ndim - node.inputs - 1
        bound = math.prod(a.shape[leads:-1]) ** -0.5
        start = jax.random.uniform(jax.random.fold_in(key, number), a.shape, a.dtype, -bound, bound)
        magnitude = node.magnitude and weights.norms(weights.dense(base, a.dtype), node.inputs, leads)
        new[path] = Adapted(base, start, jnp.zeros(b.shape, b.dtype), magnitude, node.inputs, node.scale)
    return weights.replaced(params, new, weights.is_node)
