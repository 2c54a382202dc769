"""Times the forms of every op, forward and in training, and compares them with each other and with the machine's limits.

Arguments have the shapes that the laptop-size architectures pass to an op (recorded while a model is traced) and values sampled
from the op's `example`. Every length has the same total number of tokens, like training batches. The forms of one op and
length are timed in turns, so that other load on the machine slows all of them alike; figures are medians.

The floor is a lower bound that may not be reachable: the operations of the cheapest form at the rate of a large matrix
product, or the bytes of arguments and results at the rate of a copy, whichever takes longer.
"""

import collections
import datetime
import functools
import importlib.metadata
import json
import math
import os
import platform
import re
import statistics
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq import forms, kernels, registry
from jaxseq.bench.programs import bytes_of
from jaxseq.bench.timing import seconds
from jaxseq.config import config, names
from jaxseq.errors import UserError
from jaxseq.models import build
from jaxseq.train import flops

LENGTHS = (64, 256, 1024, 4096)
TOKENS = 4096  # rows * T
MEMORY = 2 << 30  # a form whose temporaries need more bytes is left out
PATIENCE = 2.0  # a form that took more seconds at one length is left out at longer ones
BEATEN = 4.0  # a form that takes this many times the best form's time is timed only once
SLICE = 2e-3  # minimum seconds of one sample: short calls are repeated to reach it


class OpCall(NamedTuple):
    """An architecture's call of an op: shapes after [B, T], weights' shapes, static options; all hashable."""

    xs: tuple[tuple[tuple[int, ...], str], ...]
    weights: tuple[tuple[str, tuple[int, ...], str], ...]
    options: tuple[tuple[str, Any], ...]


class Arguments(NamedTuple):
    """xs and weights are arrays; `pos_BT` has documents that begin at 0 and in the middle."""

    xs: tuple
    weights: dict
    pos_BT: jax.Array


def calls(dtype: str = "float32") -> dict[str, OpCall]:
    """{op: the most common call by the laptop-size architectures}; models are traced, not run."""
    counts: dict[str, collections.Counter] = {}

    def seen(name, form, xs, kwargs):
        arrays = {k: v for k, v in kwargs.items() if k not in ("state", "pos") and hasattr(v, "shape")}
        options = {k: v for k, v in kwargs.items() if k not in ("state", "pos") and not hasattr(v, "shape")}
        call = OpCall(
            tuple((x.shape[2:], x.dtype.name) for x in xs),
            tuple((k, v.shape, v.dtype.name) for k, v in arrays.items()),
            tuple(options.items()),
        )
        counts.setdefault(name, collections.Counter())[call] += 1

    for name in names():
        model = build(config(name, **{"model.dtype": dtype}))
        tokens_BT = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        form = forms.plan("recurrent", seen=seen)
        jax.eval_shape(functools.partial(model.init, form=form), jax.random.key(0), tokens_BT)
    return {name: counter.most_common(1)[0][0] for name, counter in counts.items()}


def example_call(op: str, dtype: str) -> OpCall:
    """The call in `example`, small, for an op that no architecture uses."""
    options: dict = {}

    def arrays():
        example = registry.load("ops", op).example(jax.random.key(0), 1, 8, jnp.dtype(dtype))
        options.update(example.options)
        return example.xs, example.weights

    xs, weights = jax.eval_shape(arrays)
    return OpCall(
        tuple((x.shape[2:], x.dtype.name) for x in xs),
        tuple((k, v.shape, v.dtype.name) for k, v in weights.items()),
        tuple(options.items()),
    )


def arguments(op: str, call: OpCall, batch: int, length: int) -> Arguments:
    """Arrays of the call's shapes, with entries sampled from the op's `example`, or from N(0, 1) if it lacks the argument."""
    example = registry.load("ops", op).example
    known_xs, known_weights = jax.jit(lambda key: example(key, 4, 32, jnp.float32)[:2])(jax.random.key(0))
    random = np.random.default_rng(0)

    def draw(source, shape, dtype):
        source = random.normal(size=64) if source is None else np.asarray(source).reshape(-1)
        return jnp.asarray(random.choice(source, shape), dtype)

    xs = tuple(draw(x, (batch, length, *shape), dtype) for x, (shape, dtype) in zip(known_xs, call.xs, strict=True))
    weights = {name: draw(known_weights.get(name), shape, dtype) for name, shape, dtype in call.weights}
    pos_BT = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32) % -(-length // 2), (batch, length))
    return Arguments(xs, weights, pos_BT)


def functions(form: Callable, options: dict) -> dict[str, Callable]:
    """{"forward": y, "training": gradients by inputs and weights} of Arguments. Gradients by integers have dtype float0."""

    def forward(args: Arguments):
        return form(*args.xs, **args.weights, **options, pos=args.pos_BT)[0]

    def loss(floats, pos_BT):
        y = forward(Arguments(*floats, pos_BT))
        return jnp.sum(jnp.square(y.astype(jnp.promote_types(y.dtype, jnp.float32))))

    return {"forward": forward, "training": lambda args: jax.grad(loss, allow_int=True)((args.xs, args.weights), args.pos_BT)}


class Machine(NamedTuple):
    operations: float  # per second, of a large matrix product
    bytes: float  # per second, read and written


@functools.cache
def machine(dtype: str) -> Machine:
    """Measures the rates of this device: the best of a few tries."""
    x = jnp.ones(1 << 24, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    copy(x).block_until_ready()
    fastest = min(seconds(functools.partial(_run, copy, x)) for _ in range(5))
    return Machine(flops.matmul_peak(dtype), 2 * x.nbytes / fastest)


def floors(candidates: dict[str, Callable], options: dict, args: Arguments, dtype: str) -> dict[str, float]:
    """Lower bounds in seconds for forward and training; training reads the inputs twice and writes their gradients."""
    least = {"forward": math.inf, "training": math.inf}
    moved = dict.fromkeys(least, 0)
    for form in candidates.values():
        for kind, function in functions(form, options).items():
            least[kind] = min(least[kind], flops.count(function, args))
            moved[kind] = bytes_of(jax.eval_shape(function, args)) + bytes_of(args) * (1 if kind == "forward" else 2)
    rates = machine(dtype)
    return {kind: max(least[kind] / rates.operations, moved[kind] / rates.bytes) for kind in least}


def measure(op: str, call: OpCall, length: int, skip: Sequence[str] = (), rounds: int = 5, dtype: str = "float32") -> list[dict]:
    """One record per form: op, time, rows, form, and forward, training, floor_* in milliseconds, or why it was left out."""
    batch, options = max(1, TOKENS // length), dict(call.options)
    args = arguments(op, call, batch, length)
    candidates = registry.load("ops", op).FORMS | kernels.forms(op)
    records, compiled = {}, {}
    for name, form in candidates.items():
        records[name] = {"op": op, "time": length, "rows": batch, "form": name}
        if name in skip:
            records[name]["skipped"] = "too slow"
            continue
        programs = {kind: jax.jit(f).lower(args).compile() for kind, f in functions(form, options).items()}
        temporary = max(program.memory_analysis().temp_size_in_bytes for program in programs.values())
        records[name]["temporary_bytes"] = temporary
        if temporary > MEMORY:
            records[name]["skipped"] = "too much memory"
        else:
            compiled[name] = programs
    for name, medians in _in_turns(compiled, args, rounds).items():
        records[name] |= {kind: 1e3 * value for kind, value in medians.items()}
    limits = floors(candidates, options, args, dtype)
    for record in records.values():
        record |= {f"floor_{kind}": 1e3 * value for kind, value in limits.items()}
    return list(records.values())


def _run(program: Callable, args: Any) -> None:
    jax.block_until_ready(program(args))


def _in_turns(compiled: dict[str, dict[str, Callable]], args, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each program, timed in turns (A B C A B C …); clearly slower ones are timed only once."""
    medians: dict[str, dict[str, float]] = {form: {} for form in compiled}
    for kind in ("forward", "training"):
        calls = {form: functools.partial(_run, kinds[kind], args) for form, kinds in compiled.items()}
        for call in calls.values():
            call()  # warm-up: the first call allocates memory
        samples = {form: [seconds(call)] for form, call in calls.items()}
        best = min((values[0] for values in samples.values()), default=0)
        for _ in range(rounds):
            for form, call in calls.items():
                if (first := samples[form][0]) < BEATEN * best:
                    samples[form].append(seconds(call, repeat=max(1, math.ceil(SLICE / first))))
        for form, values in samples.items():
            medians[form][kind] = statistics.median(values[1:] or values)
    return medians


def bench(
    ops: Sequence[str] = (), lengths: Sequence[int] = LENGTHS, rounds: int = 5, dtype: str = "float32",
    progress: Callable[[list[dict]], None] | None = None, finished: Callable[[dict], None] | None = None,
) -> dict:  # fmt: skip
    """Times every form of `ops` (default: all) at every length; the result can be written as JSON.

    `progress` is called with the records of each length, `finished` with the result so far after each op.

    Keys: platform, device, jax, date, dtype, operations_per_second, bytes_per_second, shapes {op: …}, records, and choices
    {op: {"PURPOSE DTYPE": [[longest T, form], …]}}: the form that is fastest for the purposes "train" and "prefill".
    """
    ops, known = list(ops) or list(registry.names("ops")), calls(dtype)
    for op in ops:
        registry.load("ops", op)  # an unknown name is an error before anything is timed
    result = about(dtype) | _rates(dtype) | {"shapes": {}, "records": [], "choices": {}}
    for op in ops:
        call = known.get(op) or example_call(op, dtype)
        slow: set[str] = set()
        records: list[dict] = []
        for length in sorted(lengths):
            new = measure(op, call, length, sorted(slow), rounds, dtype)
            slow |= {r["form"] for r in new if r.get("training", 0) > 1e3 * PATIENCE or "skipped" in r}
            records += new
            if progress:
                progress(new)
        result["shapes"][op] = {"inputs": [shape for shape, _ in call.xs], "options": dict(call.options), "tokens": TOKENS}
        result["records"] += records
        result["choices"][op] = choices(records, dtype)
        if finished:
            finished(result)
    return result


def about(dtype: str) -> dict[str, Any]:
    """Device, version and date of a benchmark."""
    device = jax.devices()[0]
    return {
        "platform": jax.default_backend(),
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "jax": importlib.metadata.version("jax"),
        "date": datetime.date.today().isoformat(),
        "dtype": dtype,
    }


def _rates(dtype: str) -> dict[str, float]:
    rates = machine(dtype)
    return {
        "operations_per_second": rates.operations,
        "bytes_per_second": rates.bytes,
    }


def choices(records: Sequence[dict], dtype: str) -> dict[str, list[list]]:
    """{"train DTYPE": …, "prefill DTYPE": …}, see `choose`."""
    return {f"train {dtype}": choose(records, "training"), f"prefill {dtype}": choose(records, "forward")}


def choose(records: Sequence[dict], kind: str) -> list[list]:
    """[[longest T, form], …] ascending: the form with the least time of this kind at each T; equal neighbours are merged."""
    rows: list[list] = []
    for length in sorted({r["time"] for r in records}):
        timed = [r for r in records if r["time"] == length and kind in r]
        if not timed:
            continue
        best = min(timed, key=lambda r: r[kind])["form"]
        if rows and rows[-1][1] == best:
            rows[-1][0] = length
        else:
            rows.append([length, best])
    return rows


def merge(table: dict, result: dict) -> dict:
    """`ops/_auto.json` with the choices and figures of the ops and the dtype of a new result replaced."""
    backend, dtype = result["platform"], result["dtype"]
    chosen, measured = (dict(table[key].get(backend, {})) for key in ("choices", "measured"))
    about = {key: result[key] for key in ("device", "jax", "date")}
    for op in result["choices"]:
        chosen[op] = chosen.get(op, {}) | result["choices"][op]
        figures = [
            [r["time"], r["form"], round(r["forward"], 3), round(r["training"], 3)]
            for r in result["records"]
            if r["op"] == op and "training" in r
        ]
        figures = about | result["shapes"][op] | {"time, form, forward ms, training ms": figures}
        measured[op] = measured.get(op, {}) | {dtype: figures}
    return {"measured": table["measured"] | {backend: measured}, "choices": table["choices"] | {backend: chosen}}


def write(result: dict) -> str:
    """Merge a result into the committed table that the form "auto" reads; returns its path."""
    path = resources.files("jaxseq.ops").joinpath("_auto.json")
    text = json.dumps(merge(json.loads(path.read_text(encoding="utf-8")), result), indent=1)
    try:
        path.write_text(_compact(text) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; run jaxseq from a checkout") from None
    forms.table.cache_clear()
    forms.automatic.cache_clear()
    return str(path)


def _compact(text: str) -> str:
    """JSON with each innermost list on one line, so that a diff shows one measurement per line."""
    return re.sub(r"\[[^\[\]{}]*\]", lambda match: " ".join(match[0].split()).replace("[ ", "[").replace(" ]", "]"), text)


def _processor() -> str:
    """Model and number of cores of this machine's CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
