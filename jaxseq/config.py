"""Configurations: one short file per architecture in configs/, these defaults underneath, dotted overrides on top.

A config is a locked `ml_collections.ConfigDict`. A .py file named by the user is a program and runs; a .json file is data.
"""

import contextlib
import copy
import dataclasses
import difflib
import functools
import importlib.util
import inspect
import json
import logging
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference, config_dict

from jaxseq import ranges, registry, schemas
from jaxseq.blocks._block import Block
from jaxseq.errors import UserError
from jaxseq.layers import Mixer
from jaxseq.models import _stack
from jaxseq.plain_files import read_object

log = logging.getLogger(__name__)


def base(kind: str = "lm") -> ConfigDict:
    """Every field outside the mixers' sub-sections, with its default; those of `model` are `jaxseq.models.<kind>.DEFAULTS`."""
    return ConfigDict(
        {
            "model": {"kind": kind} | copy.deepcopy(registry.load("models", kind).DEFAULTS),
            "data": {
                "source": "sotu",  # sotu, dna; with a path guessed: text, jsonl, csv, fasta, table, tokens, folder
                "path": config_dict.placeholder(str),
                "field": "text",
                "label": "label",  # field of a labelled line, for train.objective=classification
                "side": config_dict.placeholder(int),  # pixels of its images; empty: the model's, or as they are
                # auto: that of train.init, else byte; or the path of a tokenizers JSON file or of an RWKV vocabulary (.txt)
                "tokenizer": "auto",
                "validation_every": 20,
                "prefetch": 4,
                "seed": 0,
                "cache": config_dict.placeholder(str),
                "skip_records": 0,  # damaged records that are left out of each corpus, at most; one more ends the run
                "cache_gb": 20.0,  # size of the token cache above which the least recently used entries go
            },
            "train": {
                "objective": "next_token",
                "corruption": 0.15,  # fraction of the tokens that masked and span hide
                "mean_span": 3.0,  # tokens, of span
                "smoothing": 0.0,  # of the labels, for classification
                "steps": 1000,
                "batch": 16,  # rows of all processes together
                "length": 256,  # tokens a row
                "accumulate": 1,
                "lr": 1e-3,
                "lr_source": "",  # where the learning rate comes from
                "lr_width": config_dict.placeholder(int),  # the model.width that it was found at; empty: holds for any
                "schedule": "cosine",  # cosine, linear, wsd, constant
                "warmup": 50,  # steps
                "decay_steps": config_dict.placeholder(int),  # steps that the schedule is over; empty: train.steps
                "decay_fraction": 0.2,  # of these, for wsd
                "final_lr": 0.1,  # of lr
                "beta1": 0.9,
                "beta2": 0.95,
                "eps": 1e-8,
                "weight_decay": 0.1,
                "clip": 1.0,
                "skip": 0,  # bad steps that are passed over in all, see jaxseq.train.guard
                "skip_norm": 0.0,  # norm of the gradient above which a step is bad; 0: any finite one is good
                "rewind": 0,  # times that the run goes back to its last checkpoint and on with the data after the bad ones
                "spike": 0.0,  # times the median of the last losses at which a loss is a spike; 0: none is
                "seed": 0,
                "form": "auto",
                "init": config_dict.placeholder(str),  # a workdir whose weights to start from
                "init_allow": "",  # fields of the model, with commas, that may differ from those of that workdir
                "log_every": 10,
                "logger": config_dict.placeholder(str),  # one more place for the figures: wandb
                "checkpoint_every": 200,
                "keep": 2,
                "eval_every": 0,  # 0: at the end only
                "precision": "default",
            },
            "mesh": {"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1, "expert": 1},
            "eval": {
                "batch": 8,  # documents at a time
                "length": 256,  # tokens a piece
                "documents": 0,  # 0: all
                "tokens": 1_000_000,  # about so many of the split are scored while training; 0: all
                "carry_state": True,  # from piece to piece
                "context": config_dict.placeholder(int),  # tokens until it starts anew; empty: never, or see evaluation
            },
        }
    )


def pick(sizes: Mapping[str, tuple], size: str, laptop: tuple) -> tuple:
    """The row of a published size, or `laptop` for "". Raises UserError that lists the sizes."""
    if size and size not in sizes:
        choices = f"choose one of: {', '.join(sizes)}, or none for the laptop size" if sizes else "give none, for the laptop size"
        raise UserError(f"there is no size {size!r}; {choices}")
    return sizes[size] if size else laptop


def names() -> tuple[str, ...]:
    """The causal language models: files of configs/ with `model.kind = "lm"`. A file that is no config is named and left out."""
    found = []
    for name in registry.names("configs"):
        try:
            if _get(_load(name), name).model.kind == "lm":
                found.append(name)
        except Exception as error:  # a program of somebody's, and none of the others' business
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            log.warning("configs/%s.py is left out: %s", name, reason)
    return tuple(found)


def config(name: str, **overrides: Any) -> ConfigDict:
    """The locked config of "mamba", "mamba:130m", "path/to/file.py[:size]" or a workdir, with dotted overrides such as
    "model.width".

    What the overrides leave open is fitted to them: a warm-up that would take more than half of the steps takes a tenth, and
    weights that were trained before (train.init) are trained on with a tenth of the learning rate.

    Raises UserError for an unknown name, size or key, and for a value of the wrong type.
    """
    module_name, _, size = name.partition(":")
    if module_name not in registry.names("configs") and (Path(name) / "config.json").is_file():
        return fitted(_of_workdir(name, overrides), overrides)
    return fitted(finish(_get(_load(module_name), module_name, size), **overrides), overrides)


def _of_workdir(workdir: str, overrides: Mapping[str, Any]) -> ConfigDict:
    """The config of a run, naming its tokenizer where it lies now: the workdir may have been moved."""
    from jaxseq.data.tokenizer_files import locate  # takes a second

    cfg = from_file(Path(workdir) / "config.json")
    located = {"data.tokenizer": locate(workdir, cfg.data.tokenizer)}
    return from_dict(to_dict(cfg), **located | dict(overrides))


def fitted(cfg: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """See `config`."""
    train = cfg.train
    with cfg.unlocked():
        if "train.warmup" not in overrides and train.warmup > train.steps / 2:
            train.warmup = train.steps // 10
        if overrides.get("train.init") and train.init and "train.lr" not in overrides:
            train.lr_source = f"fine-tuning: a tenth of {train.lr:g} ({train.lr_source or 'the default'})"
            train.lr = train.lr / 10
    return cfg.lock()


def from_dict(data: Mapping[str, Any], **overrides: Any) -> ConfigDict:
    """A locked config from plain data of any schema (a workdir's config.json): nothing in it is evaluated."""
    if not isinstance(data, Mapping):
        raise UserError(f"config.json holds no sections but {str(data)[:40]!r}; is it a jaxseq config?")
    data = schemas.migrate(data)
    kind = data.get("model", {}).get("kind", "lm") if isinstance(data.get("model", {}), Mapping) else "lm"
    cfg = base(kind)
    with cfg.unlocked():
        for section, fields in data.items():
            if section not in cfg or not isinstance(fields, Mapping):
                raise UserError(f"config.json has an unknown section {section!r}; is it a jaxseq config?")
            for key, value in fields.items():
                if isinstance(value, Mapping) or key in cfg[section]:
                    with cfg.ignore_type():  # it is checked as a whole
                        cfg[section][key] = _section(section, key, value) if isinstance(value, Mapping) else value
                else:
                    raise UserError(f"config.json has an unknown field {section}.{key!r}; is it a jaxseq config?")
        return _finish(cfg, overrides)


def from_file(path: str | os.PathLike) -> ConfigDict:
    """`from_dict` of a workdir's config.json. Raises UserError that names the file, and a checkpoint's copy that can be read."""
    try:
        return from_dict(read_object(path))
    except UserError as error:
        told = str(error) if str(path) in str(error) else f"{path}: {error}"
        kept = [file for file in Path(path).parent.glob("checkpoints/*/config/metadata") if file.parts[-3].isdecimal()]
        for file in sorted(kept, key=lambda file: int(file.parts[-3]), reverse=True):
            with contextlib.suppress(UserError):
                from_dict(read_object(file))
                told += f"; {file} is a copy of it, as it was at that step"
                break
        raise UserError(told) from None


def _section(section: str, key: str, data: Mapping[str, Any]) -> ConfigDict:
    """Raises UserError for names that no field can have."""
    try:
        return ConfigDict({key: data})[key]
    except (ValueError, TypeError) as error:
        raise UserError(f"config.json: {section}.{key!r} is no section ({error}); is it a jaxseq config?") from None


def to_dict(cfg: ConfigDict) -> dict:
    """Plain data, ready for json.dumps, with the number of its schema."""
    return {"schema": schemas.SCHEMA} | json.loads(cfg.copy_and_resolve_references().to_json())


def _load(name: str) -> types.ModuleType:
    if not name.endswith(".py"):
        return registry.load("configs", name)
    path = Path(name)
    if not path.is_file() and path.parent == Path("configs") and path.stem in registry.names("configs"):
        return registry.load("configs", path.stem)  # `--config=configs/mamba.py` works from any folder
    if not path.is_file():
        raise UserError(f"there is no config file {name}; the built-in ones are: {', '.join(registry.names('configs'))}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _get(module: types.ModuleType, name: str, size: str = "") -> ConfigDict:
    """What its get_config(size) returns. Raises UserError if there is none, or if it is no config."""
    function = getattr(module, "get_config", None)
    try:
        inspect.signature(function).bind(size)
    except TypeError:
        what = "cannot be called with a size" if callable(function) else "is missing"
        raise UserError(f"{name}: the function get_config(size) {what}; see any file in configs/ for the shape of one") from None
    found = function(size)
    if not isinstance(found, ConfigDict) or not all(isinstance(found.get(section), ConfigDict) for section in base()):
        raise UserError(f"{name}: get_config(size) does not return a config; let it begin with jaxseq.config.base()")
    return found


def finish(cfg: ConfigDict, **overrides: Any) -> ConfigDict:
    """`cfg` locked, every sub-section filled with its mixer's defaults, under `overrides`."""
    with cfg.unlocked():
        return _finish(cfg, overrides)


def _finish(cfg: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """Overrides, the stack's first: it decides which mixers have a sub-section."""
    overrides = dict(overrides)
    _check_fields(cfg)
    if "model.stack" in overrides:
        _set(cfg, "model.stack", overrides.pop("model.stack"))
    if "block" in cfg.model:
        _fill_section(cfg.model, cfg.model.block, registry.load_class("blocks", cfg.model.block))
    for label in _stack.labels(cfg.model.stack) if "stack" in cfg.model else ():
        _fill_section(cfg.model, label, registry.load_class("mixers", label.split(":")[0]))
    for key, value in overrides.items():
        _set(cfg, key, value)
    if "train.lr" in overrides and "train.lr_width" not in overrides:
        cfg.train.lr_width = None
    _check(cfg)
    match_width(cfg)
    return cfg.lock()


def _check(cfg: ConfigDict) -> None:
    """Types and ranges of every field."""
    _check_fields(cfg)
    for label in _stack.labels(cfg.model.stack) if "stack" in cfg.model else ():
        _check_section(cfg.model, label, registry.load_class("mixers", label.split(":")[0]))
    if isinstance(cfg.model.get("block"), str) and cfg.model.block in cfg.model:
        _check_section(cfg.model, cfg.model.block, registry.load_class("blocks", cfg.model.block))


_defaults = functools.cache(base)  # to be read only
_hints = functools.cache(typing.get_type_hints)


def _check_fields(cfg: ConfigDict) -> None:
    """Types and ranges of every field outside the mixers' sub-sections."""
    kind = cfg.model.get("kind")
    wanted = _defaults(ranges.check("model.kind", kind, str, False))
    for section, fields in wanted.items():
        for name in fields:
            if name not in cfg[section]:
                continue
            key, default = f"{section}.{name}", fields[name]
            value = ranges.check(key, cfg[section][name], _type(fields, name), default is None)
            if value is not cfg[section][name]:
                with cfg.ignore_type():
                    cfg[section][name] = value


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
    """The learning rate at another width than it was found at: inversely proportional, to four digits (see jaxseq.sweep)."""
    return float(f"{lr * width / other:.4g}")


def match_width(cfg: ConfigDict) -> None:
    """Makes train.lr, where it was found at another width than the model's, the rate for the model's width."""
    train = cfg.train
    if not train.lr_width or train.lr_width == cfg.model.width:
        return
    train.lr, found_at = scaled(train.lr, train.lr_width, cfg.model.width), train.lr_width
    train.lr_source = f"{train.lr_source}; x {found_at} / {cfg.model.width} for the width".removeprefix("; ")
    train.lr_width = cfg.model.width


def _fill_section(model: ConfigDict, label: str, module: type) -> None:
    """Give `model.<label>` every hyper-parameter of its mixer or block, at the default unless the config set it."""
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


def _set(cfg: ConfigDict, key: str, value: Any) -> None:
    *path, last = key.split(".")
    section = cfg
    for part in path:
        if part not in section or not isinstance(section[part], ConfigDict):
            raise UserError(_unknown(key, part, section))
        section = section[part]
    if last not in section:
        raise UserError(_unknown(key, last, section))
    if isinstance(section[last], ConfigDict):
        raise UserError(f"config.{key} is a section; set one of its fields: {', '.join(section[last])}")
    kind = _type(section, last)
    try:
        # "none" is a choice of some fields that hold text (model.remat); any other field it empties
        section[last] = value if value == "none" and isinstance(section[last], str) else _convert(value, kind)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"config.{key} must be {kind.__name__}, not {value!r}") from None


def _unknown(key: str, part: str, section: ConfigDict) -> str:
    close = difflib.get_close_matches(part, list(section), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there is: {', '.join(section)}"
    return f"config has no {key!r}; {hint}"


def _type(section: ConfigDict, name: str) -> type:
    reference: FieldReference = section.get_ref(name)
    return reference.get_type()


def _convert(value: Any, kind: type) -> Any:
    """`value`, or the text of one, as `kind`; "none" empties a field."""
    if isinstance(value, str) and value.lower() == "none" or value is None:
        return None
    if kind is bool and isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}[value.lower()] if value else None
    if kind is bool and not isinstance(value, bool):
        raise TypeError(value)
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise TypeError(value)
    if kind is int and isinstance(value, str):
        return int(value.replace("_", ""))
    if kind is str and not isinstance(value, str):
        raise TypeError(value)
    return kind(value)
