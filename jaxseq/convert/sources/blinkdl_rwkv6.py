"""RWKV-6 "Finch" (World): checkpoints of BlinkDL's trainer."""

from collections.abc import Mapping

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert._table import Entry, reshaped, same
from jaxseq.convert.sources import _blinkdl
from jaxseq.convert.sources._blinkdl import ATT
from jaxseq.mixers.rwkv6 import TARGETS


def recognises(theirs: dict, names: set[str]) -> bool:
    return _blinkdl.recognises(names, "att.time_maa_x")


def infer(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    theirs = _blinkdl.infer(shapes, "att.time_faaaa", lora_mix="att.time_maa_w1", lora_decay="att.time_decay_w1")
    return theirs | {"lora_mix": theirs["lora_mix"] // len(TARGETS)}


def _ranks(theirs: dict) -> tuple[int, int]:
    return tuple(theirs[name] if name in theirs else theirs["lora"] for name in ("lora_mix", "lora_decay"))


def config(theirs: dict) -> ConfigDict:
    cfg = _blinkdl.config(theirs, f"{theirs['n_layer']}*(rwkv6 rwkv_channel)")
    mix_rank, decay_rank = _ranks(theirs)
    cfg.model.rwkv6 = {"heads": theirs["n_head"], "mix_rank": mix_rank, "decay_rank": decay_rank}
    cfg.model.rwkv_channel.of_last = True
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    mixers = _blinkdl.mixers(model, "RWKV6", of_last=True)
    if mixers is None or mixers[0][0].keys() != mixers[0][0].size():
        return None
    mixer = mixers[0][0]
    ranks = {"n_head": mixer.heads, "lora_mix": mixer.mix_rank, "lora_decay": mixer.decay_rank}
    return _blinkdl.describe(model, mixers) | ranks


def entries(theirs: dict) -> list[Entry]:
    width, rank = theirs["n_embd"], _ranks(theirs)[0]

    def time_mix(ours, layers):
        table = _blinkdl.matrices(ours, ATT, "rkvg", layers, (width, theirs["n_head"], width // theirs["n_head"]))
        table += _blinkdl.matrices(ours, ATT, "o", layers) + _blinkdl.group_norm(ours, layers)
        table += [_blinkdl.flat(f"{ours}/mix_{kind}", f"{ATT}.time_maa_{kind}", theirs, layers) for kind in "xwkvrg"]
        folded, flat = (width, len(TARGETS), rank), (width, len(TARGETS) * rank)
        table.append(reshaped(f"{ours}/mix_a", f"{ATT}.time_maa_w1", folded, flat, layers))
        table.append(_blinkdl.flat(f"{ours}/time_decay", f"{ATT}.time_decay", theirs, layers))
        names = {"mix_b": "time_maa_w2", "decay_a": "time_decay_w1", "decay_b": "time_decay_w2", "time_first": "time_faaaa"}
        return table + [same(f"{ours}/{name}", f"{ATT}.{theirs_name}", layers) for name, theirs_name in names.items()]

    return _blinkdl.entries(theirs, {"rwkv6": time_mix}, "time_maa", "kr", [theirs["n_layer"]])
