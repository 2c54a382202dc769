"""Parameters of a language model in another segmentation of the stack.

"4*(attention swiglu)" and "2*(attention swiglu attention swiglu)" are the same network if each mixer has its own residual
connection. The second can hold different mixers in even and odd layers and is still scanned.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxseq.blocks._block import Serial
from jaxseq.errors import UserError
from jaxseq.layers import Mixer
from jaxseq.models.lm import LM


class Placed(NamedTuple):
    """A mixer of one layer."""

    segment: int
    repeat: int
    mixer: Mixer


def places(model: LM) -> list[Placed]:
    """All mixers in the order of the network."""
    segments = enumerate(zip(model.repeats, model.blocks, strict=True))
    return [Placed(n, repeat, mixer) for n, (repeats, block) in segments for repeat in range(repeats) for mixer in block.mixers]


def check(old: LM, new: LM) -> None:
    """Raises UserError if parameters of `old` cannot be arranged for `new`."""
    if old.distinct or new.distinct:
        raise UserError("layers that share weights cannot be changed one by one; choose a model without / in model.stack")
    shape = lambda model: [(n, len(block.mixers)) for n, block in zip(model.repeats, model.blocks, strict=True)]  # noqa: E731
    count = lambda model: sum(n * mixers for n, mixers in shape(model))  # noqa: E731
    if count(old) != count(new) or old.width != new.width:
        raise UserError(
            f"the models have {count(old)} and {count(new)} mixers of width {old.width} and {new.width}; they must be alike"
        )
    kinds = {type(block).__name__ for model in (old, new) for block in model.blocks}
    if len(kinds) > 1:
        raise UserError(f"the models have different blocks, {' and '.join(sorted(kinds))}; make model.block that of the teacher")
    if shape(old) != shape(new) and not isinstance(old.blocks[0], Serial):
        raise UserError(f"the mixers of a block of kind {kinds.pop()} are not one after another; change all layers alike")


def restacked(params: dict[str, Any], old: LM, new: LM) -> dict[str, Any]:
    """The parameters of `old`, arranged as those of `new`: mixer by mixer in the order of the network.

    Entries with a mixer's name (its own parameters, its norms) get the name of the new mixer at that place, whatever its kind.
    Parameters outside of blocks are unchanged.
    """
    found = {name: value for name, value in params.items() if not name.startswith("blocks_")}
    sources = places(old)
    for n, (repeats, block) in enumerate(zip(new.repeats, new.blocks, strict=True)):
        count, entries = len(block.mixers), {}
        for index, mixer in enumerate(block.mixers):
            parts = [_entries(params, old, place) for place in sources[index : count * repeats : count]]
            for before, after in parts[0]:
                slices = [part[before, after] for part in parts]
                entries[f"{before}{mixer.name}{after}"] = jax.tree.map(lambda *rows: jnp.stack(rows), *slices)
        found[f"blocks_{n}"], sources = entries, sources[count * repeats :]
    return found


def _entries(params: dict[str, Any], model: LM, place: Placed) -> dict[tuple[str, str], Any]:
    """{(before, after): parameters of one layer} for the entries of its block named BEFORE + name of the mixer + AFTER."""
    names, found = [mixer.name for mixer in model.blocks[place.segment].mixers], {}
    for name, value in params[f"blocks_{place.segment}"].items():
        parts = owner(name, names)
        if parts is None:
            raise UserError(f"{name} belongs to none of the mixers of its block, so they cannot be changed one by one")
        before, mixer, after = parts
        if mixer == place.mixer.name:
            found[before, after] = jax.tree.map(lambda x: x[place.repeat], value)
    return found


def owner(name: str, mixers: Iterable[str]) -> tuple[str, str, str] | None:
    """(before, mixer, after) of an entry of a block's parameters that is named BEFORE + a mixer's name + AFTER: the mixer's own
    parameters, its norms, or its shortcuts. None for any other entry."""
    known = "|".join(sorted(map(re.escape, mixers), key=len, reverse=True))  # attention_1 before attention
    match = re.fullmatch(rf"(norm_|shortcut_|)({known})(_out|_\d+_down|_\d+_up|)", name)
    return (match[1], match[2], match[3]) if match else None
