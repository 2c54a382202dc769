"""Configurations: the defaults, changed by one short file per architecture in configs/, then by dotted overrides.

A config is a locked `ml_collections.ConfigDict`. A .py file that the user names is executed; a .json file is only parsed.
"""

import contextlib
import copy
import dataclasses
import functools
import json
import logging
import os
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from jaxseq import config_files, defaults, paths, ranges, registry, schemas
from jaxseq.blocks._block import Block
from jaxseq.errors import UserError
from jaxseq.layers import Mixer
from jaxseq.models import _stack
from jaxseq.overrides import set_field, type_of, unknown
from jaxseq.plain_files import read_object

log = logging.getLogger(__name__)


def base(kind: str = "lm") -> ConfigDict:
    """All fields with their defaults, except the sub-sections of mixers. `model` is from `jaxseq.models.<kind>.DEFAULTS`, with
    `weights`: the parameters that are no plain arrays, see `jaxseq.weights`."""
    model = {"kind": kind, "weights": ""} | copy.deepcopy(registry.load("models", kind).DEFAULTS)
    return ConfigDict({"model": model} | defaults.sections())


def pick(sizes: Mapping[str, tuple], size: str, laptop: tuple) -> tuple:
    """The entry of a published size, or `laptop` for "". Raises UserError for an unknown size."""
    if size and size not in sizes:
        choices = f"choose one of: {', '.join(sizes)}, or none for the laptop size" if sizes else "give none, for the laptop size"
        raise UserError(f"there is no size {size!r}; {choices}")
    return sizes[size] if size else laptop


def names() -> tuple[str, ...]:
    """Names of the causal language models: files of configs/ with `model.kind = "lm"`. A broken file is logged and skipped."""
    found = []
    for name in registry.names("configs"):
        try:
            if config_files.get(name).model.get("kind") == "lm":
                found.append(name)
        except UserError as error:
            log.warning("configs/%s.py is skipped: %s", name, error)
    return tuple(found)


def config(name: str, **overrides: Any) -> ConfigDict:
    """The locked config of "mamba", "mamba:130m", "path/to/file.py[:size]" or a workdir, with dotted overrides such as
    "model.width".

    Fields that are not overridden are adjusted to the overrides: a warm-up longer than half of the steps is reduced to a tenth
    of the steps, and fine-tuning (train.init) uses a tenth of the learning rate, unless it trains adapters (train.lora_rank).

    Raises UserError for an unknown name, size or key, and for a value of the wrong type.
    """
    module_name, _, size = name.partition(":")
    if module_name not in registry.names("configs") and _is_workdir(name):
        return fitted(_of_workdir(name, overrides), overrides)
    return fitted(finish(config_files.get(module_name, size), **overrides), overrides)


def _is_workdir(name: str) -> bool:
    return (paths.of(name) / "config.json").is_file()


def _of_workdir(workdir: str, overrides: Mapping[str, Any]) -> ConfigDict:
    """The config of a run, with the current path of its tokenizer, because the workdir may have been moved."""
    from jaxseq.data.tokenizer_files import locate  # takes a second

    cfg = from_file(paths.of(workdir) / "config.json")
    located = {"data.tokenizer": locate(workdir, cfg.data.tokenizer)}
    if overrides.get("train.init"):
        located["train.init_layers"] = ""  # those of the run's own start
    return from_dict(to_dict(cfg), **located | dict(overrides))


def fitted(cfg: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """The config with the fields that are not overridden adjusted to the overrides, see `config`."""
    train = cfg.train
    with cfg.unlocked():
        if "train.warmup" not in overrides and train.warmup > train.steps / 2:
            train.warmup = train.steps // 10
        if overrides.get("train.init") and train.init and "train.lr" not in overrides and not train.lora_rank:
            train.lr_source = f"fine-tuning: a tenth of {train.lr:g} ({train.lr_source or 'the default'})"
            train.lr = train.lr / 10
    return cfg.lock()


def from_dict(data: Mapping[str, Any], **overrides: Any) -> ConfigDict:
    """A locked config from plain data (a workdir's config.json, of any schema version); nothing in it is evaluated."""
    if not isinstance(data, Mapping):
        raise UserError(f"config.json has no sections but {str(data)[:40]!r}; is it a jaxseq config?")
    data = schemas.migrate(data)
    kind = data.get("model", {}).get("kind", "lm") if isinstance(data.get("model", {}), Mapping) else "lm"
    cfg = base(kind)
    with cfg.unlocked():
        for section, fields in data.items():
            if section not in cfg or not isinstance(fields, Mapping):
                raise UserError(f"config.json has an unknown section {section!r}; is it a jaxseq config?")
            for key, value in fields.items():
                if isinstance(value, Mapping) or key in cfg[section]:
                    with cfg.ignore_type():  # all types are checked below
                        cfg[section][key] = _section(section, key, value) if isinstance(value, Mapping) else value
                else:
                    raise UserError(f"config.json has an unknown field {section}.{key!r}; is it a jaxseq config?")
        return _finish(cfg, overrides)


def from_file(path: str | os.PathLike) -> ConfigDict:
    """`from_dict` of a workdir's config.json. Raises UserError that names the file and, if there is one, an intact copy of it."""
    try:
        return from_dict(read_object(path))
    except UserError as error:
        message = str(error) if str(path) in str(error) else f"{path}: {error}"
        kept = [file for file in paths.of(path).parent.glob("checkpoints/*/config/metadata") if file.parts[-3].isdecimal()]
        for file in sorted(kept, key=lambda file: int(file.parts[-3]), reverse=True):
            with contextlib.suppress(UserError):
                from_dict(read_object(file))
                message += f"; {file} is an intact copy of that step"
                break
        raise UserError(message) from None


def _section(section: str, key: str, data: Mapping[str, Any]) -> ConfigDict:
    """The section as a ConfigDict. Raises UserError for invalid field names."""
    try:
        return ConfigDict({key: data})[key]
    except (ValueError, TypeError) as error:
        raise UserError(f"config.json: {section}.{key!r} is not a section ({error}); is it a jaxseq config?") from None


def to_dict(cfg: ConfigDict) -> dict:
    """The config as plain data for json.dumps, with its schema version."""
    return {"schema": schemas.SCHEMA} | json.loads(cfg.copy_and_resolve_references().to_json())


def finish(cfg: ConfigDict, **overrides: Any) -> ConfigDict:
    """`cfg` with defaults filled in for all sub-sections, then `overrides` applied; locked."""
    with cfg.unlocked():
        return _finish(cfg, overrides)


def _finish(cfg: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """Apply overrides. model.stack and model.block are first, because they determine the sub-sections."""
    overrides = dict(overrides)
    _check_fields(cfg)
    for key in ("model.stack", "model.block"):
        if key in overrides:
            set_field(cfg, key, overrides.pop(key))
    for label, module in _parts(cfg.model):
        _fill_section(cfg.model, label, module)
    for key, value in overrides.items():
        set_field(cfg, key, value)
    if "train.lr" in overrides and "train.lr_width" not in overrides:
        cfg.train.lr_width = None
    check(cfg)
    match_width(cfg)
    return cfg.lock()


def check(cfg: ConfigDict) -> None:
    """Checks types and ranges of all fields. Raises UserError."""
    _check_fields(cfg)
    for label, module in _parts(cfg.model):
        if label in cfg.model:
            _check_section(cfg.model, label, module)


def _parts(model: ConfigDict) -> list[tuple[str, type]]:
    """(label, class) of the block and of the mixers of a model: the parts whose fields are sub-sections."""
    blocks = [(model.block, registry.load_class("blocks", model.block))] if "block" in model else []
    labels = _stack.labels(model.stack) if "stack" in model else ()
    return blocks + [(label, registry.load_class("mixers", label.split(":")[0])) for label in labels]


_defaults = functools.cache(base)  # must not be modified
_hints = functools.cache(typing.get_type_hints)


def _check_fields(cfg: ConfigDict) -> None:
    """Check types and ranges of all fields outside the sub-sections of mixers."""
    kind = cfg.model.get("kind")
    wanted = _defaults(ranges.check("model.kind", kind, str, False))
    _check_names(cfg, wanted)
    for section, fields in wanted.items():
        for name in fields:
            if name not in cfg[section]:
                continue
            key, default = f"{section}.{name}", fields[name]
            value = ranges.check(key, cfg[section][name], type_of(fields, name), default is None)
            if value is not cfg[section][name]:
                with cfg.ignore_type():
                    cfg[section][name] = value


def _check_names(cfg: ConfigDict, wanted: ConfigDict) -> None:
    """Raises UserError for a field that does not exist. Sub-sections of mixers and blocks that are not used are allowed."""
    parts = (*registry.names("mixers"), *registry.names("blocks"))
    for section, fields in cfg.items():
        if section not in wanted:
            raise UserError(unknown(section, section, wanted))
        known = (*wanted[section], *parts) if section == "model" else tuple(wanted[section])
        for name in fields:
            if name.split(":")[0] not in known:
                raise UserError(unknown(f"{section}.{name}", name, known))


def _check_section(model: ConfigDict, label: str, module: type) -> None:
    hints = _hints(module)
    own = getattr(module, "ranges", {})
    for name, value in model[label].items():
        if (kind := _plain_type(hints[name])) in (int, float, str, bool):
            optional = type(None) in typing.get_args(hints[name])
            value = ranges.check(f"model.{label}.{name}", value, kind, optional, own)
            if value is not model[label][name]:
                with model.ignore_type():
                    model[label][name] = value


def scaled(lr: float, width: int, other: int) -> float:
    """Learning rate for the width `other`, tuned at `width`: lr * width / other, rounded to four digits (see jaxseq.sweep)."""
    return float(f"{lr * width / other:.4g}")


def match_width(cfg: ConfigDict) -> None:
    """Scale train.lr from the width at which it was tuned (train.lr_width) to the model's width."""
    train = cfg.train
    if not train.lr_width or train.lr_width == cfg.model.width:
        return
    train.lr, found_at = scaled(train.lr, train.lr_width, cfg.model.width), train.lr_width
    train.lr_source = f"{train.lr_source}; x {found_at} / {cfg.model.width} for the width".removeprefix("; ")
    train.lr_width = cfg.model.width


def _fill_section(model: ConfigDict, label: str, module: type) -> None:
    """Fill `model.<label>` with the default of each hyper-parameter of its mixer or block that the config does not set."""
    hints = _hints(module)
    common = {f.name for base in (Mixer, Block) if issubclass(module, base) for f in dataclasses.fields(base)}
    fields = {f.name: f.default for f in dataclasses.fields(module) if f.name not in common}
    if not fields and label == model.get("block"):
        return
    given = model.get(label, ConfigDict()).to_dict()
    if unknown := sorted(set(given) - set(fields)):
        raise UserError(f"model.{label} has no field {unknown[0]!r}; it has: {', '.join(fields)}")
    section = ConfigDict()
    for name, default in fields.items():
        value = given.get(name, default)
        section[name] = config_dict.placeholder(_plain_type(hints[name])) if value is None else value
    model[label] = section


def _plain_type(hint: Any) -> type:
    """int for `int | None`."""
    kinds = [t for t in typing.get_args(hint) if t is not type(None)] or [hint]
    return kinds[0]
