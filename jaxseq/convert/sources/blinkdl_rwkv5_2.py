"""RWKV-5.2 "Eagle" (World): checkpoints of BlinkDL's trainer."""

from collections.abc import Mapping

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert._table import Entry, same
from jaxseq.convert.sources import _blinkdl
from jaxseq.convert.sources._blinkdl import ATT


def recognises(theirs: dict, names: set[str]) -> bool:
    return _blinkdl.recognises(names, "att.time_mix_g")


def infer(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    return _blinkdl.infer(shapes, "att.time_faaaa")


def config(theirs: dict) -> ConfigDict:
    cfg = _blinkdl.config(theirs, f"{theirs['n_layer']}*(rwkv5 rwkv_channel)")
    cfg.model.rwkv5 = {"heads": theirs["n_head"]}
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    mixers = _blinkdl.mixers(model, "RWKV5")
    return mixers and _blinkdl.describe(model, mixers) | {"n_head": mixers[0][0].heads}


def entries(theirs: dict) -> list[Entry]:
    def time_mix(ours, layers):
        shape = (theirs["n_embd"], theirs["n_head"], theirs["n_embd"] // theirs["n_head"])
        table = _blinkdl.matrices(ours, ATT, "rkvg", layers, shape) + _blinkdl.matrices(ours, ATT, "o", layers)
        table += _blinkdl.group_norm(ours, layers)
        table += [_blinkdl.flat(f"{ours}/mix_{kind}", f"{ATT}.time_mix_{kind}", theirs, layers) for kind in "rkvg"]
        table.append(same(f"{ours}/time_decay", f"{ATT}.time_decay", layers))
        return [*table, same(f"{ours}/time_first", f"{ATT}.time_faaaa", layers)]

    return _blinkdl.entries(theirs, {"rwkv5": time_mix}, "time_mix", "kr", [theirs["n_layer"]])
