"""Progress of a run on standard error: a live line on a terminal, plain lines elsewhere."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

SHOWN = {
    "loss": "loss {:.4f}",
    "distillation": "distillation {:.4f}",
    "hidden_states": "hidden states {:.4f}",
    "matching": "mixers {:.4f}",
    "bits_per_byte": "bits/byte {:.4f}",
    "accuracy": "accuracy {:.1%}",
    "validation_bits_per_byte": "validation {:.4f}",
    "validation_accuracy": "validation {:.1%}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "flops_utilisation": "utilisation {:.1%}",
    "eta_seconds": "left {}",
}
MARKED = {"bits_per_byte", "validation_bits_per_byte"}  # with * if the tokenizer is lossy


def duration(seconds: float) -> str:
    """Seconds as [h:]mm:ss."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


def describe(record: dict[str, Any], width: int | None = None) -> str:
    """The main numbers of a record as text; as many as fit into `width` characters."""
    values = record | ({"eta_seconds": duration(record["eta_seconds"])} if "eta_seconds" in record else {})
    hidden = {"accuracy", "validation_accuracy"} if "bits_per_byte" in values else set()  # accuracy on single tokens says little
    marks = dict.fromkeys(MARKED, "*") if values.get("lossy") else {}
    shown = [name for name in SHOWN if values.get(name) is not None and name not in hidden]
    told = [SHOWN[name].format(values[name]) + marks.get(name, "") for name in shown]
    while width is not None and len(told) > 1 and len("  ".join(told)) > width:
        del told[-2 if len(told) > 2 else -1]  # the remaining time is dropped last
    return "  ".join(told)


class ProgressLine:
    """Takes the records of `train(progress=...)` and shows them; use as a context manager."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True)
        self.bar = 20 if self.console.width > 100 else 10
        bar = BarColumn(bar_width=self.bar, table_column=Column(no_wrap=True, min_width=self.bar))
        count = MofNCompleteColumn(table_column=Column(no_wrap=True))
        columns = bar, count, TextColumn("{task.description}")
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
        if not self.live:
            line = f"step {record['step']}/{record['steps']}  {describe(record)}"
            self.console.print(line, highlight=False, soft_wrap=True)
            return
        text = describe(record, self.console.width - self.bar - 2 * len(str(record["steps"])) - 5)
        if self.task is None:
            self.task = self.live.add_task("", total=record["steps"])
        self.live.update(self.task, completed=record["step"], total=record["steps"], description=text)
