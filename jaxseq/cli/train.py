"""Train a model. Run again with the same folder, the command resumes where it stopped.

Without --config, the run in DIR is resumed; if DIR holds no run, a Transformer is trained. The command writes config.json,
checkpoints/, metrics.jsonl (one object per logged step) and TensorBoard events to DIR. After kill -9, only the steps since the
last checkpoint are lost and run again; SIGTERM and Ctrl-C save first.
"""

import argparse
import contextlib
import logging
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from ml_collections import ConfigDict

from jaxseq import paths, schemas
from jaxseq.cli import _config
from jaxseq.cli._interrupt import STOPPED, bounded
from jaxseq.config import from_dict, from_file, to_dict
from jaxseq.errors import interrupted
from jaxseq.plain_files import read_object

if TYPE_CHECKING:  # rich takes a while to import
    from rich.console import Console

# Ends of the message if the run itself did not handle the stop. LATE: a second signal, or one when all is saved.
EARLY, LATE = "before its first step, with nothing new to save", "at once: what was saved last is kept"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _config.add_config(parser)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run, created if missing")
    parser.add_argument(
        "--dry-run", action="store_true",
        help="print what would be done, with the memory of the step compiled on this machine, and do not change DIR",
    )  # fmt: skip
    parser.add_argument(
        "--debug", action="store_true",
        help="run the layers without a scan, and print the norms of each layer's activations and gradients",
    )  # fmt: skip
    parser.add_argument("--profile", metavar="FIRST-LAST", help="write a trace of these steps to DIR/profile, for TensorBoard")


def chosen(args: argparse.Namespace) -> ConfigDict:
    """The config given by --config, else that of the run in DIR, else the Transformer's."""
    if not args.config:
        path = paths.of(args.workdir) / "config.json"
        if path.is_file():
            from jaxseq.train.workdirs import saved_config

            return from_dict(to_dict(saved_config(args.workdir)), **_config.overrides(args))
        args.config = "transformer"
    return _config.load(args, older_defaults(args))


def older_defaults(args: argparse.Namespace) -> dict:
    """The defaults with which the run in DIR was started, where they differ from the current ones."""
    path = paths.of(args.workdir) / "config.json"
    if not path.is_file():
        return {}
    from_file(path)  # refuses a damaged one
    if (since := schemas.begun(read_object(path))) == schemas.SCHEMA:
        return {}
    from jaxseq.train.checkpoints import steps
    from jaxseq.train.workdirs import flat, saved_config

    if not steps(args.workdir):
        return {}
    config = _config.load(args)
    own = schemas.own_defaults(flat(to_dict(saved_config(args.workdir))), flat(to_dict(config)), since)
    own = {field: value for field, value in own.items() if field not in _config.overrides(args)}
    if own:
        told = ", ".join(f"{field}={value}" for field, value in own.items())
        print(f"{args.workdir} was started by an older version and keeps its defaults: {told}", file=sys.stderr)
    return own


def run(args: argparse.Namespace) -> dict[str, Any]:
    config = chosen(args)
    from rich.console import Console

    from jaxseq import accelerators
    from jaxseq.train import BadStepError, goodput, planned, profiles, train  # imported after the checks: loading takes seconds
    from jaxseq.train.progress import ProgressLine

    profile = profiles.steps(args.profile) if args.profile else None
    accelerators.warn()
    console = Console(stderr=True)
    received, where = [], EARLY

    def announce(plan) -> None:
        nonlocal where
        where = LATE
        for line in plan.lines():
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    def terminate(number, frame):  # until the run takes over, which saves first
        received.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with _log_to(console), bounded(lambda: said(where)):
            if args.dry_run:
                plan = planned(config, args.workdir)
                announce(plan)
                return plan.to_json()
            with ProgressLine(console) as progress:
                record = train(config, args.workdir, progress=progress, announce=announce, debug=args.debug, profile=profile)
    except BadStepError as error:
        print(f"jaxseq: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except (Exception, KeyboardInterrupt) as error:
        if not interrupted(error):
            raise
        stopped(console, where, received[0] if received else signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)
    if "goodput" in record:
        console.print(goodput.describe(record), highlight=False, soft_wrap=True)
    if "stopped" in record:
        stopped(console, record["stopped"], record["signal"])
    return record


@contextlib.contextmanager
def _log_to(console) -> Iterator[None]:
    """Prints the package's log on the console."""
    from rich.logging import RichHandler

    logger = logging.getLogger("jaxseq")
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    logger.handlers = [RichHandler(console=console, show_time=False, show_level=False, show_path=False)]
    logger.setLevel(logging.INFO)
    logger.propagate = False  # libraries put their own handlers on the root logger
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def stopped(console: "Console", where: str, number: int) -> NoReturn:
    """Ends the command in the same way as a stopped `jaxseq compare`."""
    console.print(said(where), highlight=False, soft_wrap=True)
    raise SystemExit(STOPPED + number)


def said(where: str) -> str:
    return f"stopped {where}; run the same command again to resume"
