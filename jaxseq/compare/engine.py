"""Runs a comparison: the same budget for every architecture, one part after another. Each part is saved when it is done.

A part is done for an architecture when its figures are in results.json; they are never computed again. If an architecture
fails, the failure is reported and the remaining parts skip it; the next run tries it again.
"""

import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

import jaxseq
from jaxseq import data, paths
from jaxseq.compare import entries, fit, machine, measure
from jaxseq.compare.cache import compilation_cache
from jaxseq.compare.excerpts import Excerpts, markov
from jaxseq.compare.parts import Measurement, Part, parts
from jaxseq.compare.presets import Preset
from jaxseq.compare.progress import Display
from jaxseq.compare.runs import run_of, seconds_at
from jaxseq.compare.store import ResultsFile, fresh
from jaxseq.compare.verdicts import verdicts
from jaxseq.compare.words import short_count
from jaxseq.config import to_dict
from jaxseq.errors import UserError, interrupted, is_disk_full
from jaxseq.evaluation import evaluate
from jaxseq.generation import generate
from jaxseq.train import load, train
from jaxseq.train.metrics import read

MARKOV_ORDERS = (1, 2, 3)
PROMPTS, PROMPT_TOKENS = 2, 48
TEMPERATURE = 0.8
EVALUATION_ROWS = 16


class Interrupted(Exception):
    """The comparison was asked to stop; finished parts are on disk. `signal`: the number of the signal, 0 if unknown."""

    def __init__(self, signal: int = 0):
        super().__init__()
        self.signal = signal


def compare(
    preset: Preset, architectures: Sequence[str], out: str | Path, *, seed: int = 0, seeds: int = 1,
    overrides: Mapping[str, Any] | None = None, command: str = "", console: Console | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Runs or resumes the comparison in the folder `out`. Writes out/results.json and out/report.html; returns the results.

    Args:
        architectures: names or .py files as in `jaxseq.config`, or "all".
        seed, seeds: each architecture is trained `seeds` times, with seed, seed + 1, …. The seed decides the initial values
            and the order of the text, which is the same for every architecture. More seeds can be added to a finished
            comparison.
        overrides: dotted config fields, for all architectures.
        command: the command line, for the report.
        console: where progress is shown.

    Raises UserError for bad input and for a folder that holds another comparison, Interrupted when asked to stop.
    """
    out = paths.of(out)
    with compilation_cache(out / ".cache"):
        comparison = Comparison(preset, architectures, out, seed, seeds, dict(overrides or {}), command)
        with Display(console) as display:
            comparison.run(display)
        return comparison.store.results


class Comparison:
    """The settings of a comparison, fixed before the first part runs, and the code of its parts."""

    def __init__(
        self, preset: Preset, architectures: Sequence[str], out: Path, seed: int, seeds: int, overrides: dict, command: str
    ):
        overrides, self.given = entries.overridden(overrides), entries.keys(architectures)
        configs = {name: jaxseq.config(given, **overrides) for name, given in self.given.items()}
        preset = entries.budgeted(preset, configs.values(), overrides)
        configs = {name: entries.prepared(config, preset, seed, overrides) for name, config in configs.items()}
        self.open(preset, configs, out, seed, seeds, overrides, command)

    def open(
        self, preset: Preset, configs: dict[str, ConfigDict], out: Path, seed: int, seeds: int, overrides: dict, command: str
    ) -> None:
        """Opens the text and the results in `out`. Raises UserError if they belong to another comparison."""
        self.preset, self.configs, self.out, self.overrides, self.seed = preset, configs, out, overrides, seed
        self.seeds = entries.seeds(seed, seeds, overrides)
        self.data = next(iter(self.configs.values())).data
        self.tokenizer = data.tokenizer(self.data)
        self.corpus = data.corpus(self.data, self.tokenizer)
        self.excerpts = Excerpts(self.corpus, self.preset.evaluation_tokens, self.preset.length)
        meshed = any(key.startswith("mesh.") for key in self.overrides)
        self.devices = jax.devices() if meshed else jax.local_devices()[:1]
        self.subjects: dict[str, measure.MeasuredModel] = {}
        if paths.is_remote(out):
            paths.check_bucket(out)
        else:
            paths.make_folder(out, f"--out={out}")
        self.store = ResultsFile(out)
        self.store.open(fresh(self, command))

    @property
    def results(self) -> dict[str, Any]:
        return self.store.results

    # The parts for each architecture. Every part stores plain data in the architecture's entry.

    def run(self, display: Display) -> None:
        self.display = display
        self.start()
        todo = [(part, names) for part in self.parts() if (names := self.waiting(part))]
        display.plan(sum(part.weight * len(names) for part, names in todo))
        for name in {name for _, names in todo for name in names}:
            self.results["architectures"][name]["status"] = "partial"
        for part, _ in todo:
            if names := self.waiting(part):
                self.do(part, names)
        for entry in self.entries().values():
            if entry["status"] == "partial":
                entry["status"] = "done"
        self.finish()

    def parts(self) -> Iterator[Part]:
        return parts(self)

    def entries(self) -> dict[str, dict]:
        """Entries of the architectures named in this run."""
        return {name: self.results["architectures"][name] for name in self.configs}

    def waiting(self, part: Part) -> list[str]:
        found = self.results["architectures"]
        return [name for name in part.names if not found[name]["status"].startswith("failed") and part.lacks(found[name])]

    def do(self, part: Part, names: list[str]) -> None:
        """Runs one part for these architectures. If one fails, the others continue."""
        self.display.begin(part.title, part.weight * len(names))
        began, others = time.monotonic(), machine.OtherPrograms()
        try:
            part.run(names)
        except Exception as error:
            # A part for several architectures handles their failures itself: an exception that gets here is a bug in jaxseq.
            stopped = isinstance(error, Interrupted) or interrupted(error)
            if stopped or is_disk_full(error) or len(part.names) > 1:
                raise
            self.fail(names[0], error, part.where)
        seconds = self.results["seconds"]
        seconds[part.title] = seconds.get(part.title, 0.0) + time.monotonic() - began
        shares = self.results.setdefault("other_programs", {})
        shares[part.title] = max(shares.get(part.title, 0.0), round(others.share(), 3))
        self.store.save()
        self.display.end()

    def fail(self, name: str, error: Exception, where: str = "") -> None:
        reason = where + (" ".join(str(error).split()) or type(error).__name__)
        self.results["architectures"][name]["status"] = f"failed: {reason[:400]}"
        folder = self.run_folder(name)
        if not paths.is_remote(folder):
            folder.mkdir(parents=True, exist_ok=True)
        paths.write(folder / "failure.txt", "".join(traceback.format_exception(error)))
        self.display.say(f"{name} failed: {reason}")

    def start(self) -> None:
        """Everything that needs no training: sizes of all architectures, the machine, the Markov models."""
        results = self.results
        if "machine" not in results:
            results["machine"] = machine.describe()
        for name in self.configs:
            entry = results["architectures"].setdefault(name, {"status": "partial", "seed": self.seed})
            if entry["status"].startswith("failed"):
                entry["status"] = "partial"
            try:
                self.describe(name, entry)
            except UserError as error:
                if len(self.configs) == 1:
                    raise
                entry["status"] = f"failed: {error}"
        if "markov" not in results:
            config = next(iter(self.configs.values()))
            batches = data.batches(config, self.corpus)
            results["markov"] = markov(batches, self.preset.steps, self.excerpts, MARKOV_ORDERS)
        self.store.save()

    def describe(self, name: str, entry: dict) -> None:
        """Fits the architecture to the budget, or reuses the size from an earlier run."""
        config = self.sized(name)
        plain = self.plain(config)
        if "curve" in entry and entries.completed(entry["config"]) != plain:
            raise UserError(
                f"the config of {name} has changed since {self.store.path} was written; give another --out, or delete {self.out}"
            )
        self.configs[name] = config
        model = jaxseq.build(config)
        entry |= {
            "title": self.title(name),
            "config": plain,
            "parameters": fit.parameters_of(model),
            **entries.learning_rate(config, self.overrides),
            "forms": measure.op_forms(config, self.preset.length),
            "state_bytes": [{"context": n, "bytes": measure.state_bytes(model, n)} for n in self.preset.state_contexts],
        }
        self.display.say(f"{name}: {entry['parameters']:,} parameters, {config.model.stack} of width {config.model.width}")

    def plain(self, config: ConfigDict) -> dict[str, Any]:
        """The config as the results hold it."""
        return to_dict(config)

    def sized(self, name: str) -> ConfigDict:
        """The config with the number of parameters of the budget."""
        return entries.fitted(self.configs[name], self.preset.parameters)

    def title(self, name: str) -> str:
        return entries.title(self.given[name])

    def config_of(self, name: str, seed: int) -> ConfigDict:
        """The config that is trained with this seed."""
        return entries.seeded(self.configs[name], seed, self.overrides)

    def train(self, names: list[str], seed: int) -> None:
        (name,) = names
        config = self.config_of(name, seed)
        found, workdir = run_of(self.results["architectures"][name], seed), self.workdir(name, seed)

        def progress(record: dict) -> None:
            note = f"loss {record['loss']:.2f}, {short_count(record['tokens_per_second'])} tokens/s"
            self.display.update(record["step"] / record["steps"], note)

        compile_seconds = measure.compiling()
        record = train(config, workdir, progress=progress, devices=self.devices)
        if "stopped" in record:
            raise Interrupted(record["signal"])
        curve, seconds, before = [], 0.0, 0
        for point in read(workdir):
            seconds += (point["tokens_seen"] - before) / point["tokens_per_second"]
            before = point["tokens_seen"]
            shown = {key: point.get(key) for key in ("step", "loss", "bits_per_byte")}
            curve.append(shown | {"tokens": before, "seconds": seconds})
        found |= {
            "curve": curve,
            "compile_seconds": compile_seconds(),
            "train_seconds": seconds,
            "tokens_per_second": before / seconds,
            "flops_per_token": record.get("flops_per_token"),
        }

    def evaluate(self, names: list[str], seed: int, step: int) -> None:
        """Scores a checkpoint. The score of the last one is also the final validation."""
        (name,) = names
        run = run_of(self.results["architectures"][name], seed)
        found = self.score(name, seed, step, self.excerpts)
        tokens = step * self.preset.batch * self.preset.length
        point = {"step": step, "tokens": tokens, "seconds": seconds_at(run["curve"], tokens)}
        point |= {key: found[key] for key in ("bits_per_byte", "documents")}
        run.setdefault("evaluations", []).append(point)
        if step == self.preset.steps:
            run["validation"] = found

    def score(self, name: str, seed: int, step: int | None, excerpts: Excerpts) -> dict[str, Any]:
        """{"bits_per_byte", "perplexity", "documents": [{"id", "bytes", "nats"}]} of a checkpoint, None: the latest."""
        config = self.configs[name].copy_and_resolve_references()
        with config.unlocked():
            config.eval.batch, config.eval.documents = min(EVALUATION_ROWS, excerpts.count), 0
        model, params, _ = load(self.workdir(name, seed), step, self.devices)
        found = evaluate(model, params, config, excerpts)
        documents = [{key: document[key] for key in ("id", "bytes", "nats")} for document in found["documents"]]
        return {"bits_per_byte": found["bits_per_byte"], "perplexity": found["perplexity"], "documents": documents}

    def sample(self, names: list[str]) -> None:
        """Continues the first words of some validation documents."""
        subject = self.subject(names[0])
        documents = [ids for _, ids, _ in self.excerpts.documents("validation")]
        chosen = documents[:: max(1, len(documents) // PROMPTS)][:PROMPTS]
        prompts = [data.whole_characters(self.tokenizer, ids[: PROMPT_TOKENS + 1].tolist()) for ids in chosen]
        found = generate(
            subject.model, subject.params, prompts, max_tokens=self.preset.sample_tokens, temperature=TEMPERATURE,
            seed=self.seed, tokenizer=self.tokenizer, form=subject.config.train.form, rows=PROMPTS,
        )  # fmt: skip
        self.results["architectures"][names[0]]["samples"] = [
            {"prompt": self.tokenizer.decode(prompt), "text": "".join(map(self.tokenizer.stream(prompt).push, ids))}
            for prompt, ids in zip(prompts, found, strict=True)
        ]

    def weigh(self, names: list[str]) -> None:
        """Bytes of the weights on disk."""
        self.results["architectures"][names[0]]["disk_bytes"] = measure.disk_bytes(self.workdir(names[0]))

    def add_points(self, names: list[str], measurement: Measurement, size: int) -> None:
        """Adds the point of a series at one size, for all these architectures together."""
        key, by, value = measurement.metric
        models = {name: self.subject(name) for name in names}
        for name, figure in measurement.figures(models, size, self.preset, self.display.update).items():
            point = {by: size, value: figure}
            if isinstance(figure, Exception):
                point = {by: size, value: None, "failed": " ".join(str(figure).split())[:400] or type(figure).__name__}
            if key == "decode":
                point["state_bytes"] = measure.state_bytes(self.subject(name).model, size)
            self.results["architectures"][name].setdefault(key, []).append(point)

    def subject(self, name: str) -> measure.MeasuredModel:
        if name not in self.subjects:
            model, params, _ = load(self.workdir(name), devices=self.devices)
            self.subjects[name] = measure.MeasuredModel(self.configs[name], model, params, self.devices, {})
        return self.subjects[name]

    def workdir(self, name: str, seed: int | None = None) -> Path:
        """The work folder with the model of the first seed, or of another seed."""
        return self.run_folder(name, seed)

    def run_folder(self, name: str, seed: int | None = None) -> Path:
        runs = self.out / "runs"
        return (runs if seed in (None, self.seed) else runs / f"seed-{seed}") / name.replace(":", "-")

    def finish(self) -> None:
        """Computes the verdicts and writes the report."""
        self.results["verdicts"], page = self.judged()
        self.store.save()
        paths.write(self.out / "report.html", page)

    def judged(self) -> tuple[dict[str, Any], str]:
        """The verdicts, and the page of the report."""
        from jaxseq.compare import report  # imported late: matplotlib takes a second

        return verdicts(self.results), report.render(self.results)
