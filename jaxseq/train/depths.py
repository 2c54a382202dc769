"""A language model that starts from some of the layers of another one (train.init_layers).

    train.init_layers=even      blocks at equal distances, the first and the last of the other model among them
    train.init_layers=0,10,29   these blocks, one for each block of the new model (Sanh et al. 2019, arXiv:1910.01108, §3)

Blocks with shared weights count once. The mixers of two blocks correspond in their order, whatever their kinds: norms are taken
over, and a mixer's own parameters where name and shape agree. If the new model has fewer key heads, each is the mean of those
that it replaces (Ainslie et al. 2023, arXiv:2305.13245, §2.1). Everything else of a mixer has new values. All parameters outside
of blocks, such as the embedding, are taken over.
"""

import logging
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

import jaxseq
from jaxseq import weights
from jaxseq.convert import abstract
from jaxseq.errors import UserError
from jaxseq.models import restack
from jaxseq.models.lm import LM
from jaxseq.train.weights import initial
from jaxseq.train.workdirs import saved_config

EVEN = "even"
KEYS = ("k", "v")  # maps whose heads can be averaged
log = logging.getLogger(__name__)


def check(config: ConfigDict, model: nn.Module) -> None:
    """Raises UserError if train.init_layers cannot be applied."""
    old = _source(config, model)
    jax.eval_shape(
        lambda params, fresh: started(params, old, fresh, cast(LM, model), config.train.init_layers).params,
        abstract(old), abstract(model),
    )  # fmt: skip


def start(config: ConfigDict, model: nn.Module, fresh: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """The variables that a run of `config` with train.init_layers starts from. fresh: random ones."""
    old = _source(config, model)
    new: list[str] = []
    given = initial(config.train.init, config, old, mesh)["params"]

    def mapped(params: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
        found = started(params, old, fresh, cast(LM, model), config.train.init_layers)
        new.extend(found.new)
        return found.params

    shardings = jax.tree.map(lambda x: x.sharding, fresh["params"])
    params = jax.jit(mapped, out_shardings=shardings)(given, fresh["params"])
    if new:
        log.info("not taken over from %s: %s", config.train.init, ", ".join(new))
    return fresh | {"params": params}


def _source(config: ConfigDict, model: nn.Module) -> LM:
    """The model of train.init."""
    saved = saved_config(config.train.init) if config.train.init else None
    if saved is None:
        raise UserError("train.init_layers chooses layers of another model; give the workdir of that model as train.init")
    old = jaxseq.build(saved)
    if not isinstance(old, LM) or not isinstance(model, LM):
        raise UserError("train.init_layers is for causal language models; leave it out")
    if config.model.weights:
        raise UserError("train.init_layers takes plain weights over; leave model.weights out, so that compressed ones are merged")
    return old


class Started(NamedTuple):
    """params: of the new model. new: paths of those that are not taken over."""

    params: dict[str, Any]
    new: list[str]


def started(params: dict[str, Any], old: LM, fresh: dict[str, Any], model: LM, layers: str) -> Started:
    """The parameters of `model`: those of `old` where it has some, else `fresh`.

    layers: see above. Raises UserError for layers that do not exist, and for models that differ outside of blocks or in the
    number of mixers of a block.
    """
    given = weights.leaves(params)
    new: list[str] = []
    sources = chosen(layers, len(_blocks(model)), len(_blocks(old)))
    rows: dict[str, list[Any]] = {}
    for (n, i), source in zip(_blocks(model), sources, strict=True):
        m, j = _blocks(old)[source]
        theirs = {path: x[j] for path, x in given.items() if path.startswith(f"blocks_{m}/")}
        for path, x in weights.leaves(fresh).items():
            if path.startswith(f"blocks_{n}/"):
                value = _fitting(theirs.get(_counterpart(path, model, old, n, m)), x.shape[1:], path)
                new += [path] if value is None and path not in new else []
                rows.setdefault(path, []).append(x[i] if value is None else value)
    found = {path: jnp.stack(values) for path, values in rows.items()}
    for path, x in weights.leaves(fresh).items():
        if not path.startswith("blocks_"):
            if path not in given or given[path].shape != x.shape:
                found_there = given[path].shape if path in given else "missing"
                raise UserError(
                    f"{path} is {found_there} in train.init, here it is {x.shape}; train.init_layers needs models that are alike "
                    "outside of their layers"
                )
            found[path] = given[path]
    return Started(weights.replaced(fresh, found, None), new)


def chosen(layers: str, new: int, old: int) -> list[int]:
    """The number of the old block that each new one starts from. Raises UserError unless `layers` is as described above."""
    if layers == EVEN:
        return [int(k) for k in np.linspace(0, old - 1, new).round()]
    words = [word.strip() for word in layers.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words) or len(words) != new or max(map(int, words)) >= old:
        raise UserError(
            f"train.init_layers={layers} must be {EVEN}, or {new} numbers from 0 to {old - 1} separated by commas: a layer of "
            "train.init for each layer of this model"
        )
    return [int(word) for word in words]


def _blocks(model: LM) -> list[tuple[int, int]]:
    """(segment, row) of each block with weights of its own."""
    return [(n, i) for n, own in enumerate(model.distinct or model.repeats) for i in range(own)]


def _counterpart(path: str, model: LM, old: LM, n: int, m: int) -> str:
    """The path in segment m of `old` of a parameter in segment n of `model`."""
    ours, theirs = ([mixer.name for mixer in which.blocks[k].mixers] for which, k in ((model, n), (old, m)))
    if len(ours) != len(theirs):
        raise UserError(
            f"blocks of {' '.join(theirs)} and of {' '.join(ours)} have different numbers of mixers; train.init_layers needs "
            "equal numbers: change model.stack"
        )
    _, entry, rest = path.split("/", 2) if path.count("/") > 1 else (*path.split("/"), "")
    if parts := restack.owner(entry, ours):
        entry = f"{parts[0]}{theirs[ours.index(parts[1])]}{parts[2]}"
    return "/".join(filter(None, (f"blocks_{m}", entry, rest)))


def _fitting(x: jax.Array | None, shape: tuple[int, ...], path: str) -> jax.Array | None:
    """x, or the means of its groups of key heads, in this shape; None if it does not fit."""
    if x is None or x.shape == shape:
        return x
    *_, name, leaf = path.split("/")
    axis = 0 if leaf == "bias" else 1  # of the heads in a kernel [D, H, K] or a bias [H, K]
    alike = len(x.shape) == len(shape) > axis and x.shape[:axis] + x.shape[axis + 1 :] == shape[:axis] + shape[axis + 1 :]
    if name not in KEYS or not alike or x.shape[axis] % shape[axis]:
        return None
    return cast(jax.Array, x.reshape(*shape[: axis + 1], -1, *shape[axis + 1 :])).mean(axis + 1)
