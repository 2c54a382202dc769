"""A learning rate sweep for every architecture, on documents that no comparison reports.

Every architecture is fitted to the preset's size and trained at three rates of a grid of powers of two, with the same
schedule, weight decay, rows and steps. If the best rate is the lowest or the highest tried, the grid is extended in that
direction until there is a worse rate on either side; then the best rate is bracketed. A run whose loss is not finite counts
as worse than all others.

The documents are the training documents of the comparison: every n-th is used for tuning, the others for training. The
documents that `jaxseq compare` reports are not read.

Rule for other widths (`jaxseq.config.scaled`): the rate is inversely proportional to the width, rate = best x swept width
/ width, as in the maximal update parametrisation for Adam (Yang et al. 2022, arXiv:2203.03466, table 8). GPT-3's rates
(Brown et al. 2020, table 2.1) follow it within a factor of 1.5 from width 768 to 5140.
"""

import datetime
import filecmp
import json
import math
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

import jaxseq
from jaxseq import data, paths
from jaxseq.compare import entries, fit, machine
from jaxseq.compare.engine import EVALUATION_ROWS, Interrupted
from jaxseq.compare.excerpts import Excerpts
from jaxseq.compare.presets import Preset
from jaxseq.compare.progress import Display
from jaxseq.errors import UserError
from jaxseq.evaluation import evaluate
from jaxseq.train import BadStepError, load, train

SCHEMA = 1
CENTRE = 3e-3
FARTHEST = 6  # doublings from the centre at which the grid ends
IDENTITY = ("schema", "preset", "budget", "alike", "overrides", "tuning", "seeds")  # must agree to resume
WIDTH_RULE = "best rate x width / other width"


def rate(k: int) -> float:
    """The grid's rate k doublings from the centre, to six digits."""
    return float(f"{CENTRE * 2.0**k:.6g}")


GRID = tuple(map(rate, range(-1, 2)))  # tried for every architecture


class Trial(NamedTuple):
    lr: float
    seed: int


def doublings(lr: float) -> int:
    return round(math.log2(lr / CENTRE))


def means(trials: Sequence[Mapping[str, Any]]) -> dict[float, float]:
    """Mean bits per byte of each rate, in order; infinite if a run failed."""
    found: dict[float, list[float]] = {}
    for trial in trials:
        bits = trial["bits_per_byte"]
        found.setdefault(trial["lr"], []).append(math.inf if bits is None else bits)
    return {lr: statistics.fmean(values) for lr, values in sorted(found.items())}


def best(trials: Sequence[Mapping[str, Any]]) -> tuple[float | None, bool]:
    """(the rate with the lowest mean, or the lower of two equal ones; whether a worse rate was tried on either side)."""
    found = means(trials)
    finite = {lr: bits for lr, bits in found.items() if math.isfinite(bits)}
    if not finite:
        return None, False
    lr = min(finite, key=finite.__getitem__)
    return lr, min(found) < lr < max(found)


def missing(trials: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[Trial]:
    """The next trials; empty if the best rate is bracketed or the end of the grid is reached."""
    done = {(trial["lr"], trial["seed"]) for trial in trials}
    tried = {trial["lr"] for trial in trials} | set(GRID)
    left = [Trial(lr, seed) for lr in sorted(tried) for seed in seeds if (lr, seed) not in done]
    if left:
        return left
    lr, bracketed = best(trials)
    if bracketed:
        return []
    lowest, highest = doublings(min(tried)), doublings(max(tried))
    k = highest + 1 if lr == max(tried) else lowest - 1  # if every run failed, go lower
    return [Trial(rate(k), seed) for seed in seeds] if abs(k) <= FARTHEST else []


def sweep(
    preset: Preset, architectures: Sequence[str], out: str | Path, *, seeds: int = 1,
    overrides: Mapping[str, Any] | None = None, command: str = "", console: Console | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Runs or resumes the sweep in the folder `out`. Writes out/sweep.json and out/sweep.md; returns the content of the former.

    Args are those of `jaxseq.compare.engine.compare`. Raises UserError for bad input and for a folder that holds another
    sweep, Interrupted when asked to stop.
    """
    return Sweep(preset, architectures, Path(out), seeds, dict(overrides or {}), command).run(console)


class Sweep:
    def __init__(self, preset: Preset, architectures: Sequence[str], out: Path, seeds: int, overrides: dict, command: str):
        for key in ("train.lr", "data.validation_every", "data.seed", "train.seed"):
            if key in overrides:
                raise UserError(f"config.{key} cannot be set here: the sweep chooses it")
        self.out, self.overrides = out, entries.overridden(overrides)
        self.seeds = entries.seeds(0, seeds, self.overrides)
        self.given = entries.keys(architectures)
        configs = {name: jaxseq.config(given, **self.overrides) for name, given in self.given.items()}
        preset = entries.budgeted(preset, configs.values(), self.overrides)._replace(evaluations=1)
        self.preset, self.path = preset, out / "sweep.json"
        paths.make_folder(out, f"--out={out}")
        self.reported = entries.text(self.overrides)
        tuned = self.overrides | {"data.source": "jsonl", "data.path": str(self.training_text()), "data.field": "text"}
        self.configs = {
            name: entries.fitted(entries.prepared(config, preset, 0, tuned), preset.parameters)
            for name, config in configs.items()
        }
        self.corpus = data.corpus(next(iter(self.configs.values())).data)
        self.excerpts = Excerpts(self.corpus, preset.evaluation_tokens, preset.length)
        self.results = self.opened(command)

    def training_text(self) -> Path:
        """Writes the comparison's training documents to one file, without the documents that it reports."""
        path = self.out / "training.jsonl"
        draft = path.with_name(f".training.{os.getpid()}")
        with draft.open("w", encoding="utf-8") as file:
            for document in data.texts(self.reported, "train"):
                file.write(json.dumps({"id": document.id, "text": document.text}) + "\n")
        if path.exists() and filecmp.cmp(path, draft, shallow=False):
            draft.unlink()  # keep the old file: its tokens are cached
        else:
            draft.replace(path)
        return path

    def opened(self, command: str) -> dict[str, Any]:
        """The stored results, or new ones."""
        preset, settings = self.preset, next(iter(self.configs.values())).train
        fresh = {
            "schema": SCHEMA,
            "preset": preset.name,
            "created": datetime.datetime.now(datetime.UTC).astimezone().isoformat(timespec="seconds"),
            "command": command,
            "budget": {
                "parameters": preset.parameters, "steps": preset.steps, "batch": preset.batch, "length": preset.length,
            },
            "alike": {key: settings[key] for key in (*entries.ALIKE, "warmup")},
            "overrides": {key: str(value) for key, value in self.overrides.items() if key != "data.path"},
            "tuning": {
                "source": self.reported.source, "documents": self.excerpts.count, "tokens": self.excerpts.tokens,
                "fingerprint": self.corpus.fingerprint,
            },
            "seeds": list(self.seeds),
            "width_rule": WIDTH_RULE,
            "architectures": {},
        }  # fmt: skip
        if not self.path.exists():
            return fresh | {"machine": machine.describe()}
        results = read(self.path)
        for key in IDENTITY:
            if results.get(key) != fresh[key]:
                raise UserError(
                    f"{self.path} belongs to another sweep (its {key} is {results.get(key)}, now {fresh[key]}); give "
                    f"another --out, or delete {self.out} to start over"
                )
        return results | {"command": command}

    def run(self, console: Console | None) -> dict[str, Any]:
        for name, config in self.configs.items():
            entry = self.results["architectures"].setdefault(name, {"trials": []})
            shape = {
                "width": config.model.width, "stack": config.model.stack, "parameters": fit.parameters_of(jaxseq.build(config)),
            }  # fmt: skip
            if entry["trials"] and any(entry.get(key) != value for key, value in shape.items()):
                raise UserError(f"{name} has another shape than in {self.path}; give another --out, or delete {self.out}")
            entry |= shape
        with Display(console) as display:
            left = [len(missing(self.trials(name), self.seeds)) for name in self.configs]
            display.plan(sum(left))
            for name in self.configs:
                self.tune(name, display)
        return self.results

    def trials(self, name: str) -> list[dict[str, Any]]:
        return self.results["architectures"][name]["trials"]

    def tune(self, name: str, display: Display) -> None:
        """Runs every missing rate, and those that the results then require."""
        planned = len(missing(self.trials(name), self.seeds))
        while todo := missing(self.trials(name), self.seeds):
            if planned <= 0:  # the grid is extended
                display.more(len(todo))
                planned = len(todo)
            trial = todo[0]
            display.begin(f"{name}: rate {trial.lr:g}" + (f", seed {trial.seed}" if len(self.seeds) > 1 else ""), 1)
            self.trials(name).append(self.tried(name, trial, display))
            self.save()
            shutil.rmtree(self.workdir(name, trial), ignore_errors=True)
            display.end()
            planned -= 1
        lr, bracketed = best(self.trials(name))
        said = "every rate failed" if lr is None else f"best rate {lr:g}" + ("" if bracketed else ", at the end of the grid")
        display.say(f"{name}: {said}")
        self.save()

    def tried(self, name: str, trial: Trial, display: Display) -> dict[str, Any]:
        config = entries.seeded(self.configs[name], trial.seed, {}).copy_and_resolve_references()
        with config.unlocked():
            config.train.lr, config.train.lr_width, config.train.lr_source = trial.lr, None, "sweep"
            config.train.checkpoint_every, config.train.keep = max(1, self.preset.steps // 4), 1

        def progress(record: dict) -> None:
            display.update(record["step"] / record["steps"], f"loss {record['loss']:.3f}")

        workdir, devices = self.workdir(name, trial), jax.local_devices()[:1]
        try:
            record = train(config.lock(), workdir, progress=progress, devices=devices)
        except BadStepError as error:
            return {**trial._asdict(), "bits_per_byte": None, "failed": " ".join(str(error).split())[:200]}
        if "stopped" in record:
            raise Interrupted(record["signal"])
        model, params, _ = load(workdir, devices=devices)
        with config.unlocked():
            config.eval.batch, config.eval.documents = min(EVALUATION_ROWS, self.excerpts.count), 0
        bits = evaluate(model, params, config.lock(), self.excerpts)["bits_per_byte"]
        return {**trial._asdict(), "bits_per_byte": bits if math.isfinite(bits) else None}

    def workdir(self, name: str, trial: Trial) -> Path:
        return self.out / "runs" / name.replace(":", "-") / f"{trial.lr:g}-seed-{trial.seed}"

    def save(self) -> None:
        for entry in self.results["architectures"].values():
            entry["lr"], entry["bracketed"] = best(entry["trials"])
        for path, text in (
            (self.path, json.dumps(self.results, indent=1, allow_nan=False)),
            (self.path.with_suffix(".md"), markdown(self.results)),
        ):
            paths.write(path, text + "\n")


def read(path: Path) -> dict[str, Any]:
    """The results in `path`. Raises UserError if they are not from a sweep."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); delete it, or give another --out") from None
    if not isinstance(results, dict) or "alike" not in results or results.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a sweep.json of this version; delete it, or give another --out")
    return results


def markdown(results: Mapping[str, Any]) -> str:
    """One row per architecture: its best rate, then the bits per byte at every rate tried."""
    found = {name: means(entry["trials"]) for name, entry in results["architectures"].items()}
    rates = sorted({lr for tried in found.values() for lr in tried})
    head = ["architecture", "parameters", "width", "best rate", *(f"{lr:g}" for lr in rates)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name, entry in results["architectures"].items():
        lr, bracketed = best(entry["trials"])
        chosen = "none" if lr is None else f"{lr:g}" + ("" if bracketed else " (not bracketed)")
        cells = [cell(found[name].get(at), at == lr) for at in rates]
        lines.append([name, f"{entry['parameters']:,}", str(entry["width"]), chosen, *cells])
    budget, tuning, alike = results["budget"], results["tuning"], results["alike"]
    said = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in alike.items())
    about = (
        f"Bits per byte of {tuning['documents']} tuning documents, none of which is trained on or reported, after "
        f"{budget['steps']:,} steps of {budget['batch']} rows of {budget['length']}; seeds: {len(results['seeds'])}; the same "
        f"for all: {said}. Other widths: {results['width_rule']}."
    )
    return "\n".join([f"`{results['command']}`", "", about, "", *(f"| {' | '.join(line)} |" for line in lines)])


def cell(bits: float | None, chosen: bool) -> str:
    if bits is None:
        return ""
    text = f"{bits:.4f}" if math.isfinite(bits) else "diverged"
    return f"**{text}**" if chosen else text
