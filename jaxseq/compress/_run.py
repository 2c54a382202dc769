"""Applies a recipe to the weights of a workdir and measures the model before and after."""

import contextlib
import json
import logging
import math
import os
import statistics
from collections.abc import Callable
from typing import Any

import jax

import jaxseq
from jaxseq import paths, recipes, registry, weights
from jaxseq.bench import peers, timing
from jaxseq.bench.peers import llama_cpp
from jaxseq.compare import measure
from jaxseq.compress._calibration import Calibration
from jaxseq.compress._work import Work
from jaxseq.config import from_dict, to_dict
from jaxseq.errors import UserError
from jaxseq.train import load_variables, save_params, structure
from jaxseq.weights import Factored, QuantizedWeight, Sparse

NAME = "compress.json"  # in the new workdir: the recipe and the figures
DECODED, ROUNDS = 32, 3  # tokens per timed call of decoding; timed calls
log = logging.getLogger(__name__)


def compress(
    workdir: str | os.PathLike, recipe: str, out: str | os.PathLike, *, step: int | None = None, tokens: int = 8192,
    overrides: dict[str, Any] | None = None, say: Callable[[str], None] = log.info,
) -> dict[str, Any]:  # fmt: skip
    """Writes the weights of `workdir`, compressed by `recipe`, to the workdir `out`; returns what the command prints as JSON.

    step: of the checkpoint, default the latest. tokens: of training data, for calibration. overrides: config fields data.… and
    eval.…. say: called with a line about the progress.

    Raises UserError for a recipe that cannot be applied; nothing is written then.
    """
    work = apply(workdir, recipe, out, step=step, tokens=tokens, overrides=overrides, say=say)
    result = {"workdir": str(out), "recipe": recipe, **compared(workdir, out, step, overrides, say), "left": dict(work.left)}
    paths.write(paths.of(out) / NAME, json.dumps(result, indent=1) + "\n")
    return result


def apply(
    workdir: str | os.PathLike, recipe: str, out: str | os.PathLike, *, step: int | None = None, tokens: int = 8192,
    overrides: dict[str, Any] | None = None, say: Callable[[str], None] = log.info,
) -> Work:  # fmt: skip
    """`compress` without its measurements."""
    wanted = recipes.steps("compress", recipe)
    model, variables, config = _settled(workdir, step, overrides)
    task = registry.load("train.objectives", config.train.objective).task(config)
    task.check(model)
    work = Work(config, variables["params"], say, Calibration(task, tokens, say))
    for module, argument in wanted:
        work = module.apply(work, argument)
    say(f"writing {out}")
    save_params(out, work.config, variables | {"params": work.params}, compressed=True)
    return work


def compared(
    before: str | os.PathLike, after: str | os.PathLike, step: int | None, overrides: dict[str, Any] | None,
    say: Callable[[str], None], context: int | None = None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """{"before": figures, "after": figures} of two workdirs: bytes, quality, state_bytes, parameters, tokens_per_second.

    step: of the checkpoint before. context: the number of tokens of the state, after which decoding is timed; default
    train.length.
    """
    sides, result = {}, {}
    for side, folder, number in (("before", before, step), ("after", after, None)):
        say(f"evaluating, {side}")
        model, variables, config = _settled(folder, number, overrides)
        task = registry.load("train.objectives", config.train.objective).task(config)
        figures = task.evaluate(model, variables)
        name = "bits_per_byte" if "bits_per_byte" in figures else task.figures[0]
        result[side] = {"bytes": measure.disk_bytes(folder, number), name: figures[name]}
        result[side] |= {"state_bytes": _state_bytes(config, context), "parameters": count(variables["params"])}
        sides[side] = config, variables["params"]
    context = context or sides["before"][0].train.length
    steps = max(min(DECODED, context - 1), 1)
    _decoding(result, sides, context, steps, say)
    _decoding_by_llama_cpp(result, sides, context, steps, say)
    return result


def _settled(
    workdir: str | os.PathLike, step: int | None, overrides: dict[str, Any] | None
) -> tuple[Any, dict[str, Any], Any]:
    """(model, variables, config) of a workdir, without types of weights that exist only in training."""
    _, variables, config = load_variables(workdir, step)
    config = from_dict(to_dict(config), **overrides or {})
    types, params = structure.settled(config, variables["params"])
    plain = {"train.lora_rank": 0, "train.rounding": "", "train.distill_cache": None}
    config = from_dict(to_dict(config), **{"model.weights": types} | plain)
    return jaxseq.build(config), variables | {"params": params}, config


def count(params: Any) -> int:
    """Number of parameters, without fixed zeros and without the scales of quantized weights."""

    def of(node: Any) -> int:
        if isinstance(node, QuantizedWeight):
            return math.prod(jax.eval_shape(node.dense).shape)
        if isinstance(node, Sparse):
            return int((node.dense() != 0).sum())
        return of(node.a) + of(node.b) if isinstance(node, Factored) else node.size

    return sum(map(of, jax.tree.leaves(params, is_leaf=weights.is_weight)))


def _state_bytes(config: Any, context: int | None) -> int | None:
    """Of one row; None for a model that is not a causal language model."""
    return measure.state_bytes(jaxseq.build(config), context or config.train.length) if config.model.kind == "lm" else None


def _decoding(
    result: dict[str, Any], sides: dict[str, tuple[Any, Any]], context: int, steps: int, say: Callable[[str], None]
) -> None:
    """Adds `tokens_per_second`, of greedy decoding of one row; both models are timed in turns."""
    seconds: dict[str, Any] = {}
    if all(config.model.kind == "lm" for config, _ in sides.values()):
        say("timing the decoding of both")
        subjects = {
            side: measure.MeasuredModel(config, jaxseq.build(config), params, jax.devices()[:1], {})
            for side, (config, params) in sides.items()
        }
        seconds = measure.decode(subjects, context, steps, ROUNDS)
    for side in sides:
        found = seconds.get(side)
        result[side]["tokens_per_second"] = 1 / found if isinstance(found, float) else None


def _decoding_by_llama_cpp(
    result: dict[str, Any], sides: dict[str, tuple[Any, Any]], context: int, steps: int, say: Callable[[str], None]
) -> None:
    """Adds `llama_cpp_tokens_per_second` if llama-cpp-python is installed and has the model: as above, with weights of as many
    bits."""
    if llama_cpp not in peers.available().values():
        return
    length = max(context - steps, 1)
    calls: dict[tuple[str, str], Callable[[], None]] = {}
    for side, (config, params) in sides.items():
        with contextlib.suppress(UserError):
            peer = llama_cpp.open(jaxseq.build(config), params)
            calls |= {(side, "prompt"): peer.generating(length, 1), (side, "all"): peer.generating(length, 1 + steps)}
    say("timing llama.cpp")
    seconds = timing.laps(calls, ROUNDS)
    for side in sides:
        laps = zip(seconds.get((side, "all"), ()), seconds.get((side, "prompt"), ()), strict=True)
        rates = [steps / (both - prompt) for both, prompt in laps]
        result[side]["llama_cpp_tokens_per_second"] = statistics.median(rates) if rates else None
