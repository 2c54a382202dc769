"""Runs the rows: trains, makes and measures each model, one part after another, with the engine of `jaxseq compare`.

results.json has the form of a comparison's; `architectures` are the rows, and each has a `row` that says how it was made. A
finished part is never repeated. A row that fails leaves the others alone, except those that are made from it.
"""

import functools
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

import jaxseq
from jaxseq import compress, data
from jaxseq.compare import costs, engine, entries, parts
from jaxseq.compare.cache import compilation_cache
from jaxseq.compare.excerpts import Excerpts
from jaxseq.compare.parts import Part
from jaxseq.compare.presets import Preset
from jaxseq.compare.progress import Display
from jaxseq.compare.runs import run_of
from jaxseq.config import from_dict, to_dict
from jaxseq.data import sources
from jaxseq.errors import UserError
from jaxseq.improve.rows import CUT, GIVEN_RATE, OWN, TablePreset, TableRow, named, settings
from jaxseq.improve.verdicts import KIND, verdicts
from jaxseq.improve.ways import WAYS, Job
from jaxseq.train import structure
from jaxseq.train.workdirs import saved_config

SECOND = "the modules of Python's asyncio"
FURTHER = {"train.objective": "next_token", "train.distill_teacher": None, "train.init_layers": ""}
STARTED = FURTHER | {"train.init": "{base}", "train.init_layers": "even"}  # from the layers of a given model
RATE = {"train.lr": GIVEN_RATE, "train.lr_source": "for a model that is trained already"}
FOLDERS = ("init", "distill_teacher")  # fields of config.train that name the workdir of the base
EVALUATION, MAKING = 5, 20  # rough seconds on two cores, for the progress bar
PER_TOKEN = 1.2e-4


def improve(
    preset: TablePreset, out: str | Path, *, rows: Sequence[str] = (), model: str = "", layers: int = 4, second: str = "",
    seed: int = 0, seeds: int | None = None, overrides: Mapping[str, Any] | None = None, command: str = "",
    console: Console | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Runs or resumes the table in the folder `out`. Writes out/results.json and out/report.html; returns the results.

    Args:
        rows: names, see `jaxseq.improve.rows`; default: those of the preset, and with `model` also its rows `own`.
        model: a workdir, as of `jaxseq import`: the base called "model".
        layers: of the base called "cut", which starts from layers of `model` at equal distances.
        second: the second text, a file or folder; default: the modules of Python's asyncio.
        seed, seeds: each row is trained with seed, seed + 1, …; default: the preset's number of seeds.
        overrides, command, console: as of `jaxseq.compare.engine.compare`.

    Raises UserError for bad input and for a folder that holds another table, engine.Interrupted when asked to stop.
    """
    out = Path(out)
    with compilation_cache(out / ".cache"):
        seeds = preset.seeds if seeds is None else seeds
        table = Table(preset, rows, out, model, layers, second, seed, seeds, dict(overrides or {}), command)
        with Display(console) as display:
            table.run(display)
        return table.store.results


class Table(engine.Comparison):
    """The settings of a table, fixed before the first part runs, and the code of its parts."""

    def __init__(
        self, preset: TablePreset, rows: Sequence[str], out: Path, model: str, layers: int, second: str, seed: int, seeds: int,
        overrides: dict, command: str,
    ):  # fmt: skip
        overrides = entries.overridden(overrides, chosen=())
        if layers < 1:
            raise UserError(f"--layers={layers} leaves no layer; give 1 or more")
        own = preset.own if model else ()
        self.rows, self.layers = named(rows or (*preset.rows, *own), {OWN: model} if model else {}), layers
        self.second = second_text(second) if any(row.lever.second for row in self.rows.values()) else {}
        common = from_dict({}, **{key: value for key, value in overrides.items() if key.startswith("train.")})
        budget, self.given = (entries.budgeted(which, [common], overrides) for which in (preset.budget, preset.given))
        self.preset = budget
        configs: dict[str, ConfigDict] = {}
        for name, row in self.rows.items():
            configs[name] = self.prepared(row, configs, seed, overrides)
        super().open(budget, configs, out, seed, seeds, overrides, command)
        self.results["kind"] = KIND
        self.texts = {(self.data.tokenizer, False, budget.evaluation_tokens): self.excerpts}
        said = second or SECOND
        if self.second and self.results.setdefault("second", said) != said:
            raise UserError(f"{self.store.path} has another second text ({self.results['second']}); give another --out")

    def prepared(self, row: TableRow, configs: Mapping[str, ConfigDict], seed: int, overrides: dict) -> ConfigDict:
        """The row's config; {base} and {second} in its fields are filled in when it is trained."""
        budget = self.budget_of(row)
        if row.workdir:
            return base_config(row, overrides)
        if row.lever.way:
            return configs[row.base]
        if not row.base:
            return entries.prepared(base_config(row, overrides), budget, seed, overrides)
        before = configs[row.base]
        own = settings(row.lever, before, self.layers)
        if own.get("model.stack") == before.model.stack:
            mend = "give fewer --layers" if row.name == CUT else "leave it out"
            raise UserError(f"the row {row.name!r} would equal its base, whose stack is {own['model.stack']}; {mend}")
        try:
            if self.is_given(row):
                own = {"train.init_allow": ",".join(own)} | (FURTHER if "train.init" in own else STARTED) | own
                overrides = RATE | ours(overrides, "data.", "train.") | {"data.tokenizer": before.data.tokenizer}
                config = from_dict(to_dict(before), **overrides | own)
            else:
                config = jaxseq.config(row.base, **overrides | own)
        except UserError as error:
            raise UserError(f"the row {row.name!r} cannot be made: {error}") from None
        budget = budget._replace(tokens=round(budget.tokens * row.lever.steps))
        return entries.prepared(config, budget, seed, overrides | own)

    def is_given(self, row: TableRow) -> bool:
        """Whether the row is a model that the user gives, or made from one."""
        return bool(row.workdir or row.base and self.is_given(self.rows[row.base]))

    def budget_of(self, row: TableRow) -> Preset:
        return self.given if self.is_given(row) else self.preset

    def parts(self) -> Iterator[Part]:
        for name, row in self.rows.items():
            for seed in self.seeds_of(row):
                where = "" if seed == self.seed else f"seed {seed}: "
                yield from self.parts_of(row, seed, f"{name}: {where}", where)
            yield parts.size_part(name, self)
        for measurement in parts.MEASUREMENTS:
            if measurement.metric in (costs.DECODE, costs.ENERGY):
                yield from parts.of_measurement(measurement, tuple(self.rows), self)

    def parts_of(self, row: TableRow, seed: int, what: str, where: str) -> Iterator[Part]:
        """The parts of one run of a row."""

        def part(title: str, weight: float, key: str, run: Callable[..., None]) -> Part:
            lacks = lambda entry: key not in run_of(entry, seed)  # noqa: E731
            return Part(what + title, weight, (row.name,), lacks, functools.partial(run, seed=seed), where)

        if row.trained:
            train = self.configs[row.name].train
            yield part("training", 10 + PER_TOKEN * train.steps * train.batch * train.length, "train_seconds", self.train)
        elif not row.workdir:
            tokens = self.steps_of(row) * self.budget_of(row).batch * self.budget_of(row).length
            yield part(row.lever.way, MAKING + PER_TOKEN * tokens, "making_seconds", self.make)
        yield part("evaluation", EVALUATION, "validation", self.validate)
        if row.lever.second or any(other.base == row.name and other.lever.second for other in self.rows.values()):
            yield part("evaluation on the second text", EVALUATION, "second", self.validate_second)

    def seeds_of(self, row: TableRow) -> tuple[int, ...]:
        """A given model and what is made from it have one run."""
        return self.seeds[:1] if self.is_given(row) else self.seeds

    def sized(self, name: str) -> ConfigDict:
        return self.configs[name]

    def title(self, name: str) -> str:
        return ""  # rows are called by their names

    def describe(self, name: str, entry: dict) -> None:
        row = self.rows[name]
        if not (row.trained or row.workdir) and "making_seconds" in entry:
            self.configs[name] = self.portable(saved_config(self.workdir(name)))
        counted = {"parameters": entry["parameters"]} if "disk_bytes" in entry else {}
        super().describe(name, entry)
        entry |= {"row": {"base": row.base, "about": self.about(row), "scratch": row.scratch}, **counted}

    def about(self, row: TableRow) -> str:
        """In the table. A given model says on how much text its rows are scored, which is less than for others."""
        scored = f"; scored on {self.given.evaluation_tokens:,} tokens, as all that is made from it" if row.workdir else ""
        return row.lever.about.format(layers=self.layers) + scored

    @staticmethod
    def portable(config: ConfigDict) -> ConfigDict:
        """The config without paths of this machine."""
        with config.unlocked():
            config.train.update({key: "{base}" for key in FOLDERS if config.train[key]})
        return config

    def plain(self, config: ConfigDict) -> dict[str, Any]:
        """The config, without the folder of a given model's tokenizer."""
        fields = super().plain(config)
        if (file := Path(fields["data"]["tokenizer"])).is_absolute():
            fields["data"]["tokenizer"] = file.name
        return fields

    def workdir(self, name: str, seed: int | None = None) -> Path:
        return Path(self.rows[name].workdir) if self.rows[name].workdir else super().workdir(name, seed)

    def config_of(self, name: str, seed: int) -> ConfigDict:
        row, config = self.rows[name], super().config_of(name, seed)
        with config.unlocked():
            for key in FOLDERS:
                if config.train[key] == "{base}":
                    config.train[key] = str(self.workdir(row.base, seed))
            if row.lever.second:
                config.data.update(self.second)
        return config

    def train(self, names: list[str], seed: int) -> None:
        self.check_base(names[0])
        super().train(names, seed)

    def make(self, names: list[str], seed: int) -> None:
        """Makes a model from its base, in the way of its lever."""
        (name,) = names
        self.check_base(name)
        row, began = self.rows[name], time.monotonic()
        fields = ours(self.overrides, "data.") | (self.smaller() if self.is_given(row) else {})
        job = Job(
            self.workdir(row.base, seed), row.lever.argument, self.workdir(name, seed), self.steps_of(row), seed, fields,
            lambda line: self.display.update(0.0, line),
        )  # fmt: skip
        tokens, seconds = WAYS[row.lever.way](job)
        seconds = time.monotonic() - began if seconds is None else seconds
        entry = self.results["architectures"][name]
        run_of(entry, seed).update(making_seconds=seconds, making_tokens=tokens)
        if seed == self.seed:
            self.describe(name, entry)

    def smaller(self) -> dict[str, Any]:
        """The fields of the budget for what is made from a given model."""
        given = self.given
        return {
            **RATE, "train.batch": given.batch, "train.length": given.length,
            "eval.batch": 1, "eval.length": given.length, "eval.tokens": given.evaluation_tokens // 4,
        }  # fmt: skip

    def steps_of(self, row: TableRow) -> int:
        return round(self.budget_of(row).steps * row.lever.steps)

    def check_base(self, name: str) -> None:
        """Raises UserError if the row is made from one that has failed."""
        base = self.rows[name].base
        if base and self.results["architectures"][base]["status"].startswith("failed"):
            raise UserError(f"it is made from {base}, which failed")

    def validate(self, names: list[str], seed: int) -> None:
        run_of(self.results["architectures"][names[0]], seed)["validation"] = self.scored(names[0], seed, second=False)

    def validate_second(self, names: list[str], seed: int) -> None:
        run_of(self.results["architectures"][names[0]], seed)["second"] = self.scored(names[0], seed, second=True)

    def scored(self, name: str, seed: int, second: bool) -> dict[str, Any]:
        """The score of the finished model on held-out documents of either text, in tokens of its own tokenizer."""
        tokenizer, budget = self.configs[name].data.tokenizer, self.budget_of(self.rows[name])
        if (key := (tokenizer, second, budget.evaluation_tokens)) not in self.texts:
            section = self.data.copy_and_resolve_references()
            with section.unlocked():
                section.update({"tokenizer": tokenizer} | (self.second if second else {}))
            self.texts[key] = Excerpts(data.corpus(section), budget.evaluation_tokens, budget.length)
        return self.score(name, seed, None, self.texts[key])

    def weigh(self, names: list[str]) -> None:
        super().weigh(names)
        subject = self.subject(names[0])
        settled = structure.settled(subject.config, subject.params)[1]
        self.results["architectures"][names[0]]["parameters"] = compress.count(settled)  # without fixed zeros

    def judged(self) -> tuple[dict[str, Any], str]:
        from jaxseq.improve import report  # imported late: matplotlib takes a second

        return verdicts(self.results), report.render(self.results)


def second_text(path: str) -> dict[str, str]:
    """The fields data.source and data.path of the second text."""
    path = path or str(Path(sysconfig.get_path("stdlib")) / "asyncio")
    if not Path(path).exists():
        raise UserError(f"the second text {path} does not exist; name a file or folder as --second")
    return {"source": sources.guess(Path(path)), "path": path}


def base_config(row: TableRow, overrides: Mapping[str, Any]) -> ConfigDict:
    """The config of a base. Raises UserError if a given one is no workdir."""
    if not row.workdir:
        return jaxseq.config(row.name, **overrides)
    try:
        found = saved_config(row.workdir)
    except UserError:  # a folder of published weights has a config.json, too
        found = None
    if found is None or found.model.kind != "lm":
        raise UserError(
            f"--model={row.workdir} is not the workdir of a language model; for published weights, make one by `jaxseq import`"
        )
    return jaxseq.config(row.workdir, **ours(overrides, "data."))


def ours(overrides: Mapping[str, Any], *sections: str) -> dict[str, Any]:
    """The overrides of these sections of the config."""
    return {key: value for key, value in overrides.items() if key.startswith(sections)}
