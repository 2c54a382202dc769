"""The tokenizer of a run: chosen before the first step, and copied into the workdir."""

import logging
import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxseq import paths, plain_files
from jaxseq.data import tokenizer_files
from jaxseq.data.tokenizer_files import AUTO, UNKNOWN, locate, same
from jaxseq.errors import UserError

WORKDIRS = ("init", "distill_teacher")  # fields of train that name the workdir of another run
log = logging.getLogger(__name__)


def settled(config: ConfigDict, workdir: str | os.PathLike) -> ConfigDict:
    """`config` with data.tokenizer=auto resolved, and with absolute paths.

    auto: the tokenizer of the run in the workdir, else that of train.init or train.distill_teacher, else byte. Raises UserError
    for a tokenizer other than theirs, because its ids have other meanings.
    """
    config = config.copy_and_resolve_references()
    sources = {field: config.train[field] for field in WORKDIRS if config.train[field]}
    theirs = {field: name for field, source in sources.items() if (name := of(source)) is not None}
    given = config.data.tokenizer
    with config.unlocked():
        if given == AUTO:
            config.data.tokenizer = given = of(workdir) or next(iter(theirs.values()), "byte")
            if same_as := [f"train.{field}" for field, name in theirs.items() if name == given]:
                log.info("using the tokenizer of %s: %s", same_as[0], given)
        for field, name in theirs.items():
            if name != UNKNOWN and not same(given, name):
                raise UserError(
                    f"data.tokenizer={given} is not the tokenizer of train.{field}={sources[field]}, {name}: its ids have other "
                    "meanings; leave data.tokenizer out"
                )
        _absolute(config)
    return config


def _absolute(config) -> None:
    """Makes existing paths absolute, so that the workdir can be used from any folder."""
    for section, field in (("data", "path"), *(("train", field) for field in (*WORKDIRS, "distill_cache"))):
        value = config[section][field]
        if isinstance(value, str) and value and not paths.is_remote(value) and Path(value).expanduser().exists():
            config[section][field] = str(Path(value).expanduser().absolute())


def of(workdir: str | os.PathLike) -> str | None:
    """The data.tokenizer of the run in a workdir, as a current path; None if there is no run, or it has no tokenizer."""
    try:
        name = plain_files.read_object(paths.of(workdir) / "config.json")["data"]["tokenizer"]
    except (UserError, KeyError, TypeError):  # `workdirs.saved_config` reports the error
        return None
    return locate(workdir, name) if isinstance(name, str) and name != AUTO else None


def kept(config: ConfigDict, workdir: str | os.PathLike) -> ConfigDict:
    """Copies the tokenizer into the workdir, which must exist; returns `config` with the path of the copy."""
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


def located(config: ConfigDict, workdir: str | os.PathLike) -> ConfigDict:
    """The config of a workdir with the current path of its tokenizer."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.tokenizer = locate(workdir, config.data.tokenizer)
        _absolute(config)
    return config
