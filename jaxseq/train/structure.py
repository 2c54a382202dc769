"""The types of a run's weights: those of config.model.weights, and those that exist only in training: low-rank adapters for
fine-tuning (train.lora_rank), and weights that are rounded in the forward pass (train.rounding)."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxseq import weights
from jaxseq.errors import UserError
from jaxseq.weights import Adapted, Rounded, Sparse


def boxed(config: ConfigDict, model: nn.Module, training: bool = True) -> dict:
    """`model.boxed()` with the types of weights that `config` assigns to its parameters.

    training: include the types of training. Raises UserError for types that do not fit the model.
    """
    variables = model.boxed()
    boxes = weights.typed(variables["params"], config.model.weights)
    if training and config.train.lora_rank and config.train.rounding:
        raise UserError("train.rounding trains all weights and train.lora_rank only a change of them; set one of the two")
    if training and config.train.lora_rank:
        boxes = _with_adapters(config.train, variables["params"], boxes)
    if training and config.train.rounding:
        boxes = _rounded(config.train.rounding, variables["params"], boxes)
    return variables | {"params": boxes}


def check(config: ConfigDict) -> None:
    """Raises UserError for a run that would start from random weights but needs trained ones."""
    if config.train.init:
        return
    if config.model.weights:
        raise UserError("this model was compressed, so it has no random initial values; give its workdir as train.init")
    if config.train.lora_rank:
        raise UserError("train.lora_rank trains a small change of given weights; give their workdir as train.init")


def settled(config: ConfigDict, params: Any) -> tuple[str, Any]:
    """(config.model.weights, parameters) of a run without the types of training. With adapters, all weights are merged into
    arrays; rounded weights become the arrays before rounding."""
    if config.train.lora_rank:
        return "", jax.jit(weights.merged)(params)
    is_rounded = lambda node: isinstance(node, Rounded)  # noqa: E731
    return config.model.weights, jax.tree.map(lambda node: node.w if is_rounded(node) else node, params, is_leaf=is_rounded)


def _rounded(kind: str, plain: Any, boxes: Any) -> Any:
    """boxes with a Rounded around each matrix that can be quantized in this way and is not yet quantized."""
    if kind not in weights.CODES:
        raise UserError(f"there is no train.rounding={kind}; choose one of: {', '.join(weights.CODES)}")
    own = {path: box for path, box in weights.leaves(plain).items() if box.contracts and weights.fits(box, kind)}
    nodes = {path: weights.at(boxes, path) for path in own}
    new = {
        path: Rounded(node, kind, own[path].contracts)
        for path, node in nodes.items()
        if isinstance(node, Sparse) or not weights.is_weight(node)
    }
    return weights.replaced(boxes, new, weights.is_node)


def targets(train: ConfigDict, boxes: Any) -> dict[str, Any]:
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
    """The parameters with the types that training adds. New adapters change nothing yet: a is uniform in +-1/sqrt(inputs), b zero
    (PEFT's default).

    boxes: as from `boxed`.
    """
    nodes = jax.tree_util.tree_leaves_with_path(boxes, is_leaf=weights.is_node)
    new = {}
    for number, (keys, node) in enumerate(nodes):
        path = weights.path_of(keys)
        if isinstance(node, Rounded):
            new[path] = dataclasses.replace(node, w=weights.at(params, path))
        elif isinstance(node, Adapted):
            new[path] = _new_adapter(weights.at(params, path), node, jax.random.fold_in(key, number))
    return weights.replaced(params, new, weights.is_node)


def _new_adapter(base: Any, boxes: Adapted, key: jax.Array) -> Adapted:
    a, b, leads = boxes.a.value, boxes.b.value, boxes.a.value.ndim - boxes.inputs - 1
    bound = math.prod(a.shape[leads:-1]) ** -0.5
    start = jax.random.uniform(key, a.shape, a.dtype, -bound, bound)
    magnitude = boxes.magnitude and weights.norms(weights.dense(base, a.dtype), boxes.inputs, leads)
    return Adapted(base, start, jnp.zeros(b.shape, b.dtype), magnitude, boxes.inputs, boxes.scale)
