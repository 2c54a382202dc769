"""Traces of selected steps, for TensorBoard's profiler or Perfetto."""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax

from jaxseq import paths
from jaxseq.errors import UserError

FOLDER = "profile"  # in the workdir


def steps(text: str) -> range:
    """The steps of "10-12", or of "10". Raises UserError."""
    found = re.fullmatch(r"(\d{1,12})(?:-(\d{1,12}))?", text.strip())
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile={text} is not a range of steps; give the first and the last, such as 10-12")
    return range(first, last + 1)


class Profiler:
    """Writes one trace of consecutive steps to `folder`; use as a context manager. chosen: counted from 1; None: no trace.

    The trace contains these steps only, because it waits for the devices before it starts and before it stops.
    """

    def __init__(self, chosen: range | None, folder: Path):
        self.chosen, self.folder, self.running = chosen or range(0), folder, False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    def before(self, step: int, state: Any) -> None:
        """Call this before `step` is dispatched, with the state that it takes."""
        if self.running != (step in self.chosen):
            jax.block_until_ready(state)
            self.stop() if self.running else self.start()

    def start(self) -> None:
        self.written = tempfile.mkdtemp() if paths.is_remote(self.folder) else self.folder  # it cannot write to a bucket
        jax.profiler.start_trace(str(self.written))
        self.running = True

    def stop(self) -> None:
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
            if paths.is_remote(self.folder):
                for name in paths.files(Path(self.written)):
                    paths.write(self.folder / name, (Path(self.written) / name).read_bytes())
                shutil.rmtree(self.written)
