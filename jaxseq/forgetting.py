"""Fine-tunes a model on the text of a domain, with replay of general text against forgetting."""

import os
from collections.abc import Callable
from typing import Any

from jaxseq import paths, registry, staged
from jaxseq.config import config, from_dict, to_dict
from jaxseq.data.sources.mixture import LARGEST_WEIGHT
from jaxseq.errors import UserError
from jaxseq.plain_files import json_text
from jaxseq.train import train

NAME = "forgetting.json"  # in the new workdir: what was asked for, and the scores
MIXTURE = "mixture.json"  # in the new workdir, with replay: both texts and their weights


def tune(
    before: str | os.PathLike, domain: str | os.PathLike, general: str | os.PathLike, out: str | os.PathLike, *, steps: int,
    replay: float = 0.0, overrides: dict[str, Any] | None = None, say: Callable[[str], None] = print,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Trains the model of the workdir `before` for `steps` steps; `out` becomes the workdir of the result.

    replay: the share of the training tokens that is general text, from 0 to below 1. overrides: config fields train.…, mesh.…,
    data.… and eval.…; by default the learning rate is a tenth of that of `before`. An interrupted call goes on if it is made
    again. Returns the record of the training run.

    Raises UserError for a share or a number of steps that is out of range, and if `out` holds something else.
    """
    if steps < 1:
        raise UserError(f"--steps={steps} trains nothing; give a positive number")
    if not 0 <= replay < 1:
        raise UserError(f"--replay={replay:g} is no share of the training text; give a number from 0 to below 1")
    before, domain, general = (str(paths.absolute(paths.of(path))) for path in (before, domain, general))
    out, overrides = paths.of(out), overrides or {}
    asked = {"before": before, "domain": domain, "general": general, "steps": steps, "replay": replay, "config": overrides}
    staged.check(out, NAME, asked)
    text = {"data.source": "sotu", "data.path": domain}  # the default source: guessed from the path
    weights = _weights(config(before, **overrides | text), general, replay) if replay else {}
    staged.begin(out, NAME, asked)
    if replay:
        parts = {"domain": domain, "general": general}
        paths.write(out / MIXTURE, json_text({name: {"path": parts[name], "weight": weights[name]} for name in parts}, indent=1))
        text = {"data.source": "mixture", "data.path": str(out / MIXTURE)}
    tuned = config(before, **{"train.init": before, "train.steps": steps} | overrides | text)
    say(f"training on {domain}" + (f", and {replay:.0%} {general}" if replay else ""))
    return train(tuned, out, progress=progress)


def _weights(first: Any, general: str, replay: float) -> dict[str, float]:
    """How often an epoch contains each document of the two texts. At least once where possible: of a text that is a single
    document, a fraction could be none."""
    tokens = {}
    for name, path in {"domain": first.data.path, "general": general}.items():
        own = from_dict(to_dict(first), **{"data.path": path})
        tokens[name] = registry.load("train.objectives", own.train.objective).task(own).sizes()["train"]["tokens"]
        if not tokens[name]:
            raise UserError(f"the number of training tokens of {path} is unknown or zero, so --replay cannot be a share of them")
    ratio = (1 - replay) / replay * tokens["general"] / tokens["domain"]  # of the weights, domain to general
    domain = min(max(ratio, 1.0), float(LARGEST_WEIGHT))
    return {"domain": domain, "general": min(domain / ratio, float(LARGEST_WEIGHT))}
