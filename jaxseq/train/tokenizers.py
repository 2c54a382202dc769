"""The tokenizer of a run: settled before the first step, and kept in its workdir, which so holds all that it needs."""

import logging
import os
from pathlib import Path

import jax

from jaxseq import paths, plain_files
from jaxseq.data import tokenizer_files
from jaxseq.data.tokenizer_files import AUTO, UNKNOWN, locate, same
from jaxseq.errors import UserError

log = logging.getLogger(__name__)


def settled(config, workdir: str | os.PathLike):
    """`config` with the tokenizer that data.tokenizer=auto means, and with absolute paths.

    auto: that of the run that the workdir holds, else that of the weights in train.init, else byte. Raises UserError for a
    tokenizer that is not the one of train.init: its ids would mean other text.
    """
    config = config.copy_and_resolve_references()
    given, source = config.data.tokenizer, config.train.init
    theirs = of(source) if source else None
    with config.unlocked():
        if given == AUTO:
            config.data.tokenizer = of(workdir) or theirs or "byte"
            if config.data.tokenizer == theirs:
                log.info("the tokenizer is that of train.init: %s", theirs)
        elif theirs not in (None, UNKNOWN) and not same(given, theirs):
            raise UserError(
                f"data.tokenizer={given} is not the tokenizer of train.init={source}, {theirs}: ids would mean other text; "
                "leave data.tokenizer out"
            )
        _absolute(config)
    return config


def _absolute(config) -> None:
    """Paths that are there now, so that the workdir can be used from any folder."""
    for section, field in (("data", "path"), ("train", "init")):
        value = config[section][field]
        if isinstance(value, str) and value and not paths.is_remote(value) and Path(value).expanduser().exists():
            config[section][field] = str(Path(value).expanduser().absolute())


def of(workdir: str | os.PathLike) -> str | None:
    """The data.tokenizer of a workdir's run, where it lies now; None when there is no run, or it needs none."""
    try:
        name = plain_files.read_object(paths.of(workdir) / "config.json")["data"]["tokenizer"]
    except (UserError, KeyError, TypeError):  # what is wrong with it is told where it is read
        return None
    return locate(workdir, name) if isinstance(name, str) and name != AUTO else None


def kept(config, workdir: str | os.PathLike):
    """`config` naming the copy of its tokenizer that the workdir, which exists, now holds."""
    name = config.data.tokenizer
    if name in (*tokenizer_files.BUILT_IN, UNKNOWN):
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if jax.process_index() == 0:
            config.data.tokenizer = str(tokenizer_files.copy(name, workdir))
        else:
            config.data.tokenizer = locate(workdir, name)
    return config


def located(config, workdir: str | os.PathLike):
    """The config of a workdir, naming its tokenizer where it lies now."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.tokenizer = locate(workdir, config.data.tokenizer)
        _absolute(config)
    return config
