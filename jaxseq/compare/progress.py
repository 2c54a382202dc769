"""Progress of a comparison on standard error: two live bars on a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from jaxseq.train.progress import duration

BAR = 10  # columns: a bar, the longest title and a note fit into 80
EVERY = 15.0  # seconds between two plain lines of one part


class Display:
    """Progress over parts of known weights. Use as a context manager. `console=None` shows nothing."""

    def __init__(self, console: Console | None):
        self.console = console
        columns = TextColumn("{task.description}"), BarColumn(bar_width=BAR), TaskProgressColumn(), TimeElapsedColumn()
        live = console is not None and console.is_terminal
        self.live = Progress(*columns, TextColumn("{task.fields[note]}"), console=console) if live else None
        self.total = self.done = self.weight = 0.0
        self.title = ""
        self.part = None
        self.began = self.printed = 0.0

    def __enter__(self) -> "Display":
        self.began = time.monotonic()
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception) -> None:
        if self.live:
            self.live.stop()

    def plan(self, total: float) -> None:
        """`total`: the sum of the weights of the remaining parts."""
        self.total = total
        if self.live:
            self.whole = self.live.add_task("comparison", total=total, note="")

    def more(self, weight: float) -> None:
        """Adds `weight` to the planned total."""
        self.total += weight
        if self.live:
            self.live.update(self.whole, total=self.total)

    def begin(self, title: str, weight: float) -> None:
        self.title, self.weight, self.printed = title, weight, time.monotonic()
        if self.live:
            if self.part is not None:
                self.live.remove_task(self.part)
            self.part = self.live.add_task(title, total=None, note="")  # no total: the bar pulses until progress is known
        else:
            self.say(f"{title} …{self._whole(0.0)}")

    def update(self, fraction: float, note: str = "") -> None:
        """Reports that `fraction` of the current part is done."""
        if self.live:
            self.live.update(self.part, total=1.0, completed=fraction, note=note)
            self.live.update(self.whole, completed=self.done + fraction * self.weight, note=self._left(fraction))
        elif time.monotonic() - self.printed > EVERY:
            self.printed = time.monotonic()
            self.say(f"  {self.title}: {fraction:.0%}  {note}{self._whole(fraction)}")

    def end(self) -> None:
        self.done += self.weight
        self.weight = 0.0
        if self.live:
            self.live.update(self.part, total=1.0, completed=1.0)
            self.live.update(self.whole, completed=self.done, note=self._left(0.0))

    def say(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, highlight=False, soft_wrap=True)

    def _left(self, fraction: float) -> str:
        """ "about 3 min left", or "" while too little is done to estimate."""
        done = self.done + fraction * self.weight
        if done <= 0.03 * self.total:
            return ""
        return f"about {duration((time.monotonic() - self.began) * (self.total / done - 1))} left"

    def _whole(self, fraction: float) -> str:
        """Overall progress for plain lines, which have no overall bar."""
        left = self._left(fraction)
        return f"  ({(self.done + fraction * self.weight) / self.total:.0%}, {left})" if left else ""
