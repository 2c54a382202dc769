"""Fewer state channels in each recurrent mixer: states:0.25 removes a quarter of them, and the state becomes as much smaller.

A state channel is a row of a matrix state (a key channel, or a pair of them where they are rotated), a channel of Mamba's state,
or a mode of a diagonal state space model. Those are removed without which the mixer's output changes least on calibration data:
by sum_t |y_t - y_t without the channel|^2 / sum_t |y_t|^2.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseq import weights
from jaxseq.call import Call
from jaxseq.compress import _units
from jaxseq.compress._states import States, states
from jaxseq.compress._work import Work, share
from jaxseq.errors import UserError
from jaxseq.layers import Mixer
from jaxseq.models import _stack


class Prunable(NamedTuple):
    """A mixer of one segment that has state channels."""

    prefix: str  # of its parameters
    label: str
    mixer: Mixer
    states: States


def apply(work: Work, argument: str) -> Work:
    """A smaller model with a smaller state; the fields of its config change with it."""
    part = share(argument, "states")
    found, left = places(work)
    keep = {place.prefix: place.states.count - round(part * place.states.count) for place in found}
    for place in found:
        if not 0 < keep[place.prefix] < place.states.count:
            left[place.prefix] = f"{part:g} of its {place.states.count} state channels is none or all"
    found = [place for place in found if place.prefix not in left]
    if not found:
        raise UserError(f"no state channels can be removed from this model: {'; '.join(sorted(set(left.values())))}")
    for place in found:
        work.say(f"{place.prefix}: {keep[place.prefix]} of {place.states.count} state channels are kept")
    order = {prefix: np.argsort(-score, axis=-1, kind="stable") for prefix, score in scores(work, found).items()}
    kept = {prefix: np.sort(order[prefix][..., : keep[prefix]], axis=-1) for prefix in order}
    return without(work, found, kept).replaced({}, left)


def places(work: Work) -> tuple[list[Prunable], dict[str, str]]:
    """The mixers that have state channels, and {prefix of its parameters: reason} for each of the others."""
    if "stack" not in work.config.model:
        raise UserError(f"state channels are removed from causal language models only, not from a {work.config.model.kind}")
    found, left = [], {}
    for n, (block, segment) in enumerate(zip(work.model.blocks, _stack.parse(work.config.model.stack), strict=True)):
        for mixer, label in zip(block.mixers, segment.labels, strict=True):
            prefix, own = f"blocks_{n}/{mixer.name}", states(mixer)
            if isinstance(own, str):
                left[prefix] = own
            else:
                _units.plain(work, prefix)
                found.append(Prunable(prefix, label, mixer, own))
    return found, left


def without(work: Work, found: list[Prunable], kept: Mapping[str, np.ndarray]) -> Work:
    """The model with only the state channels kept[prefix] [layers, groups, number], in ascending order, of each mixer."""
    fields: dict[str, Any] = {}
    for place in found:
        fields |= {f"model.{place.label}.{name}": value for name, value in place.states.fields(kept[place.prefix][0, 0]).items()}
    made, arrays = work.configured(fields), weights.leaves(work.params)
    shapes = {path: box.value.shape for path, box in weights.leaves(made.boxes).items()}
    new: dict[str, Any] = {}
    for prefix, _, _, own in found:
        keep_LGN = kept[prefix]
        unit_LGN = own.count * np.arange(own.groups)[:, None] + keep_LGN
        for path in (path for path in own.labels if f"{prefix}/{path}" in arrays):
            rows = zip(np.asarray(arrays[f"{prefix}/{path}"]), unit_LGN, strict=True)
            cut = [x[np.broadcast_to(np.isin(own.labels[path], [-1, *unit_GN.flat]), x.shape)] for x, unit_GN in rows]
            scale = math.sqrt(keep_LGN.shape[2] / own.count) if path in own.scaled else 1.0
            new[f"{prefix}/{path}"] = jnp.asarray(scale * np.stack(cut).reshape(shapes[f"{prefix}/{path}"]))
    return made.with_arrays(new)


def scores(work: Work, found: list[Prunable]) -> dict[str, np.ndarray]:
    """{prefix: change of the output [layers, groups, count] without each state channel, relative to the output}.

    If the kept ones are a field of the config, they are the same in all layers: then each layer has the sum over those with the
    same label.
    """
    form, sums = work.config.train.form, {place.prefix: (0.0, 0.0) for place in found}
    for batch in work.calibration.rows:
        read = _inputs(work.model, form, work.params, batch["tokens"], batch["pos"])
        for prefix, _, mixer, own in found:
            segment, name = prefix.split("/")
            x_LBTD, pos_LBT = read[f"{prefix}/input/0"], read[f"{prefix}/positions/0"]
            params, units = work.params[segment][name], own.groups * own.count
            more = _changes(mixer, form, units, params, dict(own.labels), x_LBTD, pos_LBT)
            sums[prefix] = tuple(a + np.asarray(b, np.float64) for a, b in zip(sums[prefix], more, strict=True))
    relative = {prefix: change_LU / np.maximum(total_L[:, None], 1e-30) for prefix, (change_LU, total_L) in sums.items()}
    result = {p.prefix: relative[p.prefix].reshape(-1, p.states.groups, p.states.count) for p in found}
    for place in found:
        if place.states.shared:
            alike = sum(result[p.prefix].sum(axis=(0, 1)) for p in found if p.label == place.label)
            result[place.prefix] = np.broadcast_to(alike, result[place.prefix].shape)
    return result


@functools.partial(jax.jit, static_argnames=("model", "form"))
def _inputs(model: nn.Module, form: Any, params: Any, tokens_BT: jax.Array, pos_BT: jax.Array) -> dict[str, jax.Array]:
    """{path: the inputs [L, B, T, D] of each mixer, and their positions [L, B, T]}. Another use of the same weights, in a stack
    such as 4/2*(…), is more rows of the batch."""

    def note(function, args, kwargs, context):
        if isinstance(context.module, Mixer) and context.method_name == "__call__":
            x_BTD, _, call = args
            context.module.sow("intermediates", "input", x_BTD)
            context.module.sow("intermediates", "positions", call.pos_BT)
        return function(*args, **kwargs)

    with nn.intercept_methods(note):
        more = {"form": form, "method": "hidden", "mutable": ["intermediates"]}
        _, found = model.apply({"params": params}, tokens_BT, pos=pos_BT, **more)
    kept = {"input": 2, "positions": 1}  # trailing axes that are not merged
    leaves = ((path, x, kept.get(path.split("/")[-2])) for path, x in weights.leaves(found["intermediates"]).items())
    return {path: x.reshape(x.shape[0], -1, *x.shape[x.ndim - axes :]) for path, x, axes in leaves if axes}


@functools.partial(jax.jit, static_argnames=("mixer", "form", "units"))
def _changes(
    mixer: Mixer, form: Any, units: int, params: Any, labels: dict[str, np.ndarray], x_LBTD: jax.Array, pos_LBT: jax.Array
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """(sum of |y - y without the state channel|^2 [L, U] for each of them, sum of |y|^2 [L])."""

    def layer(xs):
        params, x_BTD, pos_BT = xs
        run = lambda params: mixer.apply({"params": params}, x_BTD, None, Call.of(pos_BT, form)).y_BTD  # noqa: E731
        y_BTD, arrays = run(params), weights.leaves(params)

        def change(unit):
            new = {path: jnp.where(own == unit, 0, arrays[path]) for path, own in labels.items() if path in arrays}
            return jnp.sum(jnp.square(run(weights.replaced(params, new, None)) - y_BTD))

        return jax.lax.map(change, jnp.arange(units)), jnp.sum(jnp.square(y_BTD))

    return jax.lax.map(layer, (params, x_LBTD, pos_LBT))
