"""Assigns types of weights to parameters, and separates trained from frozen leaves."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxseq.errors import UserError
from jaxseq.weights._base import Weight, is_weight
from jaxseq.weights._quantized import CODES, QuantizedWeight
from jaxseq.weights._ranks import Adapted, Factored, Sparse

TYPES: dict[str, Callable[[Any, str], Weight]] = {
    **{kind: functools.partial(QuantizedWeight.boxes, kind=kind) for kind in CODES},
    "sparse": Sparse.boxes,
    "factored": Factored.boxes,
}
_RULE = re.compile(r"\s*([a-z0-9]+)(?::(\d{1,6}))?\s*=\s*([^=;]+?)\s*")


def rules(text: str) -> list[tuple[str, str, list[str]]]:
    """(type, argument, paths) of each rule. Raises UserError for text that is not a list of rules."""
    found = []
    for part in text.split(";") if text.strip() else ():
        match = _RULE.fullmatch(part)
        if not match or match[1] not in TYPES or (match[1] == "factored") != (int(match[2] or 0) > 0):
            raise UserError(f"cannot read {part.strip()[:60]!r} in model.weights; write rules like int8 = blocks_0/mlp/up/kernel")
        found.append((match[1], match[2] or "", match[3].split()))
    return found


def path_of(keys: tuple) -> str:
    """The path of a parameter, such as blocks_0/attention/q/kernel."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _is_box(node: Any) -> bool:
    return hasattr(node, "contracts")


def leaves(tree: Any) -> dict[str, Any]:
    """{path: leaf} of a tree; boxes of parameters are leaves."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_box)}


def replaced(tree: Any, new: Mapping[str, Any], is_leaf: Callable[[Any], bool] | None = _is_box) -> Any:
    """The tree with the leaves at some paths replaced."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: new.get(path_of(keys), leaf), tree, is_leaf=is_leaf)


def typed(boxes: Any, text: str) -> Any:
    """The boxes of a dense model's parameters, with the types that `text` (config.model.weights) assigns.

    Raises UserError for a rule that does not fit the model.
    """
    for kind, argument, paths in rules(text):
        known, new = leaves(boxes), {}
        for path in paths:
            if not getattr(known.get(path), "contracts", ()):
                raise UserError(f"model.weights makes {path} {kind}, but this model has no such matrix; change model.weights")
            new[path] = TYPES[kind](known[path], argument)
        boxes = replaced(boxes, new)
    return boxes


def is_node(node: Any) -> bool:
    """Whether a node of the tree is a whole parameter: a Weight or a box."""
    return is_weight(node) or _is_box(node)


def at(tree: Any, path: str) -> Any:
    """The array, box or Weight of the parameter at a path."""
    return next(node for keys, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_node) if path_of(keys) == path)


def merged(tree: Any) -> Any:
    """The tree with each Weight replaced by its dense array."""
    return jax.tree.map(lambda node: node.dense() if is_weight(node) else node, tree, is_leaf=is_weight)


def _trained(tree: Any) -> Any:
    """A tree of bools: whether a leaf is trained. If the tree has adapters, only these are trained."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Adapted))
    adapted = any(isinstance(node, Adapted) for node in nodes)

    def of(node: Any, free: bool) -> Any:
        if not is_weight(node):
            return free
        free = free or isinstance(node, Adapted)
        parts = {f.name: getattr(node, f.name) for f in dataclasses.fields(node) if f.name not in node.static}
        known = {name: inside(part, free and name in node.trained) for name, part in parts.items()}
        return dataclasses.replace(node, **known)

    def inside(part: Any, free: bool) -> Any:
        return jax.tree.map(lambda node: of(node, free), part, is_leaf=is_node)

    return inside(tree, not adapted)


def parted(tree: Any) -> tuple[Any, Any]:
    """(trained leaves, frozen leaves), each a tree with None for the others; (tree, None) if all are trained."""
    keep = _trained(tree)
    if all(jax.tree.leaves(keep)):
        return tree, None
    pick = lambda wanted: jax.tree.map(lambda leaf, own: leaf if own == wanted else None, tree, keep, is_leaf=_is_box)  # noqa: E731
    return pick(True), pick(False)


def joined(trained: Any, frozen: Any) -> Any:
    """Inverse of `parted`."""
    if frozen is None:
        return trained
    return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda node: node is None)
