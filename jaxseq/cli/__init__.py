"""The command line: one file a command, each with `add_arguments(parser)` and `run(args) -> dict | None`.

Exit status 0: done. 2: the user's input is wrong, one line says what and how to mend it. 1: a fault of ours, or of the machine.
With --json, `run`'s result is printed as the one document on standard output; everything for people goes to standard error.
"""

import argparse
import errno
import json
import os
import sys

from jaxseq import registry
from jaxseq.errors import UserError


class _Parser(argparse.ArgumentParser):
    """argparse's errors as one line."""

    def error(self, message):
        raise UserError(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="jaxseq", description="What should replace the Transformer? Train, compare and run sequence models.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for name in registry.names("cli"):
        module = registry.load("cli", name)
        summary = module.__doc__.strip().splitlines()[0]
        command = commands.add_parser(
            name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("--json", action="store_true", help="print one JSON document on standard output")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        args, rest = parser().parse_known_args(argv)
        _join_processes(os.environ.get("JAXSEQ_DISTRIBUTED", ""))
        args.overrides = [word for word in rest if hasattr(args, "config") and word.startswith("--config.")]
        if unknown := [word for word in rest if word not in args.overrides]:
            raise UserError(f"jaxseq {args.command} has no argument {unknown[0]}; see jaxseq {args.command} --help")
        result = args.run(args)
        if args.json:
            print(json.dumps(result, allow_nan=False, default=float))
        return 0
    except UserError as error:
        print(f"jaxseq: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"jaxseq: the disk is full ({error.filename or 'while writing'}); free some room and run it again", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _join_processes(where: str) -> None:
    """Makes this one process of several. JAXSEQ_DISTRIBUTED is "1" on TPU slices and under Slurm or MPI, where jax finds the
    others itself, and HOST:PORT,COUNT,INDEX elsewhere."""
    if not where:
        return
    import jax

    if where == "1":
        jax.distributed.initialize()
        return
    try:
        address, count, index = where.split(",")
        jax.distributed.initialize(address, int(count), int(index))
    except ValueError:
        raise UserError(f"JAXSEQ_DISTRIBUTED={where} is neither 1 nor HOST:PORT,COUNT,INDEX, like 10.0.0.2:1234,2,0") from None


def entry() -> None:
    """The console script."""
    sys.exit(main())
