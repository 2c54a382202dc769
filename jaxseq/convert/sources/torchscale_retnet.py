"""RetNet: torchscale's RetNetDecoder, pre-norm, without experts."""

import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, buffer, linear, norm, same
from jaxseq.convert.sources import _stacks

ACTIVATIONS = {"gelu": "gelu", "swish": "silu", "relu": "relu"}
PLAIN = {
    "decoder_normalize_before": True, "deepnorm": False, "layernorm_embedding": False, "moe_freq": 0, "multiway": False,
    "no_output_layer": False, "xpos_rel_pos": False,
}  # fmt: skip


def recognises(theirs: dict, names: set[str]) -> bool:
    return "layers.0.retention.q_proj.weight" in names


def config(theirs: dict) -> ConfigDict:
    _fields.wanted("torchscale/retnet", theirs, **PLAIN)
    activation = _fields.choice("torchscale/retnet", theirs, "activation_fn", ACTIVATIONS, "gelu")
    width, heads = theirs["decoder_embed_dim"], theirs["decoder_retention_heads"]
    cfg = base()
    cfg.model.stack = f"{theirs['decoder_layers']}*(retention geglu)"
    cfg.model.width, cfg.model.vocab = width, theirs["vocab_size"]
    cfg.model.norm_eps = eps = theirs.get("layernorm_eps", 1e-6)
    cfg.model.tied = theirs.get("share_decoder_input_output_embed", False)
    cfg.model.embedding_scale = 1.0 if theirs.get("no_scale_embedding", True) else width**0.5
    cfg.model.retention = {
        "heads": heads, "value_size": theirs["decoder_value_embed_dim"] // heads, "eps": eps, "torchscale_scaling": True,
    }  # fmt: skip
    cfg.model.geglu = {"hidden": theirs["decoder_ffn_embed_dim"], "activation": activation}
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    scale = getattr(model, "embedding_scale", None)
    found = _stacks.mixers(model, ("Retention", "GeGLU"), norm="rmsnorm", embedding_scale=scale)
    if found is None:
        return None
    retention, glu = found[0]
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    plain = retention.torchscale_scaling and retention.decay == "published" and retention.eps == model.norm_eps
    if not plain or retention.pairs or glu.bias or glu.activation not in names or scale not in (1.0, model.width**0.5):
        return None
    value_size = retention.value_size or retention.value_factor * model.width // retention.heads
    return PLAIN | {
        "decoder_embed_dim": model.width,
        "decoder_value_embed_dim": value_size * retention.heads,
        "decoder_ffn_embed_dim": glu.hidden or glu.factor * model.width,
        "decoder_layers": model.layers,
        "decoder_retention_heads": retention.heads,
        "activation_fn": names[glu.activation],
        "layernorm_eps": model.norm_eps,
        "no_scale_embedding": scale == 1.0,
        "share_decoder_input_output_embed": model.tied,
        "vocab_size": model.vocab,
    }


def aliases(theirs: dict) -> dict:
    return {"output_projection.weight": "embed_tokens.weight"} if theirs.get("share_decoder_input_output_embed") else {}


def _buffers(theirs: dict) -> list[Entry]:
    """The buffers of angles and decays, bit for bit: torch.linspace counts from the nearer end."""
    one, heads = np.float32(1), theirs["decoder_retention_heads"]
    i = np.arange(pairs := theirs["decoder_embed_dim"] // heads // 2, dtype=np.float32)
    step = one / np.float32(max(pairs - 1, 1))
    angle = one / np.float32(10000) ** np.where(i < pairs // 2, step * i, one - step * (pairs - 1 - i))
    decay = np.log(one - np.float32(2) ** (-5 - np.arange(heads, dtype=np.float32)))
    return [buffer("retnet_rel_pos.angle", np.repeat(angle, 2)), buffer("retnet_rel_pos.decay", decay)]


def entries(theirs: dict) -> list[Entry]:
    layers, width, heads = range(theirs["decoder_layers"]), theirs["decoder_embed_dim"], theirs["decoder_retention_heads"]
    key_size, value_size = width // heads, theirs["decoder_value_embed_dim"] // heads
    ours, names = "blocks_0", "layers.{layer}"
    table = [same("embedding", "embed_tokens.weight"), *norm("final_norm", "layer_norm", bias=False), *_buffers(theirs)]
    if not theirs.get("share_decoder_input_output_embed"):
        table.append(same("head", "output_projection.weight"))
    table += norm(f"{ours}/norm_retention", f"{names}.retention_layer_norm", layers, bias=False)
    table += norm(f"{ours}/norm_geglu", f"{names}.final_layer_norm", layers, bias=False)
    for kind, size in {"q": key_size, "k": key_size, "v": value_size, "g": value_size}.items():
        theirs_name = f"{names}.retention.{kind}_proj.weight"
        table.append(linear(f"{ours}/retention/{kind}/kernel", theirs_name, layers, (width, heads, size)))
    out = f"{names}.retention.out_proj.weight"
    table.append(linear(f"{ours}/retention/o/kernel", out, layers, (heads, value_size, width), inputs=2))
    for kind, theirs_name in {"gate": "fc1", "up": "gate", "down": "fc2"}.items():
        table.append(linear(f"{ours}/geglu/{kind}/kernel", f"{names}.ffn.{theirs_name}.weight", layers))
    return table
