"""Mamba and Mamba-2 (state-spaces/mamba-130m, mamba2-130m …): checkpoints of the authors' library without attention layers."""

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry
from jaxseq.convert.sources import _mamba
from jaxseq.errors import UserError

SAME = {"expand": 2, "dt_min": 0.001, "dt_max": 0.1}  # {field of ssm_cfg with our name: default}
RENAMED = {
    "mamba": {"state_size": ("d_state", 16), "taps": ("d_conv", 4)},
    "mamba2": {"state_size": ("d_state", 128), "taps": ("d_conv", 4), "groups": ("ngroups", 1)},
}
PLAIN = {"mamba": {"bias": False, "conv_bias": True}, "mamba2": {
    "bias": False, "conv_bias": True, "rmsnorm": True, "norm_before_gate": False, "D_has_hdim": False, "d_ssm": None,
}}  # fmt: skip


def recognises(theirs: dict, names: set[str]) -> bool:
    return "ssm_cfg" in theirs and "backbone.embedding.weight" in names


def _kind(theirs: dict) -> str:
    layer = theirs.get("ssm_cfg", {}).get("layer", "Mamba1")
    if layer not in ("Mamba1", "Mamba2"):
        raise UserError(f"mamba/ssm reads the layers Mamba1 and Mamba2, and this config has ssm_cfg.layer={layer!r}")
    return "mamba" if layer == "Mamba1" else "mamba2"


def config(theirs: dict) -> ConfigDict:
    kind, cfg, width, ssm = _kind(theirs), base(), theirs["d_model"], theirs.get("ssm_cfg", {})
    _fields.wanted("mamba/ssm", theirs, rms_norm=True, d_intermediate=0, attn_layer_idx=[])
    _fields.wanted("mamba/ssm", ssm, **PLAIN[kind])
    multiple = theirs.get("pad_vocab_size_multiple", 8)
    cfg.model.stack = f"{theirs['n_layer']}*({kind})"
    cfg.model.width, cfg.model.vocab = width, -(-theirs["vocab_size"] // multiple) * multiple
    cfg.model.tied = theirs.get("tie_embeddings", True)
    mixer = {name: ssm.get(name, default) for name, default in SAME.items()}
    mixer |= {ours: ssm.get(name, default) for ours, (name, default) in RENAMED[kind].items()}
    mixer["dt_floor"] = ssm.get("dt_init_floor", 1e-4)
    if kind == "mamba":
        rank = ssm.get("dt_rank", "auto")
        mixer["dt_rank"] = -(-width // 16) if rank == "auto" else rank
    else:
        low, high = ssm.get("dt_limit", (0.0, float("inf")))
        mixer["heads"] = mixer["expand"] * width // ssm.get("headdim", 64)
        mixer |= {"dt_low": float(low), "dt_high": None if high == float("inf") else float(high)}
    cfg.model[kind] = mixer
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    mixer = _mamba.mixer(model, "Mamba") or _mamba.mixer(model, "Mamba2")
    if mixer is None or model.norm_eps != 1e-5:
        return None
    kind = type(mixer).__name__.lower()
    ssm = {"layer": {"mamba": "Mamba1", "mamba2": "Mamba2"}[kind], "dt_init_floor": mixer.dt_floor}
    ssm |= {name: getattr(mixer, name) for name in SAME}
    ssm |= {theirs: getattr(mixer, ours) for ours, (theirs, _) in RENAMED[kind].items()}
    if kind == "mamba":
        if mixer.selected_norm != "none":
            return None
        ssm["dt_rank"] = mixer.dt_rank or -(-model.width // 16)
    else:
        if mixer.eps != 1e-5 or mixer.inner:
            return None
        high = float("inf") if mixer.dt_high is None else mixer.dt_high
        ssm |= {"headdim": mixer.expand * model.width // mixer.heads, "dt_limit": [mixer.dt_low, high]}
    return {
        "d_model": model.width, "d_intermediate": 0, "n_layer": model.layers, "vocab_size": model.vocab, "ssm_cfg": ssm,
        "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
        "pad_vocab_size_multiple": 1, "tie_embeddings": model.tied,
    }  # fmt: skip


def aliases(theirs: dict) -> dict:
    return {"lm_head.weight": "backbone.embedding.weight"} if theirs.get("tie_embeddings", True) else {}


def entries(theirs: dict) -> list[Entry]:
    kind, layers = _kind(theirs), range(theirs["n_layer"])
    return _mamba.entries(kind, layers, "backbone.embedding.weight", theirs.get("tie_embeddings", True))
