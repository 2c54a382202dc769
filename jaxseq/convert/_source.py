"""A source is one file of `jaxseq/convert/sources`. Its functions are the fields below; those with a default are optional."""

import dataclasses
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from flax import linen as nn

from jaxseq import models, registry


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """The argument `theirs` is always their config, a dict. See `jaxseq.convert.sources`."""

    title: str  # the first line of the file
    describe: Callable[[nn.Module], dict | None]  # their config for one of our modules
    entries: Callable[[dict], list]  # the table of names
    config: Callable[[Mapping], Any] | None = None  # our config; None: a source of single layers
    module: Callable[[Mapping], nn.Module] | None = None  # builds such a layer
    recognises: Callable[[dict, set[str]], bool] = lambda theirs, names: False
    aliases: Callable[[dict], dict] = lambda theirs: {}
    infer: Callable[[dict], dict] = lambda shapes: {}
    complete: Callable[[dict, Mapping], dict] = lambda theirs, tensors: theirs
    rename: Callable[[set[str]], dict] | None = None
    tokenizer: Callable[[Mapping], str | None] = lambda theirs: None
    rank: int = 0  # of sources that hold the same model, the one with the lowest is taken for export unless one is named
    beside: Callable[[Mapping], dict] = lambda theirs: {}

    def build(self, theirs: Mapping) -> nn.Module:
        return self.module(theirs) if self.module else models.build(self.config(theirs))


def source(module: ModuleType) -> WeightSource:
    given = {field.name for field in dataclasses.fields(WeightSource)} & vars(module).keys()
    return WeightSource(title=registry.doc(module).splitlines()[0], **{name: getattr(module, name) for name in given})
