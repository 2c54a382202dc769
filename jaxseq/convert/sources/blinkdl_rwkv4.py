"""RWKV-4 (Pile, World, Raven): checkpoints of BlinkDL's trainer."""

from collections.abc import Mapping

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert._table import Entry, same
from jaxseq.convert.sources import _blinkdl
from jaxseq.convert.sources._blinkdl import ATT


def recognises(theirs: dict, names: set[str]) -> bool:
    return _blinkdl.recognises(names, "att.time_mix_k", "att.ln_x.weight")


def infer(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    return _blinkdl.infer(shapes)


def config(theirs: dict) -> ConfigDict:
    return finish(_blinkdl.config(theirs, f"{theirs['n_layer']}*(rwkv4 rwkv_channel)"))


def describe(model: nn.Module) -> dict | None:
    mixers = _blinkdl.mixers(model, "RWKV4")
    return mixers and _blinkdl.describe(model, mixers)


def entries(theirs: dict) -> list[Entry]:
    def time_mix(ours, layers):
        table = _blinkdl.matrices(ours, ATT, "rkvo", layers)
        table += [_blinkdl.flat(f"{ours}/mix_{kind}", f"{ATT}.time_mix_{kind}", theirs, layers) for kind in "rkv"]
        return table + [same(f"{ours}/{name}", f"{ATT}.{name}", layers) for name in ("time_decay", "time_first")]

    return _blinkdl.entries(theirs, {"rwkv4": time_mix}, "time_mix", "kr", [theirs["n_layer"]])
