"""Times the forms of every op, forward and in training, and compares them with each other and with the machine's limits.

Arguments have the shapes that architectures pass to an op (recorded while a model is traced), those of laptop size or the
smallest published ones, and values sampled from the op's `example`. Every length has the same total number of tokens, like
training batches. Training has two documents in a row, and forward, which chooses for prefill, one. The forms of one op and
length are timed in turns, so that other load on the machine slows all of them alike; figures are medians.

The chunkwise form is timed twice in each round. Another one is chosen only if it is faster by more than these two differ.

The floor is a lower bound that may not be reachable: the operations of the cheapest form at the rate of a large matrix
product, or the bytes of arguments and results at the rate of a copy, whichever takes longer.
"""

import collections
import datetime
import functools
import importlib.metadata
import math
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq import forms, kernels, registry
from jaxseq.bench import choices, peer_ops
from jaxseq.bench.programs import bytes_of
from jaxseq.bench.timing import seconds
from jaxseq.config import config, names
from jaxseq.errors import UserError
from jaxseq.models import build
from jaxseq.train import flops

LENGTHS = (64, 256, 1024, 4096)
TOKENS = {"small": 4096, "large": 1024}  # rows * T
AGAIN = "again"  # the second timing of the chunkwise form in a round
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
    """xs and weights are arrays; `pos_BT` has one document, `packed_BT` documents that begin at 0 and in the middle."""

    xs: tuple
    weights: dict
    pos_BT: jax.Array
    packed_BT: jax.Array


def calls(dtype: str = "float32", size: str = "small") -> dict[str, OpCall]:
    """{op: the most common call by architectures}; models are traced, not run. size: "small" are those of laptop size, "large"
    the smallest published ones, without the calls that are small."""
    counts: dict[str, collections.Counter] = {}

    def seen(name, form, xs, kwargs):
        arrays = {k: v for k, v in kwargs.items() if k not in ("state", "pos") and hasattr(v, "shape")}
        options = {k: v for k, v in kwargs.items() if k not in ("state", "pos") and not hasattr(v, "shape")}
        call = OpCall(
            tuple((x.shape[2:], x.dtype.name) for x in xs),
            tuple((k, v.shape, v.dtype.name) for k, v in arrays.items()),
            tuple(options.items()),
        )
        if size == "small" or forms.size_class(xs[0].shape[2:]) == size:
            counts.setdefault(name, collections.Counter())[call] += 1

    for name in names() if size == "small" else published():
        model = build(config(name, **{"model.dtype": dtype}))
        tokens_BT = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        form = forms.plan("recurrent", seen=seen)
        jax.eval_shape(functools.partial(model.init, form=form), jax.random.key(0), tokens_BT)
    return {name: counter.most_common(1)[0][0] for name, counter in counts.items()}


def published() -> list[str]:
    """The smallest published size of each architecture that has one, such as "gpt2:124m"."""
    sizes = {name: getattr(registry.load("configs", name), "SIZES", {}) for name in names()}
    return [f"{name}:{next(iter(own))}" for name, own in sizes.items() if own]


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
    pos_T = jnp.arange(length, dtype=jnp.int32)
    return Arguments(xs, weights, *(jnp.broadcast_to(pos, (batch, length)) for pos in (pos_T, pos_T % -(-length // 2))))


def functions(form: Callable, options: dict, peer: bool = False) -> dict[str, Callable]:
    """{"forward": y, "training": gradients by inputs and weights} of Arguments. Gradients by integers have dtype float0.

    peer: it is a function of `peer_ops`, which is told whether rows are packed.
    """

    def run(xs, weights, pos_BT, packed=False):
        more = {"packed": packed} if peer else {}
        return form(*xs, **weights, **options, **more, pos=pos_BT)[0]

    def loss(floats, pos_BT):
        y = run(*floats, pos_BT, packed=True)
        return jnp.sum(jnp.square(y.astype(jnp.promote_types(y.dtype, jnp.float32))))

    return {
        "forward": lambda args: run(args.xs, args.weights, args.pos_BT),
        "training": lambda args: jax.grad(loss, allow_int=True)((args.xs, args.weights), args.packed_BT),
    }


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


def measure(
    op: str, call: OpCall, length: int, skip: Sequence[str] = (), rounds: int = 5, dtype: str = "float32", size: str = "small",
    peers: bool = False,
) -> list[dict]:  # fmt: skip
    """One record per form: op, size, time, rows, form, and forward, training, floor_* in milliseconds, or why it was left out.

    The chunkwise form's also has noise_forward and noise_training: by how much it differed from itself, relative to its time.
    peers: also of other libraries' functions; their records have `peer`, true, and no form is chosen by them.
    """
    batch, options = max(1, TOKENS[size] // length), dict(call.options)
    args = arguments(op, call, batch, length)
    candidates = registry.load("ops", op).FORMS | kernels.forms(op)
    theirs = peer_ops.functions(op, args.xs, args.weights, options, dtype) if peers else {}
    records, compiled = {}, {}
    for name, form in (candidates | theirs).items():
        records[name] = {"op": op, "size": size, "time": length, "rows": batch, "form": name}
        records[name] |= {"peer": True} if name in theirs else {}
        if name in skip:
            records[name]["skipped"] = "too slow"
            continue
        programs = {kind: jax.jit(f).lower(args).compile() for kind, f in functions(form, options, name in theirs).items()}
        temporary = max(program.memory_analysis().temp_size_in_bytes for program in programs.values())
        records[name]["temporary_bytes"] = temporary
        if temporary > MEMORY:
            records[name]["skipped"] = "too much memory"
        else:
            compiled[name] = programs
    if "chunkwise" in compiled:
        compiled[AGAIN] = compiled["chunkwise"]
    medians = _in_turns(compiled, args, rounds)
    for kind, second in medians.pop(AGAIN, {}).items():
        records["chunkwise"][f"noise_{kind}"] = abs(second / medians["chunkwise"][kind] - 1)
    for name, found in medians.items():
        records[name] |= {kind: 1e3 * value for kind, value in found.items()}
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
    sizes: Sequence[str] = tuple(TOKENS), peers: bool = False,
) -> dict:  # fmt: skip
    """Times every form of `ops` (default: all) at every length; the result can be written as JSON.

    `progress` is called with the records of each length, `finished` with the result so far after each op. sizes: "small",
    "large" or both; an op that no published size calls with large inputs has only small ones. peers: see `measure`.

    Keys: platform, device, jax, date, dtype, operations_per_second, bytes_per_second, shapes {op: {size: …}}, records, and
    choices {op: {"PURPOSE DTYPE SIZE": [[longest T, form], …]}} for the purposes "train" and "prefill".
    """
    ops = list(ops) or list(registry.names("ops"))
    for op in ops:
        registry.load("ops", op)  # an unknown name is an error before anything is timed
    if wrong := [size for size in sizes if size not in TOKENS]:
        raise UserError(f"there is no size {wrong[0]!r}; choose from: {', '.join(TOKENS)}")
    known = {size: calls(dtype, size) for size in sizes}
    result = about(dtype) | _rates(dtype) | {"shapes": {}, "records": [], "choices": {}}
    for op in ops:
        result["shapes"][op], result["choices"][op] = {}, {}
        for size in sizes:
            call = known[size].get(op) or (example_call(op, dtype) if size == "small" else None)
            if call is None:
                continue
            one = functools.partial(measure, op, call, rounds=rounds, dtype=dtype, size=size, peers=peers)
            records = _lengths(one, lengths, progress)
            about_call = {"inputs": [shape for shape, _ in call.xs], "options": dict(call.options), "tokens": TOKENS[size]}
            result["shapes"][op][size] = about_call
            result["records"] += records
            result["choices"][op] |= choices.choices(records, dtype, size)
        if finished:
            finished(result)
    return result


def _lengths(one: Callable[..., list[dict]], lengths: Sequence[int], progress: Callable | None) -> list[dict]:
    """The records of one op and size at all lengths; one(length, skip) measures at one of them."""
    slow: set[str] = set()
    records: list[dict] = []
    for length in sorted(lengths):
        new = one(length=length, skip=sorted(slow))
        slow |= {r["form"] for r in new if r.get("training", 0) > 1e3 * PATIENCE or "skipped" in r}
        records += new
        if progress:
            progress(new)
    return records


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


def _processor() -> str:
    """Model and number of cores of this machine's CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
