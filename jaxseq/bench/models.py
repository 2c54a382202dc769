"""Times whole models: a training step, prefill, decoding a token.

Models have the given width, random weights, and the built-in config's other settings. With
peers, the same weights run in other libraries, and the logits of both are compared first.

Lower bounds ("floor") that may not be reachable: for training and prefill, the model's FLOPs (see `Trainer.flops_per_token`) at
the rate of a large matrix product; for decoding, one read of the weights and of the state.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import jaxseq
from jaxseq import forms, registry
from jaxseq.bench import peers as libraries
from jaxseq.bench import programs, timing
from jaxseq.bench.ops import about, machine
from jaxseq.bench.timing import OnProgress, silent
from jaxseq.errors import UserError

ARCHITECTURES = ("transformer", "gpt2", "rwkv4", "mamba2", "retnet", "mamba")
SLOW = 20.0  # a peer that needs more seconds for a call is left out
KINDS = ("train", "prefill", "decode")


@dataclasses.dataclass(frozen=True)
class Shape:
    """rows: of a training batch. lengths: of rows and prompts; for decoding, of the context. steps: tokens decoded per call."""

    width: int = 256
    rows: int = 4
    lengths: tuple[int, ...] = (512,)
    steps: int = 64
    dtype: str = "float32"


@dataclasses.dataclass
class TimedModel:
    """One architecture at one length: what is known about it, the calls that are timed, and both for each of its peers."""

    record: dict[str, Any]
    calls: dict[str, Callable[[], Any]]
    peers: dict[str, tuple[dict[str, Any], dict[str, Callable[[], Any]]]] = dataclasses.field(default_factory=dict)


def model_config(name: str, shape: Shape, length: int) -> ConfigDict:
    """The config of architecture `name` at this width, for texts of `length` tokens."""
    config = jaxseq.config(name)
    learned = config.model.get("positions") == "learned"
    return jaxseq.config(
        name,
        **{"model.width": shape.width, "model.dtype": shape.dtype, "model.vocab": config.model.vocab or 256},
        **({"model.max_positions": length} if learned else {}),
    )


def bench(
    kind: str, names: Sequence[str] = ARCHITECTURES, shape: Shape = Shape(), peers: bool = False, rounds: int = 10,
    on_progress: OnProgress = silent, finished: Callable[[list[dict]], None] | None = None,
) -> dict:  # fmt: skip
    """Times every architecture of `names` at every length; `finished` is called with the records of each length.

    Keys: kind, platform, device, versions, date, dtype, width, and records. A record has architecture, parameters, length and
    ours_ms; floor_ms and of_floor = ours_ms / floor_ms; reference and of_reference, the ratio to the first architecture; and
    with peers: peer, peer_ms, ratio = ours_ms / peer_ms, spread of that ratio (interquartile range / median), difference of the
    logits, and verdict: "faster", "slower", or None when the spread is above 10 %. An architecture that several peers have has
    a record for each. Times are medians over rounds.
    """
    if kind not in KINDS:
        raise UserError(f"there is no benchmark {kind!r} of models; choose one of: {', '.join(KINDS)}")
    if not names or rounds < 1:
        raise UserError("nothing to measure: name at least one architecture and one round")
    found = libraries.available() if peers else {}
    if peers and not found:
        known = [registry.load("bench.peers", name).PACKAGES.values() for name in registry.names("bench.peers")]
        needed = ", or ".join(" and ".join(packages) for packages in known)
        raise UserError(f"no library to compare with is installed; install {needed}, or leave out --peers")
    result = {"kind": kind, **about(shape.dtype), "width": shape.width, "records": []}
    result["versions"] = {"jaxseq": jaxseq.__version__, "jax": result.pop("jax"), "peers": list(found)}
    for length in shape.lengths:
        cases = {}
        for i, name in enumerate(names):
            on_progress(i / len(names), f"compiling {name} at {length}")
            cases[name] = case(kind, name, shape, length, found)
        records = measure(cases, kind, shape, rounds, on_progress)
        result["records"] += records
        if finished:
            finished(records)
    return result


def case(kind: str, name: str, shape: Shape, length: int, peers: Mapping[str, Any]) -> TimedModel:
    """Compiles one architecture, and opens it in all peers that have it. If nothing is left, the record has the reason."""
    config = model_config(name, shape, length + shape.steps)
    model = jaxseq.build(config)
    params = jax.jit(model.init)(jax.random.key(0), *model.example())["params"]
    record = {"architecture": name, "parameters": sum(x.size for x in jax.tree.leaves(params)), "length": length}
    try:
        calls, known = _ours(kind, config, model, params, shape, length)
    except (jax.errors.JaxRuntimeError, MemoryError, UserError) as error:
        return TimedModel(record | {"failed": str(error).partition("\n")[0]}, {})
    record |= known
    found, reasons = {}, []
    for label, library in peers.items():
        try:
            peer = library.open(model, params)
            theirs = _theirs(kind, peer, shape, length)
            about = {"peer": label, "difference": _difference(model, params, peer)}
        except UserError as error:
            reasons.append(str(error).partition(";")[0])
            continue
        if (slowest := max(timing.seconds(call) for call in theirs.values())) < SLOW:
            found[label] = about, theirs
        else:
            reasons.append(f"{label} takes {slowest:.0f} s")
    return TimedModel(record | ({"no_peer": "; ".join(reasons)} if reasons and not found else {}), calls, found)


def _ours(kind: str, config: ConfigDict, model: Any, params: Any, shape: Shape, length: int) -> tuple[dict, dict]:
    """({"ours": call, for decoding also "floor": call}, figures that are known before anything is timed)."""
    if kind == "train":
        trainer = programs.step_trainer(config, shape.rows, length)
        step = programs.training(trainer, params)
        operations = trainer.flops_per_token() * shape.rows * length
        floor = 1e3 * operations / machine(shape.dtype).operations
        return {"ours": step.call}, {"rows": shape.rows, "bytes": step.bytes, "floor_ms": floor}
    if kind == "prefill":
        operations = programs.step_trainer(config, 1, length).flops_per_token() * length / 3  # without the backward pass
        call = programs.reading(model, params, forms.freeze(config.train.form), length)
        return {"ours": call}, {"floor_ms": 1e3 * operations / machine(shape.dtype).operations}
    state = programs.full_state(model, length, shape.steps)
    sizes = {"state_bytes": programs.bytes_of(state), "weight_bytes": programs.bytes_of(params)}
    return {"ours": programs.decoding(model, params, length, shape.steps), "floor": programs.reads(params, state)}, sizes


def _theirs(kind: str, peer: Any, shape: Shape, length: int) -> dict[str, Callable[[], Any]]:
    if kind == "train":
        return {"peer": peer.training(shape.rows, length)}
    if kind == "prefill":
        return {"peer": peer.reading(length)}
    prompt = max(1, length - shape.steps)
    return {"peer": peer.generating(prompt, shape.steps + 1), "peer prompt": peer.generating(prompt, 1)}


def _difference(model: Any, params: Any, peer: Any) -> float:
    """The largest difference of logits relative to the largest logit, on 64 random tokens."""
    tokens_BT = np.random.default_rng(1).integers(0, model.vocab, (1, 64)).astype(np.int32)
    ours = np.asarray(jax.jit(model.apply)({"params": params}, tokens_BT)[0], np.float32)
    theirs = peer.logits(tokens_BT)
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(ours)))


def measure(cases: Mapping[str, TimedModel], kind: str, shape: Shape, rounds: int, progress: OnProgress = silent) -> list[dict]:
    """The records of all cases, timed in turns."""
    calls: dict[tuple[str, ...], Callable[[], Any]] = {}
    for name, one in cases.items():
        calls |= {(name, part): call for part, call in one.calls.items()}
        calls |= {(name, label, part): call for label, (_, own) in one.peers.items() for part, call in own.items()}
    laps = {key: np.asarray(found) for key, found in timing.laps(calls, rounds, progress).items()}
    per_call = shape.steps if kind == "decode" else 1
    reference = next((name for name, one in cases.items() if one.calls), None)
    records = []
    for name, one in cases.items():
        record = dict(one.record)
        if one.calls:
            ours, first = laps[name, "ours"] / per_call, laps[reference, "ours"] / per_call
            record["ours_ms"] = 1e3 * float(np.median(ours))
            if (name, "floor") in laps:
                record["floor_ms"] = 1e3 * float(np.median(laps[name, "floor"]))
            record["of_floor"] = record["ours_ms"] / record["floor_ms"]
            record |= {"reference": reference, "of_reference": timing.ratio(ours, first).value}
        compared = []
        for label, (about_peer, _) in one.peers.items():
            theirs = (laps[name, label, "peer"] - laps.get((name, label, "peer prompt"), 0)) / per_call
            compared.append(record | about_peer | _against(ours, theirs))
        records += compared or [record]
    return records


def _against(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    found = timing.ratio(ours, theirs)
    verdict = ("faster" if found.value < 1 else "slower") if found.ranks else None
    return {"peer_ms": 1e3 * float(np.median(theirs)), "ratio": found.value, "spread": found.spread, "verdict": verdict}


def crossovers(records: Sequence[Mapping[str, Any]]) -> dict[str, int | None]:
    """{architecture: the shortest measured length from which it is faster than the reference at every longer one, or None}."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        if "of_reference" in record:
            found.setdefault(record["architecture"], {})[record["length"]] = record["of_reference"]
    return {name: timing.crossover(own, dict.fromkeys(own, 1.0)) for name, own in found.items()}
