"""Shared by commands that train in several stages, and by those that compare a model before and after."""

from collections.abc import Callable
from typing import Any

Say = Callable[[str], None]


def run(call: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any) -> tuple[dict[str, Any], Say]:
    """(the result of `call`, a function that prints a line). `call` also gets `say` and `progress`; the command ends if it was
    stopped."""
    from rich.console import Console

    from jaxseq.cli.train import stopped
    from jaxseq.train.progress import ProgressLine

    console = Console(stderr=True)
    say = lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)  # noqa: E731
    with ProgressLine(console) as progress:
        result = call(*args, say=say, progress=progress, **kwargs)
    if "stopped" in result:
        stopped(console, result["stopped"], result["signal"])
    return result, say


def tell(result: dict[str, Any], say: Say) -> None:
    """One line for each figure before and after."""
    for name, before in result["before"].items():
        if before is not None and (after := result["after"][name]) is not None:
            say(f"{name.replace('_', ' '):18} {before:14,.6g} -> {after:14,.6g}")
