"""Artificial rows of `jaxseq improve`, for tests of its verdicts and its report."""

from typing import Any

import numpy as np

CONTEXT = 2048


def entry(shift: float, base: str = "", seeds: int = 1, **more: Any) -> dict[str, Any]:
    """A row whose documents have 2 + shift bits per byte, with a little noise of each seed and document."""
    sizes = np.random.default_rng(0).integers(500, 900, 12)

    def run(seed: int) -> dict[str, Any]:
        noise = np.random.default_rng([seed, round(1e6 * abs(shift))]).normal(0, 1e-3, 12)
        nats = (2 + shift + noise) * sizes * np.log(2)
        documents = [{"id": str(i), "bytes": int(n), "nats": float(x)} for i, (n, x) in enumerate(zip(sizes, nats, strict=True))]
        bits = float(nats.sum() / np.log(2) / sizes.sum())
        return {"seed": seed, "validation": {"bits_per_byte": bits, "documents": documents}}

    first, *others = map(run, range(seeds))
    row = {"base": base, "about": "a <b>row</b>", "scratch": more.pop("scratch", "")}
    return first | {"status": "done", "row": row, "parameters": 10, "repeats": others} | more


def measured(disk: int, seconds: float, state: int, joules: float | None = None) -> dict[str, Any]:
    """The measurements of a row."""
    return {
        "disk_bytes": disk,
        "decode": [{"context": CONTEXT, "seconds_per_token": seconds, "state_bytes": state}],
        "state_bytes": [{"context": CONTEXT, "bytes": state}],
        "decode_energy": [{"context": CONTEXT, "joules_per_token": joules}],
    }
