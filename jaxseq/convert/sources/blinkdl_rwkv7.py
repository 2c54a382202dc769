"""RWKV-7 "Goose" (Pile, World): checkpoints of BlinkDL's trainer."""

from collections.abc import Mapping

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert._table import Entry, same
from jaxseq.convert.sources import _blinkdl
from jaxseq.convert.sources._blinkdl import ATT

LOW = {"decay": "w", "rate": "a", "value": "v", "gate": "g"}  # {our name of a low-rank map: its letter there}
VECTORS = {"decay": "w0", "rate": "a0", "value": "v0", "removal": "k_k", "mix_rate": "k_a"}
UNREAD = {f"blocks.0.att.v{i}" for i in range(3)}  # released checkpoints have them in the first layer, which does not use them


def recognises(theirs: dict, names: set[str]) -> bool:
    return _blinkdl.recognises(names, "att.r_k")


def rename(names: set[str]) -> dict[str, str]:
    return {name: name for name in names - UNREAD}


def infer(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    return _blinkdl.infer(shapes, "att.r_k", **{f"lora_{letter}": f"att.{letter}1" for letter in LOW.values()})


def config(theirs: dict) -> ConfigDict:
    layers = theirs["n_layer"]
    cfg = _blinkdl.config(theirs, f"(rwkv7:first rwkv_channel) + {layers - 1}*(rwkv7 rwkv_channel)")
    ranks = {f"{name}_rank": theirs.get(f"lora_{letter}", theirs.get("lora")) for name, letter in LOW.items()}
    cfg.model.rwkv7 = {"heads": theirs["n_head"]} | ranks
    cfg.model["rwkv7:first"] = {"heads": theirs["n_head"], "first": True} | ranks
    cfg.model.rwkv_channel.update(gated=False, of_last=True)
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    mixers = _blinkdl.mixers(model, "RWKV7", "RWKV7", gated=False, of_last=True)
    if mixers is None or [segment[0].first for segment in mixers] != [True, False] or model.repeats[0] != 1:
        return None
    mixer = mixers[1][0]
    ranks = {f"lora_{letter}": getattr(mixer, f"{name}_rank") for name, letter in LOW.items()}
    return _blinkdl.describe(model, mixers) | {"n_head": mixer.heads} | ranks


def entries(theirs: dict) -> list[Entry]:
    def time_mix(first: bool):
        def table(ours, layers):
            low = {name: letter for name, letter in LOW.items() if not (first and name == "value")}
            vectors = {name: vector for name, vector in VECTORS.items() if not (first and name == "value")}
            found = _blinkdl.matrices(ours, ATT, "rkvo", layers) + _blinkdl.group_norm(ours, layers)
            found += [_blinkdl.flat(f"{ours}/mix_{kind}", f"{ATT}.x_{kind}", theirs, layers) for kind in "rwkvag"]
            found += [_blinkdl.flat(f"{ours}/{name}", f"{ATT}.{vector}", theirs, layers) for name, vector in vectors.items()]
            for name, letter in low.items():
                found += [same(f"{ours}/{name}_{side}", f"{ATT}.{letter}{i}", layers) for side, i in (("a", 1), ("b", 2))]
            return [*found, same(f"{ours}/bonus", f"{ATT}.r_k", layers)]

        return table

    time_mixes = {"rwkv7:first": time_mix(True), "rwkv7": time_mix(False)}
    return _blinkdl.entries(theirs, time_mixes, "x", "k", [1, theirs["n_layer"] - 1])
