"""RWKV-4: transformers' RwkvForCausalLM."""

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry
from jaxseq.convert.sources import _blinkdl, blinkdl_rwkv4

# BlinkDL's names and transformers' for the same tensors; the longer names come first.
NAMES = (("blocks.0.ln0", "rwkv.blocks.0.pre_ln"), ("blocks.", "rwkv.blocks."), ("ln_out", "rwkv.ln_out"),
         ("emb", "rwkv.embeddings"))  # fmt: skip
PARTS = ((".att.", ".attention."), (".ffn.", ".feed_forward."), ("time_mix_k", "time_mix_key"), ("time_mix_v", "time_mix_value"),
         ("time_mix_r", "time_mix_receptance"))  # fmt: skip


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "rwkv"


def config(theirs: dict) -> ConfigDict:
    width = theirs["hidden_size"]
    fixed = {"attention_hidden_size": width, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False}
    _fields.wanted("hf/rwkv", theirs, **fixed)
    return finish(_blinkdl.config(_blinkdl_config(theirs), f"{theirs['num_hidden_layers']}*(rwkv4 rwkv_channel)"))


def _blinkdl_config(theirs: dict) -> dict:
    width = theirs["hidden_size"]
    hidden = theirs.get("intermediate_size") or 4 * width
    return {"n_layer": theirs["num_hidden_layers"], "n_embd": width, "dim_ffn": hidden, "vocab": theirs["vocab_size"]}


def describe(model: nn.Module) -> dict | None:
    mixers = _blinkdl.mixers(model, "RWKV4")
    if mixers is None:
        return None
    sizes = _blinkdl.describe(model, mixers)
    return {
        "architectures": ["RwkvForCausalLM"],
        "model_type": "rwkv",
        "vocab_size": sizes["vocab"],
        "hidden_size": sizes["n_embd"],
        "attention_hidden_size": sizes["n_embd"],
        "intermediate_size": sizes["dim_ffn"],
        "num_hidden_layers": sizes["n_layer"],
        "layer_norm_epsilon": model.norm_eps,
        "tie_word_embeddings": False,
    }


def entries(theirs: dict) -> list[Entry]:
    table = blinkdl_rwkv4.entries(_blinkdl_config(theirs))
    return [entry._replace(theirs=tuple(map(_renamed, entry.theirs))) for entry in table]


def _renamed(name: str) -> str:
    for old, new in NAMES:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    for old, new in PARTS:
        name = name.replace(old, new)
    return name
