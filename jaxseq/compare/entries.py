"""The architectures of a comparison: turns names given by the user into configs of equal size and budget."""

import ast
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import jaxseq
from jaxseq import registry
from jaxseq.compare.fit import fit
from jaxseq.compare.presets import Preset
from jaxseq.config import from_dict, match_width, to_dict
from jaxseq.data import sources, tokenizer
from jaxseq.errors import UserError

RECORDS = 60  # points of a loss curve
WARMUP = 0.05  # of the steps
INTERRUPTIONS = 100  # each leaves a checkpoint, which must not push out one that is still to be evaluated
ALIKE = {"schedule": "cosine", "final_lr": 0.1, "weight_decay": 0.1}  # fields of config.train, the same for every architecture
CHOSEN = ("model.width", "model.stack")  # chosen by `fit`


def keys(architectures: Iterable[str]) -> dict[str, str]:
    """{name in the results: config name or file}. "all" stands for every built-in config; a file is named by its stem."""
    found: dict[str, str] = {}
    for given in architectures:
        for config_name in jaxseq.names() if given == "all" else (given,):
            path, _, size = config_name.partition(":")
            key = Path(path).stem + (f":{size}" if size else "") if path.endswith(".py") else config_name
            if found.setdefault(key, config_name) != config_name:
                raise UserError(f"two architectures are called {key}: {found[key]} and {config_name}; rename one of the files")
    if not found:
        raise UserError("--architectures is empty; give --architectures=transformer,mamba or leave it out")
    return found


def overridden(overrides: Mapping[str, Any], chosen: Sequence[str] = CHOSEN) -> dict[str, Any]:
    """The overrides, completed: if they name the user's own text, the kind of source is added. Raises UserError for a field of
    `chosen`."""
    out = dict(overrides)
    for key in chosen:
        if key in out:
            raise UserError(f"config.{key} cannot be set here: a comparison chooses it, so that all have equal parameters")
    path = out.get("data.path")
    if path and "data.source" not in out:
        out["data.source"] = sources.guess(Path(path).expanduser())
    return out


def budgeted(preset: Preset, configs: Iterable[ConfigDict], overrides: Mapping[str, Any]) -> Preset:
    """The preset with the steps, batch and length of the overrides."""
    train = next(iter(configs)).train
    batch = train.batch if "train.batch" in overrides else preset.batch
    length = train.length if "train.length" in overrides else preset.length
    tokens = train.steps * batch * length if "train.steps" in overrides else preset.tokens
    if batch < 1 or length < 1 or tokens < 1:
        raise UserError("train.batch, train.length and train.steps must be positive; set them to 1 or more")
    return preset._replace(batch=batch, length=length, tokens=tokens)


def text(overrides: Mapping[str, Any]) -> ConfigDict:
    """The data section for all architectures: the defaults with the overrides. Data sections of the configs are ignored."""
    return from_dict({}, **{key: value for key, value in overrides.items() if key.startswith("data.")}).data


def prepared(config: ConfigDict, preset: Preset, seed: int, overrides: Mapping[str, Any]) -> ConfigDict:
    """The config for training, except its size: the budget, a common schedule and decay, checkpoints to evaluate."""
    out = config.copy_and_resolve_references()
    with out.unlocked():
        out.data = text(overrides)
        train = out.train
        train.batch, train.length, train.steps = preset.batch, preset.length, preset.steps
        if "train.accumulate" not in overrides:
            train.accumulate = 1
        if "train.warmup" not in overrides:
            train.warmup = max(1, round(WARMUP * preset.steps))
        train.update({key: value for key, value in ALIKE.items() if f"train.{key}" not in overrides})
        train.log_every = max(1, preset.steps // RECORDS)
        train.checkpoint_every = math.ceil(preset.steps / preset.evaluations)
        train.keep = preset.evaluations + INTERRUPTIONS
        train.eval_every = 0
        out.eval.batch, out.eval.documents = 1, 1  # the comparison evaluates checkpoints itself
        out.eval.length, out.eval.carry_state = preset.length, False
        out.data.tokenizer = "byte" if out.data.tokenizer == "auto" else out.data.tokenizer
        out.model.vocab = out.model.vocab or tokenizer(out.data).vocab
    return seeded(out, seed, overrides)


def seeds(first: int, count: int, overrides: Mapping[str, Any]) -> tuple[int, ...]:
    """The seeds of a comparison. Raises UserError if they would all give the same run."""
    if count < 1:
        raise UserError(f"--seeds={count} trains nothing; give 1 or more, and at least 3 for useful intervals over seeds")
    if count > 1 and {"train.seed", "data.seed"} <= overrides.keys():
        raise UserError(f"--seeds={count} runs would be equal: config.train.seed and config.data.seed are set; leave one out")
    return tuple(range(first, first + count))


def seeded(config: ConfigDict, seed: int, overrides: Mapping[str, Any]) -> ConfigDict:
    """The config with this seed for initial values and text order, unless the user has set those seeds."""
    out = config.copy_and_resolve_references()
    with out.unlocked():
        for section in ("train", "data"):
            if f"{section}.seed" not in overrides:
                out[section].seed = seed
    return out.lock()


def fitted(config: ConfigDict, parameters: int) -> ConfigDict:
    """The config resized to this number of parameters, with the learning rate for the new width."""
    out = fit(config, parameters).copy_and_resolve_references()
    with out.unlocked():
        match_width(out)
    return out.lock()


def completed(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config, with defaults for fields that were added to jaxseq since."""
    return to_dict(from_dict(plain))


def evaluation_steps(preset: Preset) -> list[int]:
    every = math.ceil(preset.steps / preset.evaluations)
    return [*range(every, preset.steps, every), preset.steps]


def title(config_name: str) -> str:
    """The first line of the config's docstring: the title of the experiment card."""
    path = config_name.partition(":")[0]
    file = Path(path) if path.endswith(".py") else Path(registry.load("configs", path).__file__)
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return doc.strip().partition("\n")[0]


def learning_rate(config: ConfigDict, overrides: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    source = "--config.train.lr" if "train.lr" in overrides else config.train.lr_source or "its config"
    return {"lr": config.train.lr, "lr_source": source}
