"""Turns a trained Transformer into another model in three stages of training, and reports what that costs and gains."""

import logging
import os
from collections.abc import Callable
from typing import Any

import jax

from jaxseq import paths, recipes, registry, staged
from jaxseq.compress import compared
from jaxseq.config import from_dict, to_dict
from jaxseq.errors import UserError
from jaxseq.migrate import _convert
from jaxseq.train import goodput, load_variables, save_params, train
from jaxseq.train.checkpoints import steps as saved_steps

# The objectives of the stages, in their order, and what they need. Matching leaves other parameters as they are: their gradients
# are zero. The second stage learns hidden states only.
STAGES: dict[str, dict[str, Any]] = {
    "matching": {"train.weight_decay": 0.0},
    "hidden_states": {"train.distill_alpha": 1.0},
    "distillation": {},
}
STEPS = (200, 200, 600)
NAME = "migrate.json"  # in the new workdir: what was asked for, and the figures
log = logging.getLogger(__name__)
Say = Callable[[str], None]
Progress = Callable[[dict[str, Any]], None]


def migrate(
    workdir: str | os.PathLike, to: str, out: str | os.PathLike, *, steps: tuple[int, ...] = STEPS, seed: int = 0,
    overrides: dict[str, Any] | None = None, context: int | None = None, say: Say = log.info, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Writes the new model to the workdir `out`; returns what the command prints as JSON.

    to: what replaces the attention of consecutive layers, see `jaxseq.migrate`. steps: of the three stages; 0 leaves one out.
    seed: of new parameters. overrides: fields of config.data, train, eval and mesh for all stages. context: the number of tokens
    after which decoding is measured, default train.length. say: called with a line about the progress. progress: called with the
    records of training.

    Each stage is a run, in `out`/stages or, the last one, in `out`. An interrupted migration goes on if it is called again with
    the same arguments; its result then has a field `stopped` when it is interrupted once more. Raises UserError for a model that
    cannot be migrated; nothing is written then.
    """
    wanted, out = _convert.targets(to), paths.of(out)
    if len(steps) != len(STAGES) or min(steps) < 0:
        raise UserError(f"the steps {','.join(map(str, steps))} must be {len(STAGES)} numbers, one for each stage, of 0 or more")
    asked = {"workdir": str(paths.absolute(paths.of(workdir))), "to": to, "steps": list(steps), "seed": seed}
    asked |= {"config": overrides or {}}
    staged.check(out, NAME, asked)
    _, variables, config = load_variables(workdir)
    if config.model.kind != "lm":
        raise UserError(f"{workdir} holds a model of kind {config.model.kind}; only causal language models migrate")
    if config.model.weights or config.train.lora_rank:
        raise UserError(f"{workdir} holds weights that are quantized, pruned or adapted; take the model that they were made from")
    config = from_dict(to_dict(config), **(overrides or {}), **{"train.objective": "next_token", "train.rounding": ""})
    teacher = recipes.Candidate(config, variables["params"], say)
    student = _convert.student(teacher, wanted, jax.random.key(seed))
    task = registry.load("train.objectives", "next_token").task(config)
    task.check(student.model)
    staged.begin(out, NAME, asked)
    result: dict[str, Any] = {"workdir": str(out), "stack": student.config.model.stack}
    result["stages"] = _trained(student, task, asked["workdir"], out, steps, say, progress)
    if "stopped" in result["stages"][-1]:
        return result | {"stopped": result["stages"][-1]["stopped"], "signal": result["stages"][-1]["signal"]}
    context = context or config.train.length
    result |= {"context": context, **compared(workdir, out, None, overrides, say, context)}
    result |= _gain(result)
    staged.write(out, NAME, asked, result)
    return result


def _trained(
    student: recipes.Candidate, task: Any, teacher: str, out: Any, steps: tuple[int, ...], say: Say, progress: Progress | None
) -> list[dict[str, Any]]:
    """Runs the stages; what each took and gave. The first is the student before training."""
    todo = [(name, number) for name, number in zip(STAGES, steps, strict=True) if number]
    start = out / "stages" / "start" if todo else out
    if not saved_steps(start):
        save_params(start, student.config, student.params)
    say("evaluating the model before training")
    bits = task.evaluate(student.model, {"params": student.params})["bits_per_byte"]
    found: list[dict[str, Any]] = [{"stage": "start", "steps": 0, "tokens": 0, "seconds": 0.0, "bits_per_byte": bits}]
    for number, (name, length) in enumerate(todo, 1):
        folder = out if number == len(todo) else out / "stages" / name
        settings = {
            "train.objective": name, "train.distill_teacher": teacher, "train.init": str(start), "train.init_layers": "",
            "train.steps": length,
            "train.warmup": min(student.config.train.warmup, length // 10), "train.decay_steps": None, "train.eval_every": 0,
        }  # fmt: skip
        config = from_dict(to_dict(student.config), **settings | STAGES[name])
        say(f"stage {number} of {len(todo)}: {name.replace('_', ' ')}, {length} steps, in {folder}")
        record = train(config, folder, progress=progress)
        spent = sum(record.get(f"time_{kind}", 0.0) for kind in goodput.KINDS)
        tokens = record["step"] * config.train.batch * config.train.length
        found.append({"stage": name, "steps": record["step"], "tokens": tokens, "seconds": spent})
        found[-1]["bits_per_byte"] = record.get("validation_bits_per_byte")
        if "stopped" in record:
            found[-1] |= {"stopped": record["stopped"], "signal": record["signal"]}
            break
        start = folder
    return found


def _gain(result: dict[str, Any]) -> dict[str, float | None]:
    """recovered: the part of the loss of quality at the start that training made up for. break_even_tokens: the number of decoded
    tokens after which the time of the migration is saved; None if decoding is not faster."""
    before, after, start = result["before"], result["after"], result["stages"][0]["bits_per_byte"]
    lost = start - before["bits_per_byte"]
    speeds = before["tokens_per_second"], after["tokens_per_second"]
    saved = 1 / speeds[0] - 1 / speeds[1] if all(speeds) else 0.0
    spent = sum(stage["seconds"] for stage in result["stages"])
    recovered = (start - after["bits_per_byte"]) / lost if lost > 0 else None
    return {"recovered": recovered, "seconds": spent, "break_even_tokens": spent / saved if saved > 0 else None}
