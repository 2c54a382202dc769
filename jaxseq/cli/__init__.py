"""The command line: one file per command, each with `add_arguments(parser)` and `run(args) -> dict | None`.

Exit status 0: success. 2: bad input; one line says what is wrong and how to fix it. 1: a bug or a failure of the machine.
With --json, the only output on standard output is `run`'s result as one document; everything else goes to standard error.
"""

import argparse
import contextlib
import importlib.metadata
import logging
import os
import signal
import sys
import textwrap

import jaxseq
from jaxseq import registry
from jaxseq.cli import _paths, _programs
from jaxseq.errors import UserError, interrupted, is_disk_full
from jaxseq.plain_files import json_text

STOPPED = 128  # the exit status of a command that a signal stopped is this plus its number, as in shells
INTERRUPTED = STOPPED + signal.SIGINT  # Ctrl-C


class _Parser(argparse.ArgumentParser):
    """Raises argparse's errors as one line."""

    def error(self, message):
        raise UserError(f"{message}; see {self.prog} --help")


class _Help(argparse.HelpFormatter):
    """Wraps paragraphs to the terminal's width; indented text, such as an example, is left unchanged."""

    def _fill_text(self, text, width, indent):
        parts = [part if part.startswith(" ") else textwrap.fill(" ".join(part.split()), width) for part in text.split("\n\n")]
        return "\n\n".join(parts)


class _Version(argparse.Action):
    """Prints the versions that a bug report should name."""

    def __call__(self, parser, namespace, values, option_string=None):
        found = {"jaxseq": jaxseq.__version__, "python": sys.version.split()[0]}
        found |= {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")}
        print(", ".join(f"{name} {version}" for name, version in found.items()))
        parser.exit()


def parser() -> argparse.ArgumentParser:
    top = _Parser(
        prog="jaxseq", description="What should replace the Transformer? Train, compare and run sequence models.",
        epilog="Compiled programs are cached between runs; JAXSEQ_CACHE=0 switches that off.",
    )  # fmt: skip
    top.add_argument("--version", action=_Version, nargs=0, help="print the versions of jaxseq, jax and python")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for name in registry.names("cli"):
        module = registry.load("cli", name)
        text = registry.doc(module)
        summary = " ".join(text.split("\n\n")[0].split()).replace("%", "%%")
        command = commands.add_parser(name, help=summary, description=text, formatter_class=_Help)
        command.add_argument("--json", action="store_true", help="print one JSON document on standard output")
        module.add_arguments(command)
        command.set_defaults(run=module.run, parser=command)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        args, rest = parser().parse_known_args(argv)
        _join_processes(os.environ.get("JAXSEQ_DISTRIBUTED", ""))
        args.overrides = [word for word in rest if hasattr(args, "config") and word.startswith("--config.")]
        if unknown := [word for word in rest if word not in args.overrides]:
            raise UserError(f"jaxseq {args.command} has no argument {unknown[0]}; see jaxseq {args.command} --help")
        _paths.resolve(args.parser, args)
        _programs.use()
        result = args.run(args)
        if args.json:
            print(json_text(result, default=float))
        sys.stdout.flush()  # here, so that a closed pipe is caught below and not reported as an error
        return 0
    except UserError as error:
        print(f"jaxseq: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has read enough; write nothing at exit either
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if interrupted(error):
            print("jaxseq: stopped", file=sys.stderr)
            return INTERRUPTED
        if is_disk_full(error):
            where = getattr(error, "filename", None) or "while writing"
            print(f"jaxseq: the disk is full ({where}); free some space and run it again", file=sys.stderr)
            return 1
        if not isinstance(error, (RuntimeError, AssertionError)) or _has_device():
            raise
        platforms = os.environ.get("JAX_PLATFORMS", "")
        mend = "set JAX_PLATFORMS=cpu, or install jax for that platform"
        print(f"jaxseq: jax finds no device with JAX_PLATFORMS={platforms}; {mend}", file=sys.stderr)
        return 2


def _has_device() -> bool:
    import jax

    try:
        return bool(jax.devices())
    except (RuntimeError, AssertionError):
        return False


def _join_processes(where: str) -> None:
    """Joins this process to a distributed job. JAXSEQ_DISTRIBUTED is "1" on TPU slices and under Slurm or MPI, where jax
    finds the other processes itself, and HOST:PORT,COUNT,INDEX elsewhere."""
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
    """The console script. Characters that the output's encoding lacks are printed as escapes."""
    from jaxseq.cli import _interrupt  # which imports this module

    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs its files, and tracebacks of errors that it raises anyway
    logger = logging.getLogger("jaxseq")
    logger.addHandler(logging.StreamHandler())  # the message alone
    logger.propagate = False  # libraries put their own handlers on the root logger
    try:
        with _interrupt.bounded(lambda: "jaxseq: stopped"):
            status = main()
    except SystemExit as ended:
        status = ended.code
    if isinstance(status, int) and status > STOPPED and not os.environ.get("JAXSEQ_DISTRIBUTED"):
        _leave(status)
    sys.exit(status)


def _open_streams() -> None:
    """Opens the standard streams that the caller has closed (`2>&-`), so that no other file gets their numbers."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _leave(status: int) -> None:
    """Ends a stopped command. Python's own exit waits until the devices have computed what is queued."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)
