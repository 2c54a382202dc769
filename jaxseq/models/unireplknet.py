"""UniRepLKNet: a convolutional network with a few large kernels, for images (Ding et al. 2023, arXiv:2311.15599).

Its causal counterpart for sequences is the mixer `unireplk`.
"""

import re
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict, config_dict

from jaxseq.errors import UserError
from jaxseq.layers import LayerNorm, Linear
from jaxseq.mixers import _reparam
from jaxseq.models import _unireplknet_blocks as parts
from jaxseq.models._network import DTYPES, REMAT, Network, check, scan
from jaxseq.models._unireplknet_merge import merge
from jaxseq.models._unireplknet_tiles import tiled
from jaxseq.ops import _time

__all__ = ["DEFAULTS", "UniRepLKNet", "build", "merge", "tiled"]

_STAGE = re.compile(r"(\d+)\*(\d+):(\d+(?:,\d+)*)")
HEAD_EPS = 1e-6


class Stage(NamedTuple):
    """A stage of the network: blocks of one width."""

    depth: int
    width: int
    kernels: tuple[int, ...]  # kernel sizes of successive blocks, repeated cyclically

    @property
    def group(self) -> tuple[int, ...]:
        """Kernel sizes of the blocks in one step of the scan."""
        return self.kernels if self.depth % len(self.kernels) == 0 else (self.kernels * self.depth)[: self.depth]

    @property
    def repeats(self) -> int:
        return self.depth // len(self.group)


def parse(stages: str) -> tuple[Stage, ...]:
    """Stages of "2*40:3 6*160:13,3". Raises UserError for anything that is not `DEPTH*WIDTH:KERNEL,KERNEL… …`."""
    found = []
    for part in stages.split():
        match = _STAGE.fullmatch(part)
        if not match or int(match[1]) < 1 or int(match[2]) % 4:
            raise UserError(
                f"cannot read {part!r} in model.stages; write blocks*width:kernels like 2*80:3 6*160:13,3, widths multiples of 4"
            )
        stage = Stage(int(match[1]), int(match[2]), tuple(map(int, match[3].split(","))))
        for kernel in stage.kernels:
            if kernel not in parts.PLAIN:
                _reparam.branches(kernel)
        found.append(stage)
    if not found:
        raise UserError("model.stages is empty; write blocks*width:kernels for each stage, like 2*80:3 6*160:13,3")
    return tuple(found)


class Group(nn.Module):
    """Blocks of one width, one after another."""

    kernels: tuple[int, ...]
    fields: tuple[tuple[str, Any], ...]  # of every block

    @nn.compact
    def __call__(self, x_BYXD: jax.Array, rates: jax.Array | None, train: bool) -> jax.Array:
        for i, kernel in enumerate(self.kernels):
            rate = None if rates is None else rates[i]
            x_BYXD = parts.UniRepLKNetBlock(kernel=kernel, **dict(self.fields), name=f"block_{i}")(x_BYXD, rate, train)
        return x_BYXD


class UniRepLKNet(Network):
    """logits = model.apply(variables, images, train=False)

    images [B, rows, columns, channels] -> logits [B, classes] in the accumulation dtype. With `features=True`, or if there is no
    classifier: the tuple of feature maps of the stages, at 1/4, 1/8, 1/16 and 1/32 of the resolution.

    variables: {"params", "batch_stats"} as returned by `init`; only {"params"} for a merged model. With `train=True` batch norm
    uses the statistics of the batch, and updates the running ones if "batch_stats" is mutable; drop path uses the random key
    "dropout".
    """

    stages: tuple[Stage, ...]
    classes: int = 0  # 0: no classifier
    channels: int = 3
    drop_path: float = 0.0  # rate of the last block; rates increase linearly from 0
    layer_scale: float = 1e-6
    momentum: float = 0.1  # of the running statistics
    merged: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    collections: ClassVar[tuple[str, ...]] = ("params", "batch_stats")

    @nn.nowrap
    def example(self) -> tuple:
        """Example inputs for `init`: the smallest image."""
        side = 2 ** (1 + len(self.stages))
        return (jnp.zeros((1, side, side, self.channels), self.dtype),)

    @nn.nowrap
    def fields(self, stage: Stage) -> tuple[tuple[str, Any], ...]:
        """Fields of the blocks of a stage, except the kernel size."""
        own = dict(width=stage.width, merged=self.merged, layer_scale=self.layer_scale)
        return tuple((own | dict(momentum=self.momentum, dtype=self.dtype)).items())

    def setup(self) -> None:
        widths = [stage.width for stage in self.stages]
        self.stem = parts.Reduce(widths[0] // 2, True, self.dtype)
        self.reduce = [parts.Reduce(width, dtype=self.dtype) for width in widths]
        self.stage = [Group(stage.group, self.fields(stage)) for stage in self.stages]
        self.norm = LayerNorm(HEAD_EPS, self.dtype)
        self.head = Linear((self.classes,), ("embed", "vocab"), 1, True, parts.INIT, self.dtype)

    def __call__(self, images: jax.Array, train: bool = False, features: bool = False) -> jax.Array | tuple[jax.Array, ...]:
        call = lambda group, x_BYXD, rates: (group(x_BYXD, rates, train), None)  # noqa: E731
        x_BYXD, maps, done = self.stem(images), [], 0
        rates = np.linspace(0, self.drop_path, sum(stage.depth for stage in self.stages), dtype=np.float32)
        for i, stage in enumerate(self.stages):
            own = rates[done : done + stage.depth].reshape(stage.repeats, -1) if self.drop_path and train else None
            x_BYXD, _ = scan(self.stage[i], stage.repeats, self.reduce[i](x_BYXD), own, call, self.remat)
            maps.append(x_BYXD)
            done += stage.depth
        if features or not self.classes:
            return tuple(maps)
        return self.classify(jnp.mean(x_BYXD, axis=(1, 2), dtype=_time.accumulation_dtype(x_BYXD)))

    def classify(self, mean_BD: jax.Array) -> jax.Array:
        """Logits from the mean over positions of the last feature map."""
        return self.head(self.norm(mean_BD)).astype(mean_BD.dtype)


def build(config: ConfigDict) -> UniRepLKNet:
    """The model that `config.model` describes. Raises UserError for invalid stages, dtypes and remat policies."""
    model = config.model
    check(model, dtype=DTYPES, remat=REMAT)
    if not 0 <= model.drop_path < 1:
        raise UserError(f"model.drop_path={model.drop_path} is outside [0, 1); give a fraction")
    same = {name: model[name] for name in ("channels", "drop_path", "layer_scale", "momentum", "merged", "remat")}
    return UniRepLKNet(parse(model.stages), model.classes or 0, dtype=DTYPES[model.dtype], **same)


DEFAULTS = {
    "stages": "2*40:3 2*80:13 6*160:13 2*320:13",  # blocks*width:kernels of each stage; this is UniRepLKNet-A
    "classes": config_dict.placeholder(int),  # empty: the number of labels in the data
    "channels": 3,
    "drop_path": 0.0,
    "layer_scale": 1e-6,
    "momentum": 0.1,  # weight of a new batch in the running statistics
    "merged": False,  # one kernel per block, for evaluation
    "dtype": "float32",
    "remat": "none",
}
