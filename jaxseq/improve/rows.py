"""The rows of the table, as data.

A row is "BASE" or "BASE+LEVER", such as "retnet+int8". A base is an architecture, trained from its initial values, or a workdir
that the user gives. A lever is one of LEVERS, or any recipe of `jaxseq compress`, such as "channels:0.25+nf4". A new lever is
one more entry of LEVERS; if it makes a model in a new way, one function in `jaxseq.improve.ways` too.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

import jaxseq
from jaxseq import recipes
from jaxseq.compare.presets import Preset
from jaxseq.errors import UserError
from jaxseq.models import _stack


@dataclasses.dataclass(frozen=True)
class Lever:
    """How to get a model from a base.

    about: for the table.
    settings: fields of the base's config to change. In their values {base} is the workdir of the base's run with the same seed,
        {second} the second text, {shared} the base's stack with one block used at every depth, {half} that with half of the
        layers.
    way, argument: a function of `ways`, and what it is told; "" trains with `settings`.
    steps: of training, relative to the preset's.
    second: the model is trained on the second text, and scored on both.
    scratch: the lever or the architecture that is the same model trained from scratch on as many tokens as the base.
    """

    about: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    way: str = ""
    argument: str = ""
    steps: float = 1.0
    second: bool = False
    scratch: str = ""


def compressed(recipe: str, about: str) -> Lever:
    """A lever that takes no training: a recipe of `jaxseq compress`."""
    return Lever(about, way="compress", argument=recipe, steps=0.0)


TEACHER = {"train.objective": "distillation", "train.distill_teacher": "{base}"}
ADAPTERS = {"train.init": "{base}", "train.lora_rank": 8, "data.path": "{second}"}

LEVERS = {
    "shared": Lever("one block used at every depth", {"model.stack": "{shared}"}),
    "multi-query": Lever("one key and value head for all queries", {"model.attention.kv_heads": 1}),
    "window": Lever("attention to the last 64 tokens", {"model.attention.window": 64}),
    "wanda:0.5": compressed("wanda:0.5", "half of the weights zero"),
    "sparsegpt:2:4": compressed("sparsegpt:2:4", "two of four weights zero"),
    "int8": compressed("int8", "8 bits per weight"),
    "int4": compressed("int4", "4 bits per weight"),
    "lowrank:0.5": compressed("lowrank:0.5", "matrices as products with half of the parameters"),
    "student": Lever("half of the layers", {"model.stack": "{half}"}),
    "distilled": Lever("half of the layers, taught by the base", {"model.stack": "{half}", **TEACHER}, scratch="student"),
    "migrated": Lever("attention turned into gated linear attention", way="migrate", argument="gla", steps=0.5, scratch="gla"),
    "lora": Lever("adapters of rank 8, trained on the second text", ADAPTERS, steps=0.25, second=True),
}
ATTENTION = ("multi-query", "window", "migrated")  # levers of softmax attention
COMPRESSIONS = ("wanda:0.5", "sparsegpt:2:4", "int8", "int4", "lowrank:0.5")


class TablePreset(NamedTuple):
    """Rows, a budget for each trained row, and the number of seeds."""

    rows: tuple[str, ...]
    budget: Preset
    seeds: int


def every(base: str, *without: str) -> tuple[str, ...]:
    """The base and all its levers."""
    return (base, *(f"{base}+{lever}" for lever in LEVERS if lever not in without))


BUDGET = Preset(
    "quick", parameters=None, tokens=1_024_000, batch=4, length=256, evaluations=4, evaluation_tokens=132_000, speed_tokens=0,
    speed_lengths=(), memory_lengths=(), decode_contexts=(2048,), prefill_lengths=(), rounds=5, state_contexts=(2048,),
)  # fmt: skip
PRESETS = {
    "quick": TablePreset((*every("transformer"), "retnet"), BUDGET, 1),
    "full": TablePreset(
        (*every("transformer"), *every("retnet", *ATTENTION), *every("mamba", *ATTENTION), "gla"), BUDGET._replace(name="full"), 3
    ),
}


class TableRow(NamedTuple):
    name: str
    lever: Lever
    base: str = ""  # the row it is made from; "": a base itself
    workdir: str = ""  # of a base that the user gives
    scratch: str = ""  # the row of the same model trained from scratch

    @property
    def trained(self) -> bool:
        return not (self.lever.way or self.workdir)


def named(wanted: Iterable[str], workdirs: Mapping[str, str]) -> dict[str, TableRow]:
    """The rows in order, each base before what is made from it. workdirs: {base: workdir} of the bases that are not trained.

    Raises UserError for an unknown base or lever.
    """
    rows: dict[str, TableRow] = {}
    for name in wanted:
        base, plus, word = name.strip().partition("+")
        if base not in rows:
            if base not in workdirs and base.partition(":")[0] not in jaxseq.names():
                known = ", ".join([*workdirs, *jaxseq.names()])
                raise UserError(f"there is no base {base!r} for the row {name!r}; choose one of: {known}")
            rows[base] = TableRow(
                base, Lever("as given" if base in workdirs else "trained from scratch"), workdir=workdirs.get(base, "")
            )
        if plus:
            rows[f"{base}+{word}"] = TableRow(f"{base}+{word}", lever_of(name, word), base)
    if not rows:
        raise UserError("there are no rows; name some, such as --rows=transformer,transformer+int8")
    word = {name: row.lever.scratch for name, row in rows.items()}
    same = {name: f"{row.base}+{word[name]}" if word[name] in LEVERS else word[name] for name, row in rows.items()}
    return {name: row._replace(scratch=same[name] if same.get(name) in rows else "") for name, row in rows.items()}


def lever_of(name: str, word: str) -> Lever:
    """The lever of this name, or the recipe of `jaxseq compress`. Raises UserError if it is neither."""
    if word in LEVERS:
        return LEVERS[word]
    try:
        recipes.steps("compress", word)
    except UserError as error:
        raise UserError(f"the row {name!r} is neither a lever ({', '.join(LEVERS)}) nor a recipe of compress: {error}") from None
    return compressed(word, f"compressed: {word}")


def stacks(config: ConfigDict) -> dict[str, str]:
    """{"shared", "half"}: the config's stack with one block used at every depth, and with half of the layers."""
    segments = _stack.parse(config.model.stack)
    return {
        "shared": _stack.text(segment._replace(distinct=1 if segment.repeats > 1 else None) for segment in segments),
        "half": _stack.text(segment.repeated(max(1, segment.repeats // 2)) for segment in segments),
    }
