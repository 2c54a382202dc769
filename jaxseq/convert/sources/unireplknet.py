"""UniRepLKNet for images: released checkpoints, as trained (branches and batch norms) or merged.

A trained model is read as {"params", "batch_stats"}; a merged one ("deploy") has parameters only.
"""

import re
from collections.abc import Mapping, Sequence

from flax import linen as nn
from ml_collections import ConfigDict

from jaxseq.config import base, finish
from jaxseq.convert._table import Entry, linear, norm, reshaped, same
from jaxseq.mixers import _reparam
from jaxseq.models._unireplknet_blocks import PLAIN
from jaxseq.models.unireplknet import Stage, UniRepLKNet, parse

# {depths of a published variant: kernel sizes of the blocks of each stage, repeated}
KERNELS = {
    (2, 2, 6, 2): ((3,), (13,), (13,), (13,)),
    (2, 2, 8, 2): ((3,), (13,), (13,), (13,)),
    (3, 3, 18, 3): ((3,), (13,), (13, 3), (13,)),
    (3, 3, 27, 3): ((3,), (13,), (13, 3, 3), (13,)),
}


def rename(names: set[str]) -> dict[str, str]:
    """Some files have the weights under "model", next to other training state."""
    inside = {name.removeprefix("model."): name for name in names if name.startswith("model.")}
    return inside or {name: name for name in names}


def recognises(theirs: dict, names: set[str]) -> bool:
    return {"stages.0.0.pwconv1.1.weight", "downsample_layers.0.0.weight"} <= rename(names).keys()


def infer(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """The config from names and shapes, because the files have none."""
    shapes = {name: shapes[old] for name, old in rename(set(shapes)).items()}
    kernels: dict[int, list[int]] = {}
    found = (re.fullmatch(r"stages\.(\d+)\.(\d+)\.dwconv\.(?:lk_origin\.)?weight", name) for name in shapes)
    for match in sorted((m for m in found if m), key=lambda m: (int(m[1]), int(m[2]))):
        kernels.setdefault(int(match[1]), []).append(shapes[match[0]][-1])
    return {
        "in_chans": shapes["downsample_layers.0.0.weight"][1],
        "num_classes": shapes.get("head.weight", (0,))[0],
        "depths": [len(kernels[i]) for i in range(len(kernels))],
        "dims": [shapes[f"stages.{i}.0.pwconv1.1.weight"][1] for i in range(len(kernels))],
        "kernel_sizes": [kernels[i] for i in range(len(kernels))],
        "deploy": "stages.0.0.norm.running_mean" not in shapes,
    }


def _stages(theirs: dict) -> tuple[Stage, ...]:
    depths = tuple(theirs["depths"])
    kernels = theirs.get("kernel_sizes") or KERNELS[depths]
    return tuple(Stage(d, w, _cycle(tuple(k) * d, d)) for d, w, k in zip(depths, theirs["dims"], kernels, strict=True))


def _cycle(kernels: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """The shortest prefix whose repetition gives the first `depth` elements."""
    return next(kernels[:n] for n in range(1, depth + 1) if all(kernels[i] == kernels[i % n] for i in range(depth)))


def config(theirs: dict) -> ConfigDict:
    cfg = base("unireplknet")
    cfg.model.stages = " ".join(f"{s.depth}*{s.width}:{','.join(map(str, s.kernels))}" for s in _stages(theirs))
    parse(cfg.model.stages)
    cfg.model.classes, cfg.model.channels = theirs.get("num_classes", 1000), theirs.get("in_chans", 3)
    cfg.model.layer_scale = float(theirs.get("layer_scale_init_value", 1e-6))
    cfg.model.drop_path = float(theirs.get("drop_path_rate", 0.0))
    cfg.model.merged = bool(theirs.get("deploy", False))
    return finish(cfg)


def describe(model: nn.Module) -> dict | None:
    if not isinstance(model, UniRepLKNet):
        return None
    return {
        "in_chans": model.channels,
        "num_classes": model.classes,
        "depths": [stage.depth for stage in model.stages],
        "dims": [stage.width for stage in model.stages],
        "kernel_sizes": [list((stage.kernels * stage.depth)[: stage.depth]) for stage in model.stages],
        "layer_scale_init_value": model.layer_scale,
        "drop_path_rate": model.drop_path,
        "deploy": model.merged,
    }


def _convolution(ours: str, theirs: str) -> list[Entry]:
    """(outputs, inputs, rows, columns) as (rows, columns, inputs, outputs), and its bias."""
    there, back = lambda w: (w.transpose(2, 3, 1, 0),), lambda w: (w.transpose(3, 2, 0, 1),)
    turn = Entry((f"{ours}/kernel",), (f"{theirs}.weight",), there, back)
    return [turn, same(f"{ours}/bias", f"{theirs}.bias")]


def _depthwise(ours: str, theirs: str, layers: Sequence[int]) -> Entry:
    """(channels, 1, rows, columns) as (rows, columns, channels)."""
    there, back = lambda w: (w[:, 0].transpose(1, 2, 0),), lambda w: (w.transpose(2, 0, 1)[:, None],)
    return Entry((ours,), (theirs,), there, back, layers)


def _pointwise(ours: str, theirs: str, layers: Sequence[int]) -> list[Entry]:
    """A convolution of one pixel is a linear map."""
    there, back = lambda w: (w[:, :, 0, 0].T,), lambda w: (w.T[:, :, None, None],)
    turn = Entry((f"{ours}/kernel",), (f"{theirs}.weight",), there, back, layers)
    return [turn, same(f"{ours}/bias", f"{theirs}.bias", layers)]


def _batch_norm(ours: str, theirs: str, layers: Sequence[int]) -> list[Entry]:
    stats = f"batch_stats/{ours}"
    there, back = lambda n: (n.astype("int32"),), lambda n: (n.astype("int64"),)
    return [
        *norm(f"params/{ours}", theirs, layers),
        same(f"{stats}/mean", f"{theirs}.running_mean", layers),
        same(f"{stats}/var", f"{theirs}.running_var", layers),
        Entry((f"{stats}/count",), (f"{theirs}.num_batches_tracked",), there, back, layers),
    ]


def _conv(ours: str, theirs: str, kernel: int, layers: Sequence[int], merged: bool, prefix: str) -> list[Entry]:
    large = theirs if kernel in PLAIN else f"{theirs}.lk_origin"
    table = [_depthwise(f"{prefix}{ours}/kernel", f"{large}.weight", layers)]
    if merged:
        return [*table, same(f"{prefix}{ours}/bias", f"{large}.bias", layers)]
    if kernel in PLAIN:
        return table
    table += _batch_norm(f"{ours}/norm", f"{theirs}.origin_bn", layers)
    for taps, dilation in _reparam.branches(kernel):
        own = f"{taps}_{dilation}"
        table.append(_depthwise(f"{prefix}{ours}/kernel_{own}", f"{theirs}.dil_conv_k{own}.weight", layers))
        table += _batch_norm(f"{ours}/norm_{own}", f"{theirs}.dil_bn_k{own}", layers)
    return table


def _block(ours: str, theirs: str, stage: Stage, kernel: int, layers: Sequence[int], merged: bool, prefix: str) -> list[Entry]:
    at, hidden = f"{prefix}{ours}", 4 * stage.width
    table = [
        *_conv(f"{ours}/conv", f"{theirs}.dwconv", kernel, layers, merged, prefix),
        *_pointwise(f"{at}/squeeze", f"{theirs}.se.down", layers),
        *_pointwise(f"{at}/excite", f"{theirs}.se.up", layers),
        linear(f"{at}/up/kernel", f"{theirs}.pwconv1.1.weight", layers),
        same(f"{at}/up/bias", f"{theirs}.pwconv1.1.bias", layers),
        reshaped(f"{at}/grn_gamma", f"{theirs}.act.1.gamma", (hidden,), (1, 1, 1, hidden), layers),
        linear(f"{at}/down/kernel", f"{theirs}.pwconv2.0.weight", layers),
    ]
    if merged:
        return [*table, same(f"{at}/down/bias", f"{theirs}.pwconv2.0.bias", layers)]
    return [
        *table,
        reshaped(f"{at}/grn_beta", f"{theirs}.act.1.beta", (hidden,), (1, 1, 1, hidden), layers),
        same(f"{at}/layer_scale", f"{theirs}.gamma", layers),
        *_batch_norm(f"{ours}/norm", f"{theirs}.norm", layers),
        *_batch_norm(f"{ours}/down_norm", f"{theirs}.pwconv2.2", layers),
    ]


def entries(theirs: dict) -> list[Entry]:
    merged, down = bool(theirs.get("deploy", False)), "downsample_layers"
    prefix = "" if merged else "params/"
    table = [*_convolution(f"{prefix}stem", f"{down}.0.0"), *norm(f"{prefix}stem/norm", f"{down}.0.1")]
    for i, stage in enumerate(_stages(theirs)):
        first = 0 if i else 3  # the second convolution of the stem is an item of a list
        table += _convolution(f"{prefix}reduce_{i}", f"{down}.{i}.{first}")
        table += norm(f"{prefix}reduce_{i}/norm", f"{down}.{i}.{first + 1}")
        for j, kernel in enumerate(stage.group):
            layers = range(j, stage.depth, len(stage.group))
            table += _block(f"stage_{i}/block_{j}", f"stages.{i}.{{layer}}", stage, kernel, layers, merged, prefix)
    if not theirs.get("num_classes", 1000):
        return table
    table += [*norm(f"{prefix}norm", "norm"), linear(f"{prefix}head/kernel", "head.weight")]
    return [*table, same(f"{prefix}head/bias", "head.bias")]
