"""Train a model; run again in the same folder, it goes on where it stopped.

DIR gets config.json, checkpoints/, metrics.jsonl (one object a logged step) and TensorBoard events. kill -9 costs the steps
since the last checkpoint and changes nothing else; SIGTERM and Ctrl-C save first.
"""

import logging
import sys

from jaxseq.cli import _config


def add_arguments(parser):
    _config.add_config(parser)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run, made if need be")


def run(args):
    config = _config.load(args)
    from rich.console import Console
    from rich.logging import RichHandler

    from jaxseq.train import NonFiniteError, train  # after the check: loading takes seconds
    from jaxseq.train.progress import ProgressLine

    console = Console(stderr=True)
    logger = logging.getLogger("jaxseq")
    logger.addHandler(RichHandler(console=console, show_time=False, show_level=False, show_path=False))
    logger.setLevel(logging.INFO)
    logger.propagate = False  # libraries put handlers of their own on the root
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax prints the traceback of what it raises anyway
    try:
        with ProgressLine(console) as progress:
            record = train(config, args.workdir, progress=progress)
    except NonFiniteError as error:
        print(f"jaxseq: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    if record["step"] < config.train.steps:
        print(f"stopped and saved at step {record['step']}; run the same command again to go on", file=sys.stderr)
    return record
