"""A mixture of experts from dense feed-forwards: experts:8 makes 8 copies of each, and a new router (sparse upcycling,
Komatsuzaki et al. 2022, arXiv:2212.05055, §3). Each token goes to two of them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseq import recipes, weights
from jaxseq.errors import UserError
from jaxseq.grow._expand import factor
from jaxseq.mixers.geglu import GeGLU
from jaxseq.mixers.mlp import MLP
from jaxseq.mixers.swiglu import SwiGLU
from jaxseq.models import _stack

TOP_K = 2
ROUTER_STD = 0.02  # of the router's initial values, §A.1.2


def apply(work: recipes.Candidate, argument: str, key: jax.Array) -> recipes.Candidate:
    """A model with `moe` in place of each feed-forward. The weights of a token's experts sum to 1, so equal experts compute what
    the dense feed-forward did. In training they become different because they get different tokens."""
    experts = factor(argument, "experts")
    segments, fields, dense = list(_stack.parse(work.config.model.stack)), {}, {}
    for n, (block, segment) in enumerate(zip(work.model.blocks, segments, strict=True)):
        own = [_fields(mixer, experts) for mixer in block.mixers]
        labels = tuple(_label(label) if new else label for label, new in zip(segment.labels, own, strict=True))
        for label, mixer, path, new in zip(labels, block.mixers, _stack.paths(labels), own, strict=True):
            dense |= {(f"blocks_{n}", path): mixer.name} if new else {}
            fields |= {f"model.{label}.{name}": value for name, value in new.items()}
        segments[n] = segment._replace(labels=labels)
    if not dense:
        raise UserError("this model has no feed-forward that experts could replace (mlp, swiglu or geglu)")
    larger, old = work.configured({"model.stack": _stack.text(segments)} | fields), weights.leaves(work.params)

    def array(path: str, box: Any) -> jax.Array:
        block, _, inside = path.partition("/")
        owner, _, name = inside.partition("/")
        if (block, owner) not in dense:
            for (at, new), mixer in dense.items():
                if at == block and owner.endswith(f"_{new}"):  # the norm before a feed-forward is named after it
                    return old[f"{block}/{owner.removesuffix(new)}{mixer}/{name}"]
            return old[path]
        if name.startswith("router/"):
            return ROUTER_STD * jax.random.normal(key, box.value.shape) * name.endswith("kernel")
        name = f"{name.removesuffix('_bias')}/bias" if name.endswith("_bias") else f"{name}/kernel"
        return jnp.repeat(old[f"{block}/{dense[block, owner]}/{name}"][:, None], experts, axis=1)

    arrays = {path: array(path, box) for path, box in weights.leaves(larger.plain).items()}
    return dataclasses.replace(larger, params=weights.replaced(larger.plain, arrays))


def _label(label: str) -> str:
    """The label of the experts: "mlp" becomes "moe:mlp", "mlp:wide" becomes "moe:wide"."""
    return f"moe:{label.rpartition(':')[2]}"


def _fields(mixer: nn.Module, experts: int) -> dict[str, Any]:
    """The fields of the mixer `moe`; none for a mixer that is no feed-forward."""
    if type(mixer) not in (MLP, SwiGLU, GeGLU):
        return {}
    fields = {"experts": experts, "top_k": TOP_K, "hidden": mixer.features, "initial": mixer.initial, "init_std": mixer.init_std}
    gated, bias = not isinstance(mixer, MLP), getattr(mixer, "bias", False)
    return fields | {"gated": gated, "bias": bias, "activation": getattr(mixer, "activation", "silu")}
