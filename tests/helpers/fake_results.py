"""Artificial results of `jaxseq compare`, of realistic shape and size, for tests of the report and the verdicts."""

import math
from typing import Any

import numpy as np

NAMES = (
    "transformer",
    "retnet",
    "mamba",
    "mamba2",
    "rwkv4",
    "rwkv7",
    "hyena",
    "griffin",
    "gru",
    "minlstm",
    "h3",
    "mixtral",
    "s4d",
    "rwkv5",
    "rwkv6",
    "stripedhyena",
    "pangu",
    "unireplknet",
    "lstm",
    "sru",
    "gpt2",
    "llama",
    "switch",
    "jamba",
    "samba",
)
TITLES = {
    "transformer": "Transformer: softmax attention and SwiGLU",
    "retnet": "RetNet: retention",
    "mamba": "Mamba: selective scan",
}
QUADRATIC = {"transformer", "mixtral", "gpt2", "llama", "switch", "pangu"}
CONTEXTS = [128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768]
LENGTHS = [256, 512, 1024, 2048, 4096, 8192]
NATS = math.log(2)


def documents(rng: np.random.Generator, bits_per_byte: float, count: int, spread: float = 0.01) -> list[dict[str, Any]]:
    """Documents with fixed ids and sizes; some are harder than others, plus noise of the model."""
    shared = np.random.default_rng(7)
    sizes = shared.integers(9_000, 60_000, count)
    hard = shared.normal(0, 0.08, count)
    own = rng.normal(0, spread, count)
    return [
        {"id": f"{1900 + i} address", "bytes": int(n), "nats": float((bits_per_byte + h + o) * NATS * n)}
        for i, (n, h, o) in enumerate(zip(sizes, hard, own, strict=True))
    ]


def total(found: list[dict[str, Any]]) -> float:
    return sum(d["nats"] for d in found) / NATS / sum(d["bytes"] for d in found)


def architecture(name: str, index: int, tokens: int, count: int, final: float | None = None) -> dict[str, Any]:
    """One finished architecture."""
    rng = np.random.default_rng(index)
    quadratic = name in QUADRATIC
    final = final if final is not None else 2.62 - 0.5 * math.exp(-index / 4) * (index > 0) + 0.03 * (index % 3)
    seconds = 30.0 + 9 * index % 47
    steps = tokens // 2048
    step = np.unique(np.linspace(1, steps, 120).astype(int))
    loss = final + (8.1 - final) * np.exp(-5.5 * (step / steps) ** 0.45) + rng.normal(0, 0.06, len(step))
    state = 65_536 * (1 + index % 4)
    when = [0.1, 0.25, 0.5, 0.75, 1.0]
    points = []
    for share in when:
        value = final + (8.1 - final) * math.exp(-5.5 * share**0.45) - (8.1 - final) * math.exp(-5.5)
        found = documents(rng, value, count)
        points.append(
            {
                "step": int(share * steps),
                "tokens": int(share * tokens),
                "seconds": share * seconds,
                "bits_per_byte": total(found),
                "documents": found,
            }
        )
    decode = [2e-3 * (1 + (c / 2000 if quadratic else 0)) * (1 + 0.05 * index) for c in CONTEXTS]
    return {
        "config": {"model": {"kind": "lm", "stack": f"4*({name} swiglu)", "width": 64}, "train": {"lr": 3e-3}},
        "title": TITLES.get(name, f"{name.capitalize()}: a made-up card"),
        "parameters": 150_000 + 811 * index,
        "lr": 3e-3,
        "lr_source": "twice the Transformer's, towards the paper's §E.2",
        "forms": {name: "chunkwise" if index % 2 else "parallel"},
        "status": "done",
        "curve": [
            {
                "step": int(s),
                "tokens": int(s * 2048),
                "seconds": float(seconds * s / steps),
                "loss": float(x * NATS),
                "bits_per_byte": float(x),
            }
            for s, x in zip(step, loss, strict=True)
        ],
        "evaluations": points,
        "validation": {
            "bits_per_byte": points[-1]["bits_per_byte"],
            "perplexity": 2 ** points[-1]["bits_per_byte"],
            "documents": points[-1]["documents"],
        },
        "compile_seconds": 4.2,
        "train_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "flops_per_token": 9.1e5,
        "state_bytes": [{"context": c, "bytes": c * 512 if quadratic else state} for c in [16, *CONTEXTS]],
        "train_speed": [
            {"length": n, "tokens_per_second": 14_000 / (1 + index / 8) / (1 + (n / 3000 if quadratic else 0))} for n in LENGTHS
        ],
        "train_memory": [
            {"length": n, "bytes": int(9000 * n * (1 + index / 7) + (48 * n * n if quadratic else 0))} for n in LENGTHS
        ],
        "decode": [
            {"context": c, "seconds_per_token": s, "state_bytes": c * 512 if quadratic else state}
            for c, s in zip(CONTEXTS, decode, strict=True)
        ],
        "prefill": [{"length": n, "seconds": n / 40_000 * (1 + (n / 4000 if quadratic else 0.1 * index))} for n in LENGTHS],
        "samples": [
            {
                "prompt": "My fellow Americans, ",
                "text": "the state of the <b>Union</b> & the congress\nof the people shall be.\t\x07 " * 3,
            },
            {"prompt": "The economy", "text": " has been in the last year and the work of our great nation — é ß 你好"},
        ],
    }


def repeat(entry: dict[str, Any], seed: int, spread: float) -> dict[str, Any]:
    """The run of another seed: the first with a common shift and a small shift of each document."""
    rng = np.random.default_rng(1000 * seed + len(entry["title"]))
    shift = rng.normal(0, spread)
    run = {"seed": seed} | {key: entry[key] for key in ("curve", "compile_seconds", "tokens_per_second", "flops_per_token")}
    run |= {"train_seconds": entry["train_seconds"] * (1 + 0.02 * seed), "evaluations": []}
    for point in entry["evaluations"]:
        moved = [d | {"nats": d["nats"] + (shift + rng.normal(0, 0.005)) * NATS * d["bytes"]} for d in point["documents"]]
        run["evaluations"].append(point | {"documents": moved, "bits_per_byte": total(moved)})
    bits = run["evaluations"][-1]["bits_per_byte"]
    return run | {"validation": {"bits_per_byte": bits, "perplexity": 2**bits, "documents": moved}}


def results(
    names: tuple[str, ...] = NAMES[:3], documents_count: int = 12, tokens: int = 250_000, trouble: bool = False, seeds: int = 1,
    spread: float = 0.01,
) -> dict[str, Any]:  # fmt: skip
    """A complete results.json. With `trouble` the last architecture failed, the one before is partial, and one has no costs.
    With several seeds each entry has repeats with bits per byte that differ by `spread`."""
    found = {name: architecture(name, index, tokens, documents_count) for index, name in enumerate(names)}
    for entry in found.values():
        if seeds > 1:
            entry |= {"seed": 0, "repeats": [repeat(entry, seed, spread) for seed in range(1, seeds)]}
    if trouble:
        failed, partial, bare = names[-1], names[-2], names[-3]
        found[failed] = {
            "title": TITLES.get(failed, failed),
            "config": {},
            "status": "failed: RESOURCE_EXHAUSTED <out of memory>",
        }
        found[partial]["status"] = "partial"
        found[partial]["curve"] = found[partial]["curve"][:40]
        found[partial]["evaluations"] = found[partial]["evaluations"][:2]
        for part in ("validation", "train_seconds", "train_speed", "train_memory", "decode", "prefill", "samples", "state_bytes"):
            del found[partial][part]
        for part in ("decode", "prefill", "train_memory"):
            found[bare][part] = found[bare][part][:3]
    markov = []
    for order, value in ((1, 3.55), (2, 2.98), (3, 2.66)):
        scored = documents(np.random.default_rng(order), value, documents_count)
        markov.append({"order": order, "bits_per_byte": total(scored), "documents": scored})
    return {
        "schema": 1,
        "preset": "quick",
        "created": "2025-11-21T21:30:00+00:00",
        "seed": 0,
        "command": f"jaxseq compare --preset=quick --architectures={','.join(names)} --out=compare",
        "machine": {
            "platform": "cpu",
            "device": "cpu",
            "devices": 1,
            "cpu": "AMD EPYC 7B13",
            "cores": 2,
            "memory_bytes": 16 * 2**30,
            "python": "3.11.14",
            "matmul_flops_per_second": 8.4e10,
            "versions": {
                "jax": "0.10.2",
                "jaxlib": "0.10.2",
                "flax": "0.12.8",
                "optax": "0.2.6",
                "numpy": "2.3.4",
                "jaxseq": "0.1.0",
            },
        },
        "data": {
            "source": "sotu",
            "path": None,
            "tokenizer": "byte",
            "train_documents": 231,
            "validation_documents": documents_count,
            "train_bytes": 9_876_543,
            "validation_bytes": 412_345,
        },
        "budget": {"parameters": 150_000, "tokens": tokens, "batch": 8, "length": 256, "steps": tokens // 2048},
        "markov": markov,
        "architectures": found,
        "verdicts": {},
    }
