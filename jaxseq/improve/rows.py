"""The rows of the table, as data.

A row is "BASE" or "BASE+LEVER", such as "retnet+int8". A base is an architecture, trained from its initial values, or a workdir
that the user gives ("model"), or a few layers of that model ("cut"). A lever is one of LEVERS, or any recipe of `jaxseq
compress`, such as "channels:0.25+nf4". A new lever is one more entry of LEVERS; if it makes a model in a new way, one function
in `jaxseq.improve.ways` too.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

import jaxseq
from jaxseq import recipes, registry
from jaxseq.compare.presets import Preset
from jaxseq.errors import UserError
from jaxseq.models import _stack


@dataclasses.dataclass(frozen=True)
class Lever:
    """How to get a model from a base.

    about: for the table.
    settings: fields of the base's config to change. In their values {base} is the workdir of the base's run with the same seed,
        {second} the second text, {shared} the base's stack with one block used at every depth, {half} that with half of the
        layers, {cut} that with the number of layers that the user gives.
    mixer: what replaces the base's attention; it keeps the attention's SIZES.
    way, argument: a function of `ways`, and what it is told; "" trains with `settings`.
    steps: of training, relative to the preset's.
    second: the model is trained on the second text, and scored on both.
    scratch: the lever or the architecture that is the same model trained from scratch on as many tokens as the base.
    """

    about: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mixer: str = ""
    way: str = ""
    argument: str = ""
    steps: float = 1.0
    second: bool = False
    scratch: str = ""


def compressed(recipe: str, about: str) -> Lever:
    """A lever that takes no training: a recipe of `jaxseq compress`."""
    return Lever(about, way="compress", argument=recipe, steps=0.0)


def attention(mixer: str, about: str, **fields: Any) -> Lever:
    """A lever that replaces attention by a mixer with these fields."""
    return Lever(about, {f"model.{mixer}.{name}": value for name, value in fields.items()}, mixer=mixer)


OWN, CUT = "model", "cut"  # the bases that are the workdir of --model, and some of its layers
SIZES = ("heads", "kv_heads", "head_size", "theta")
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
# Windows and blocks are smaller than the rows of the table, which would otherwise see everything.
MIXERS = {
    "differential": attention("differential_attention", "the difference of two attentions"),
    "normed": attention("normed_attention", "queries and keys with norms, outputs with a gate", gated=True),
    "latent": attention("mla", "keys and values from one short vector per token"),
    "forgetting": attention("forgetting_attention", "scores with a learned decay"),
    "adaptive-span": attention("adaptive_span", "a learned window for each head"),
    "big-bird": attention("big_bird", "blocks of 16: near ones, the first and random ones", block=16),
    "native-sparse": attention(
        "native_sparse_attention", "summaries of blocks, a few blocks and a window", block=16, selected=4, window=64
    ),
    "indexer": attention(
        "deepseek_sparse_attention", "64 tokens, which an indexer chooses", selected=64, index_heads=2, index_size=16
    ),
    "segments": attention("infini_attention", "segments of 64 tokens, and a memory of all earlier ones", segment=64),
    "deformable": attention("deformable_attention", "4 points per head, at learned offsets"),
    "lightning": attention("lightning", "linear attention with fixed decays"),
    "gla": attention("gla", "gated linear attention", key_factor=1.0),
}
LEVERS |= MIXERS
COMPRESSIONS = ("wanda:0.5", "sparsegpt:2:4", "int8", "int4", "lowrank:0.5")
ATTENTION = ("multi-query", "window", "migrated", *MIXERS)  # levers of softmax attention
SHORTENED = Lever("{layers} of its layers, taught by it on the text", {"model.stack": "{cut}", **TEACHER})


class TablePreset(NamedTuple):
    """Rows, a budget for each trained row, the number of seeds, and the rows and the budget for a model that the user gives."""

    rows: tuple[str, ...]
    budget: Preset
    seeds: int
    own: tuple[str, ...]
    given: Preset


def every(base: str, *without: str) -> tuple[str, ...]:
    """The base and all its levers."""
    return (base, *(f"{base}+{lever}" for lever in LEVERS if lever not in without))


BUDGET = Preset(
    "quick", parameters=None, tokens=1_024_000, batch=4, length=256, evaluations=4, evaluation_tokens=132_000, speed_tokens=0,
    speed_lengths=(), memory_lengths=(), decode_contexts=(2048,), prefill_lengths=(), rounds=5, state_contexts=(2048,),
)  # fmt: skip
# For a model with a hundred times as many parameters as the others. It is already trained, so a few steps show the direction.
GIVEN = BUDGET._replace(name="given", tokens=16_384, batch=1, evaluations=1, evaluation_tokens=8192)
GIVEN_RATE = 5e-4
WHOLE = (OWN, *(f"{OWN}+{lever}" for lever in (*COMPRESSIONS, "lora")))
PRESETS = {
    "quick": TablePreset((*every("transformer", *MIXERS), "retnet"), BUDGET, 1, WHOLE, GIVEN),
    "full": TablePreset(
        (*every("transformer"), *every("retnet", *ATTENTION), *every("mamba", *ATTENTION)),
        BUDGET._replace(name="full", tokens=307_200), 3,
        (*WHOLE, *every(CUT, *COMPRESSIONS, *MIXERS)), GIVEN,
    ),
}  # fmt: skip


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

    def add_base(base: str, name: str) -> None:
        if base in rows:
            return
        if base in workdirs:
            rows[base] = TableRow(base, Lever("as given"), workdir=workdirs[base])
        elif base == CUT and OWN in workdirs:
            add_base(OWN, name)
            rows[CUT] = TableRow(CUT, SHORTENED, OWN)
        elif base.partition(":")[0] in jaxseq.names():
            rows[base] = TableRow(base, Lever("trained from scratch"))
        else:
            own = [*workdirs, CUT] if workdirs else []
            raise UserError(
                f"there is no base {base!r} for the row {name!r}; choose one of: {', '.join([*own, *jaxseq.names()])}"
            )

    for name in wanted:
        base, plus, word = name.strip().partition("+")
        add_base(base, name)
        if plus:
            rows[f"{base}+{word}"] = TableRow(f"{base}+{word}", lever_of(name, word), base)
    if not rows:
        raise UserError("there are no rows; name some, such as --rows=transformer,transformer+int8")
    same = {name: f"{row.base}+{row.lever.scratch}" for name, row in rows.items()}
    return {name: row._replace(scratch=same[name] if same[name] in rows else "") for name, row in rows.items()}


def lever_of(name: str, word: str) -> Lever:
    """The lever of this name, or the recipe of `jaxseq compress`. Raises UserError if it is neither."""
    if word in LEVERS:
        return LEVERS[word]
    try:
        recipes.steps("compress", word)
    except UserError as error:
        raise UserError(f"the row {name!r} is neither a lever ({', '.join(LEVERS)}) nor a recipe of compress: {error}") from None
    return compressed(word, f"compressed: {word}")


def settings(lever: Lever, config: ConfigDict, layers: int) -> dict[str, Any]:
    """The fields of a model that is trained. config: of the base. layers: of {cut}. {base} and {second} stay as they are."""
    facts = stacks(config, layers) | {"base": "{base}", "second": "{second}"}
    own = {key: value.format(**facts) if isinstance(value, str) else value for key, value in lever.settings.items()}
    return own | (instead(config, lever.mixer) if lever.mixer else {})


def instead(config: ConfigDict, mixer: str) -> dict[str, Any]:
    """The fields of a config with attention replaced by `mixer`."""
    known = {field.name for field in dataclasses.fields(registry.load_class("mixers", mixer))}
    attention = config.model.get("attention", ConfigDict())
    sizes = {name: attention[name] for name in SIZES if name in known and attention.get(name) is not None}
    segments = _stack.parse(config.model.stack)
    changed = [s._replace(labels=tuple(mixer if label == "attention" else label for label in s.labels)) for s in segments]
    return {"model.stack": _stack.text(changed)} | {f"model.{mixer}.{name}": value for name, value in sizes.items()}


def stacks(config: ConfigDict, layers: int) -> dict[str, str]:
    """{"shared", "half", "cut"}: the config's stack with one block used at every depth, with half of the layers, and with about
    this number of them."""
    segments = _stack.parse(config.model.stack)
    total = sum(segment.repeats for segment in segments)
    return {
        "shared": _stack.text(segment._replace(distinct=1 if segment.repeats > 1 else None) for segment in segments),
        "half": _stack.text(segment.repeated(max(1, segment.repeats // 2)) for segment in segments),
        "cut": _stack.text(segment.repeated(max(1, round(segment.repeats * layers / total))) for segment in segments),
    }
