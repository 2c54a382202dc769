"""Shared by the checkpoints with BlinkDL's names: emb, blocks.N.{ln1,att,ln2,ffn}, ln_out, head. They have no config.

`theirs` is inferred from shapes: n_layer, n_embd, n_head, dim_ffn, vocab, and lora, the rank of low-rank maps if all are equal.
"""

from collections.abc import Callable, Mapping, Sequence

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base
from jaxseq.convert._table import Entry, linear, norm, reshaped, same
from jaxseq.convert.sources import _stacks
from jaxseq.errors import UserError

ATT, FFN = "blocks.{layer}.att", "blocks.{layer}.ffn"
MATRICES = {"r": "receptance", "k": "key", "v": "value", "g": "gate", "o": "output"}


def recognises(names: set[str], own: str, *foreign: str) -> bool:
    """Whether block 0 has the tensor `own` and no tensor of `foreign`."""
    first = {name.removeprefix("blocks.0.") for name in names if name.startswith("blocks.0.")}
    return "emb.weight" in names and own in first and not first & set(foreign)


def infer(shapes: Mapping[str, tuple[int, ...]], heads: str | None = None, **ranks: str) -> dict:
    """`theirs` of a checkpoint. heads: a tensor of block 0 with one row per head; ranks: tensors with one column per rank."""
    layers = 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")), default=-1)
    if not layers or "emb.weight" not in shapes:
        raise UserError("there is no emb.weight or no blocks.0 among these tensors; is it a checkpoint with BlinkDL's names?")
    vocab, width = shapes["emb.weight"]
    theirs = {"n_layer": layers, "n_embd": width, "dim_ffn": shapes["blocks.0.ffn.key.weight"][0], "vocab": vocab}
    theirs |= {"n_head": shapes[f"blocks.0.{heads}"][0]} if heads else {}
    return theirs | {name: shapes[f"blocks.{layers - 1}.{tensor}"][1] for name, tensor in ranks.items()}


def config(theirs: dict, stack: str) -> ConfigDict:
    cfg = base()
    cfg.model.stack, cfg.model.width, cfg.model.vocab = stack, theirs["n_embd"], theirs["vocab"]
    cfg.model.tied, cfg.model.norm, cfg.model.embedding_norm = False, "layernorm", True
    cfg.model.rwkv_channel = {"hidden": theirs["dim_ffn"]}
    cfg.model.logit_penalty, cfg.model.head_scale, cfg.model.embedding_std = 1e-4, 0.5, 1e-4
    return cfg


def mixers(model: nn.Module, *time_mixes: str, gated: bool = True, of_last: bool = False) -> list[tuple] | None:
    """Each segment's mixers if `model` has exactly these time mixings, one per segment; else None."""
    fields = {"norm": "layernorm", "norm_eps": 1e-5, "tied": False, "embedding_norm": True}
    found = _stacks.mixers(model, *((name, "RWKVChannel") for name in time_mixes), **fields)
    if found is None or any((channel.gated, channel.of_last) != (gated, of_last) for _, channel in found):
        return None
    return found


def describe(model: nn.Module, mixers: list[tuple]) -> dict:
    """The fields of `theirs` that all versions have."""
    channel = mixers[0][1]
    return {
        "n_layer": model.layers, "n_embd": model.width, "dim_ffn": channel.hidden or 4 * model.width, "vocab": model.vocab,
    }  # fmt: skip


def entries(theirs: dict, time_mixes: Mapping[str, Callable], mixed: str, kinds: str, counts: Sequence[int]) -> list[Entry]:
    """The whole table. time_mixes: {label: f(ours, layers) -> entries}, one per segment of `counts` layers; `mixed`: the prefix
    of the token-shift weights of the channel mixing, `kinds`: their letters."""
    table = [same("embedding", "emb.weight"), same("head", "head.weight")]
    table += norm("first_norm", "blocks.0.ln0") + norm("final_norm", "ln_out")
    start = 0
    for i, (count, (label, time_mix)) in enumerate(zip(counts, time_mixes.items(), strict=True)):
        ours, layers = f"blocks_{i}", range(start, start + count)
        start += count
        table += norm(f"{ours}/norm_{label}", "blocks.{layer}.ln1", layers)
        table += norm(f"{ours}/norm_rwkv_channel", "blocks.{layer}.ln2", layers)
        table += time_mix(f"{ours}/{label}", layers)
        channel = f"{ours}/rwkv_channel"
        table += matrices(channel, FFN, "kvr" if "r" in kinds else "kv", layers)
        table += [flat(f"{channel}/mix_{kind}", f"{FFN}.{mixed}_{kind}", theirs, layers) for kind in kinds]
    return table


def flat(ours: str, name: str, theirs: dict, layers: Sequence[int] | None) -> Entry:
    """(1, 1, D) as D."""
    return reshaped(ours, name, (theirs["n_embd"],), (1, 1, theirs["n_embd"]), layers)


def matrices(ours: str, theirs: str, kinds: str, layers: Sequence[int] | None, shape: Sequence[int] | None = None) -> list[Entry]:
    return [linear(f"{ours}/{kind}/kernel", f"{theirs}.{MATRICES[kind]}.weight", layers, shape) for kind in kinds]


def group_norm(ours: str, layers: Sequence[int] | None) -> list[Entry]:
    pairs = (("scale", "weight"), ("bias", "bias"))
    return [same(f"{ours}/ln_x_{ours_name}", f"{ATT}.ln_x.{name}", layers) for ours_name, name in pairs]
