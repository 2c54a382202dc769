"""`--config=NAME[:SIZE] --config.section.field=value` for every command that takes a config."""

import argparse
import types
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxseq import paths
from jaxseq.cli import _paths
from jaxseq.config import config
from jaxseq.errors import UserError


def add_config(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    parser.add_argument(
        "--config", default=default, metavar="NAME[:SIZE]",
        help="a built-in config (see `jaxseq list`), a .py file or a run's workdir; "
        "fields: --config.train.steps=100 --config.model.width=256"
        + (f" (default: {default})" if default else ""),
    )  # fmt: skip


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """{"train.steps": "100"} from the arguments that begin with --config."""
    pairs = {}
    for word in args.overrides:
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            raise UserError(f"{word} has no value; write {word}=VALUE")
        pairs[key] = _paths.resolved(value, word.partition("=")[0], key in _paths.RUN_FIELDS)
    return pairs


def load(args: argparse.Namespace, defaults: Mapping[str, Any] = types.MappingProxyType({})) -> ConfigDict:
    """The locked config that the arguments name. defaults: values of fields that the arguments do not set."""
    if not args.config:
        raise UserError(f"jaxseq {args.command} needs --config=NAME; `jaxseq list` shows the names")
    name = _paths.resolved(args.config, "--config", remote=True)
    if "/" in name and not name.endswith(".py") and ".py:" not in name and not (paths.of(name) / "config.json").is_file():
        stem = paths.of(name).name
        raise UserError(f"--config={name} is neither a .py file nor a workdir; give a built-in config by name: --config={stem}")
    return config(name, **dict(defaults) | overrides(args))
