"""Nemotron-H (4B, 8B, 47B, 56B) and Nemotron Nano 2: transformers' NemotronHForCausalLM without experts. A layer is one mixer."""

import math
import re

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, linear, norm
from jaxseq.convert.sources import _decoders, _hybrids, _mamba
from jaxseq.errors import UserError

NAME = "hf/nemotron_h"
KINDS = {"Mamba2": "mamba2", "Attention": "attention", "MLP": "mlp"}
LABELS = {  # of layers; the second column holds their older names
    "linear_attention": "mamba2", "mamba": "mamba2",
    "full_attention": "attention", "attention": "attention",
    "mlp": "mlp",
}  # fmt: skip
LETTERS = {"M": "mamba2", "*": "attention", "-": "mlp"}
DEFAULTS = {  # of transformers
    "layer_norm_epsilon": 1e-5, "num_key_value_heads": 8, "ssm_state_size": 128, "mamba_num_heads": 128, "mamba_head_dim": 64,
    "n_groups": 8, "conv_kernel": 4, "intermediate_size": 21504,
}  # fmt: skip


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "nemotron_h"


def rename(names: set[str]) -> dict:
    """`backbone` is called `model` in transformers' memory. A module that predicts a second token is left out."""
    return {re.sub(r"^model\.", "backbone.", name): name for name in names if not name.startswith("mtp.")}


def _layers(theirs: dict) -> list[_hybrids.Layer]:
    kinds = theirs.get("layers_block_type")
    if kinds is not None:
        return [(_fields.choice(NAME, {"layers_block_type": kind}, "layers_block_type", LABELS),) for kind in kinds]
    pattern = theirs.get("hybrid_override_pattern")
    if not isinstance(pattern, str):
        raise UserError(f"{NAME} needs layers_block_type or hybrid_override_pattern in the config; give the checkpoint's own")
    field = "hybrid_override_pattern"
    return [(_fields.choice(NAME, {field: letter}, field, LETTERS),) for letter in pattern]


def _mamba_fields(theirs: dict) -> dict:
    low, high = theirs.get("time_step_limit") or (0.0, math.inf)
    size = _mamba.inner(theirs["mamba_num_heads"] * theirs["mamba_head_dim"], theirs["hidden_size"])
    return size | _mamba.steps(theirs) | {
        "heads": theirs["mamba_num_heads"], "groups": theirs["n_groups"], "state_size": theirs["ssm_state_size"],
        "taps": theirs["conv_kernel"], "eps": theirs["layer_norm_epsilon"], "dt_low": float(low), "dt_high": _fields.finite(high),
    }  # fmt: skip


def _attention_fields(theirs: dict) -> dict:
    heads = theirs["num_attention_heads"]
    return {
        "heads": heads, "kv_heads": theirs["num_key_value_heads"] or heads, "rotary": False,
        "head_size": theirs.get("head_dim") or theirs.get("attention_head_dim") or 128,
    }  # fmt: skip


def _mlp_fields(theirs: dict) -> dict:
    return {"hidden": theirs["intermediate_size"], "bias": False, "activation": "relu2"}


FIELDS = {"mamba2": _mamba_fields, "attention": _attention_fields, "mlp": _mlp_fields}


def config(theirs: dict) -> ConfigDict:
    wanted = {"mamba_proj_bias": False, "use_bias": False, "use_conv_bias": True, "mamba_hidden_act": "silu"}
    wanted |= {"tie_word_embeddings": False}  # transformers does not tie them, whatever the config says
    _fields.wanted(NAME, theirs, mlp_hidden_act="relu2", attention_bias=False, mlp_bias=False, **wanted)
    theirs, layers = DEFAULTS | theirs, _layers(theirs)
    cfg = base()
    cfg.model.stack = _hybrids.stack(layers)
    cfg.model.width, cfg.model.vocab = theirs["hidden_size"], theirs["vocab_size"]
    cfg.model.norm_eps, cfg.model.tied = theirs["layer_norm_epsilon"], False
    for (label,) in dict.fromkeys(layers):
        cfg.model[label] = FIELDS[label](theirs)
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    found = _hybrids.mixers(model, KINDS, size=1, norm="rmsnorm", tied=False)
    own = {type(mixer).__name__: mixer for (mixer,) in found or ()}
    if set(own) != set(KINDS):
        return None
    mamba, attention, mlp = (own[kind] for kind in KINDS)
    plain = {**_decoders.LLAMA, "rotary": False, "bias": False, "output_bias": None}
    if mamba.eps != model.norm_eps or mlp.bias or mlp.activation != "relu2" or not _decoders.has(attention, **plain):
        return None
    theirs = {label: name for name, label in reversed(LABELS.items())}
    return {name: getattr(mamba, ours) for ours, name in _mamba.STEPS.items()} | {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "layers_block_type": [theirs[KINDS[type(mixer).__name__]] for (mixer,) in found],
        "layer_norm_epsilon": model.norm_eps,
        "tie_word_embeddings": False,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": attention.head_size or model.width // attention.heads,
        "intermediate_size": mlp.features,
        "mlp_hidden_act": "relu2",
        "mamba_num_heads": mamba.heads,
        "mamba_head_dim": mamba.inner_size // mamba.heads,
        "n_groups": mamba.groups,
        "ssm_state_size": mamba.state_size,
        "conv_kernel": mamba.taps,
        "time_step_limit": [mamba.dt_low, math.inf if mamba.dt_high is None else mamba.dt_high],
    }


def entries(theirs: dict) -> list[Entry]:
    theirs, names = DEFAULTS | theirs, f"{_mamba.NAMES}.mixer"
    table = _mamba.outer("backbone.embeddings.weight", tied=False)
    for place in _hybrids.places(_layers(theirs)):
        table += norm(place.norm, f"{_mamba.NAMES}.norm", place.layers, bias=False)
        if place.label == "mamba2":
            table += _mamba.of_mamba2(place.path, names, place.layers)
        elif place.label == "attention":
            table += _attention(theirs, place, names)
        else:
            table += [linear(f"{place.path}/{n}/kernel", f"{names}.{n}_proj.weight", place.layers) for n in ("up", "down")]
    return table


def _attention(theirs: dict, place: _hybrids.MixerPlace, names: str) -> list[Entry]:
    own = _attention_fields(theirs)
    width, heads, kv_heads, size = theirs["hidden_size"], own["heads"], own["kv_heads"], own["head_size"]
    table = [
        linear(f"{place.path}/{name}/kernel", f"{names}.{name}_proj.weight", place.layers, (width, count, size))
        for name, count in {"q": heads, "k": kv_heads, "v": kv_heads}.items()
    ]
    return [*table, linear(f"{place.path}/o/kernel", f"{names}.o_proj.weight", place.layers, (heads, size, width), 2)]
