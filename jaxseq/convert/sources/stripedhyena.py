"""StripedHyena (togethercomputer/stripedhyena): Hyena in modal form and attention; embedding_layer, blocks.*, norm, unembed."""

import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert import _fields
from jaxseq.convert._table import Entry, buffer, linear, reshaped, same, split
from jaxseq.convert.sources.safari_hyena import taps
from jaxseq.errors import UserError
from jaxseq.models import _stack
from jaxseq.models.lm import LM

KINDS = {"HyenaModal": "hyena_modal", "Attention": "attention"}


def recognises(theirs: dict, names: set[str]) -> bool:
    return theirs.get("model_type") == "stripedhyena" or any(name.endswith("filter.poles") for name in names)


def _kinds(theirs: dict) -> list[str]:
    return ["attention" if i in theirs["attn_layer_idxs"] else "hyena_modal" for i in range(theirs["num_layers"])]


def _segments(kinds: list[str]) -> list[tuple[int, list[str]]]:
    """[(repeats, kinds in a block)]: pairs if the two kinds alternate everywhere, else runs of one kind."""
    if len(kinds) % 2 == 0 and kinds == ["hyena_modal", "attention"] * (len(kinds) // 2):
        return [(len(kinds) // 2, ["hyena_modal", "attention"])]
    starts = [i for i in range(len(kinds)) if i == 0 or kinds[i] != kinds[i - 1]]
    return [(end - start, [kinds[start]]) for start, end in zip(starts, [*starts[1:], len(kinds)], strict=True)]


def config(theirs: dict) -> ConfigDict:
    plain = {"model_parallel_size": 1, "use_interpolated_rotary_pos_emb": False, "final_norm": True, "smeared_gqa": False}
    _fields.wanted("stripedhyena", theirs, mlp_activation="silu", **plain)
    cfg = base()
    segments = (f"{n}*({' '.join(f'{kind} swiglu' for kind in kinds)})" for n, kinds in _segments(_kinds(theirs)))
    cfg.model.stack = " + ".join(segments)
    cfg.model.width, cfg.model.vocab, cfg.model.norm = theirs["hidden_size"], theirs["vocab_size"], "rmsnorm_outer"
    cfg.model.norm_eps, cfg.model.tied = theirs["eps"], bool(theirs.get("tie_embeddings", False))
    heads = theirs["num_attention_heads"]
    cfg.model.swiglu = {"hidden": theirs["inner_mlp_size"]}
    if theirs["hyena_layer_idxs"]:
        cfg.model.hyena_modal = {
            "state_size": theirs["state_size"],
            "polar": False,
            "share": theirs.get("hyena_filter_groups", 1),
            "heads": heads if theirs.get("column_split_hyena", True) else 1,
            "taps": theirs["short_filter_length"],
        }
    if theirs["attn_layer_idxs"]:
        bias, output = (bool(theirs.get(f"{name}_proj_bias", True)) for name in ("qkv", "mha_out"))
        cfg.model.attention = {
            "heads": heads,
            "kv_heads": heads // theirs.get("proj_groups", 1),
            "theta": float(theirs.get("rotary_emb_base", 10000)),
            "bias": bias,
            "output_bias": None if output == bias else output,
        }
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    if not isinstance(model, LM) or model.norm != "rmsnorm_outer" or model.positions != "none" or model.embedding_norm:
        return None
    if model.distinct:  # blocks that share weights
        return None
    kinds, found = [], {}
    for repeats, block in zip(model.repeats, model.blocks, strict=True):
        names = [type(mixer).__name__ for mixer in block.mixers]
        if type(block).__name__ != "Residual" or set(names[::2]) - set(KINDS) or set(names[1::2]) != {"SwiGLU"}:
            return None
        kinds += [KINDS[name] for name in names[::2]] * repeats
        found |= dict(zip(names, block.mixers, strict=True))
    hyena, attention = found.get("HyenaModal"), found.get("Attention")
    if hyena and (hyena.polar or hyena.order != 2 or hyena.convention != "safari"):
        return None
    if attention and (not attention.rotary or attention.window or attention.head_size):
        return None
    theirs = _widths(model, found["SwiGLU"]) | {
        "num_layers": len(kinds),
        "attn_layer_idxs": [i for i, kind in enumerate(kinds) if kind == "attention"],
        "hyena_layer_idxs": [i for i, kind in enumerate(kinds) if kind == "hyena_modal"],
    }
    heads = attention.heads if attention else hyena.heads
    theirs |= {"num_attention_heads": heads, "proj_groups": heads // (attention.kv_heads or heads) if attention else 1}
    if attention:
        output = attention.bias if attention.output_bias is None else attention.output_bias
        theirs |= {"rotary_emb_base": attention.theta, "qkv_proj_bias": attention.bias, "mha_out_proj_bias": output}
    if hyena:
        if hyena.heads not in (1, heads):
            return None
        theirs |= {"state_size": hyena.state_size, "short_filter_length": hyena.taps, "hyena_filter_groups": hyena.share}
        theirs |= {"column_split_hyena": hyena.heads == heads, "short_filter_bias": True, "num_filters": model.width}
    return theirs


def _widths(model: LM, swiglu) -> dict:
    fields = {"model_type": "stripedhyena", "vocab_size": model.vocab, "hidden_size": model.width, "eps": model.norm_eps}
    return fields | {"tie_embeddings": model.tied, "inner_mlp_size": swiglu.features, "final_norm": True}


def _tied(embedding, head):
    if not np.array_equal(embedding, head):
        raise UserError("the config ties unembed to embedding_layer, but their values differ; correct the config")
    return (embedding,)


def entries(theirs: dict) -> list[Entry]:
    table, ends = [same("final_norm/scale", "norm.scale")], ("embedding_layer.weight", "unembed.weight")
    if theirs.get("tie_embeddings"):
        table.append(Entry(("embedding",), ends, _tied, lambda x: (x, x)))
    else:
        table += [same("embedding", ends[0]), same("head", ends[1])]
    layer = 0
    for i, (repeats, kinds) in enumerate(_segments(_kinds(theirs))):
        paths = _stack.paths(tuple(label for kind in kinds for label in (kind, "swiglu")))
        for j, kind in enumerate(kinds):
            layers = range(layer + j, layer + j + repeats * len(kinds), len(kinds))
            mixer, mlp = (f"blocks_{i}/{path}" for path in paths[2 * j : 2 * j + 2])
            table += (_attention if kind == "attention" else _hyena)(theirs, mixer, layers)
            for path, name in {"gate": "l1", "up": "l2", "down": "l3"}.items():
                table.append(linear(f"{mlp}/{path}/kernel", f"blocks.{{layer}}.mlp.{name}.weight", layers))
            for path, name in zip(paths[2 * j : 2 * j + 2], ("pre_norm", "post_norm"), strict=True):
                table.append(same(f"blocks_{i}/norm_{path}/scale", f"blocks.{{layer}}.{name}.scale", layers))
        layer += repeats * len(kinds)
    return table


def _hyena(theirs: dict, ours: str, layers) -> list[Entry]:
    width, names = theirs["hidden_size"], "blocks.{layer}"
    heads = theirs["num_attention_heads"] if theirs.get("column_split_hyena", True) else 1
    shape, filters = (heads, 3, width // heads), width // theirs.get("hyena_filter_groups", 1)
    poles = (filters, theirs["state_size"], 2), (filters, theirs["state_size"], 1, 2)
    table = [
        linear(f"{ours}/in/kernel", f"{names}.projections.weight", layers, (width, *shape)),
        reshaped(f"{ours}/in/bias", f"{names}.projections.bias", shape, (-1,), layers),
        taps(f"{ours}/conv_kernel", f"{names}.filter.short_filter_weight", layers),
        same(f"{ours}/conv_bias", f"{names}.filter.short_filter_bias", layers),
        reshaped(f"{ours}/skip", f"{names}.filter.D", (1, width), (width,), layers),
        linear(f"{ours}/out/kernel", f"{names}.out_filter_dense.weight", layers),
        same(f"{ours}/out/bias", f"{names}.out_filter_dense.bias", layers),
    ]
    for name in ("poles", "residues"):
        table.append(reshaped(f"{ours}/{name}", f"{names}.filter.{name}", (1, *poles[0]), poles[1], layers))
    return table


def _attention(theirs: dict, ours: str, layers) -> list[Entry]:
    width, heads = theirs["hidden_size"], theirs["num_attention_heads"]
    size, kv_heads = width // heads, heads // theirs.get("proj_groups", 1)
    names, counts = "blocks.{layer}.inner_mha_cls", {"q": heads, "k": kv_heads, "v": kv_heads}
    sizes = [n * size for n in counts.values()]

    def matrix(n):
        return lambda w: w.T.reshape(width, n, size), lambda w: w.reshape(width, n * size).T

    maps = [matrix(n) for n in counts.values()]
    table = [split([f"{ours}/{name}/kernel" for name in counts], f"{names}.Wqkv.weight", sizes, layers, maps)]
    if theirs.get("qkv_proj_bias", True):
        maps = [(lambda b, n=n: b.reshape(n, size), lambda b: b.reshape(-1)) for n in counts.values()]
        table.append(split([f"{ours}/{name}/bias" for name in counts], f"{names}.Wqkv.bias", sizes, layers, maps))
    table.append(linear(f"{ours}/o/kernel", f"{names}.out_proj.weight", layers, (heads, size, width), 2))
    if theirs.get("mha_out_proj_bias", True):
        table.append(same(f"{ours}/o/bias", f"{names}.out_proj.bias", layers))
    frequencies = 1 / (np.float32(theirs.get("rotary_emb_base", 10000)) ** (np.arange(0, size, 2, dtype=np.float32) / size))
    return [*table, buffer(f"{names}.rotary_emb.inv_freq", frequencies, layers)]
