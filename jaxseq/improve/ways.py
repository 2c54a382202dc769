"""Ways to make a model from a trained one in one call, other than by training a config: {name: function}.

A function makes what its `Job` says, and returns (the number of tokens that it trained on, the seconds if they are not those
of this call alone, because it went on after an interruption). It raises UserError for an argument
that cannot be applied, and Interrupted if it was asked to stop; if it is called again, it goes on or starts anew.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxseq import compress
from jaxseq.compare.engine import Interrupted
from jaxseq.migrate import migrate

STAGES = (1, 1, 3)  # parts of the steps of a migration


class Job(NamedTuple):
    """base: the workdir of the base's run. out: the new workdir. steps: of training. fields: the user's config fields data.….
    say: called with a line about the progress."""

    base: Path
    argument: str
    out: Path
    steps: int
    seed: int
    fields: dict[str, Any]
    say: Callable[[str], None]

    def progress(self, record: dict[str, Any]) -> None:
        self.say(f"step {record['step']} of {record['steps']}, loss {record['loss']:.3f}")


Effort = tuple[int, float | None]


def compressed(job: Job) -> Effort:
    """By a recipe of `jaxseq compress`, which reads a few tokens but trains on none."""
    shutil.rmtree(job.out, ignore_errors=True)  # what an interruption has left
    compress.apply(job.base, job.argument, job.out, overrides=job.fields, say=job.say)
    return 0, None


def migrated(job: Job) -> Effort:
    """By `jaxseq migrate`: attention becomes what the argument names."""
    steps = tuple(max(1, round(job.steps * part / sum(STAGES))) for part in STAGES)
    result = migrate(
        job.base, job.argument, job.out, steps=steps, seed=job.seed, overrides=job.fields, say=job.say, progress=job.progress
    )
    if "stopped" in result:
        raise Interrupted(result["signal"])
    return sum(stage["tokens"] for stage in result["stages"]), sum(stage["seconds"] for stage in result["stages"])


WAYS: dict[str, Callable[[Job], Effort]] = {"compress": compressed, "migrate": migrated}
