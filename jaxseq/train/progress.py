"""What people watch while a run goes on, on standard error: a live line on a terminal, plain lines elsewhere."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

SHOWN = {
    "loss": "loss {:.4f}",
    "bits_per_byte": "bits/byte {:.4f}",
    "validation_bits_per_byte": "validation {:.4f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "flops_utilisation": "utilisation {:.1%}",
    "eta_seconds": "left {}",
}


def duration(seconds: float) -> str:
    """Seconds as [h:]mm:ss."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


def describe(record: dict[str, Any]) -> str:
    """The numbers of a record worth watching, in words."""
    values = record | ({"eta_seconds": duration(record["eta_seconds"])} if "eta_seconds" in record else {})
    return "  ".join(text.format(values[name]) for name, text in SHOWN.items() if values.get(name) is not None)


class ProgressLine:
    """Takes the records of `train(progress=...)` and shows them; use as a context manager."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True)
        columns = BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.description}")
        self.live = Progress(*columns, console=self.console, transient=False) if self.console.is_terminal else None
        self.task = None

    def __enter__(self) -> "ProgressLine":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, record: dict[str, Any]) -> None:
        text = describe(record)
        if not self.live:
            self.console.print(f"step {record['step']}/{record['steps']}  {text}", highlight=False, soft_wrap=True)
            return
        if self.task is None:
            self.task = self.live.add_task("", total=record["steps"])
        self.live.update(self.task, completed=record["step"], total=record["steps"], description=text)
