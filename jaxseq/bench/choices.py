"""Which form "auto" takes: chosen from the records of `jaxseq bench ops`, and kept in `jaxseq/ops/_auto.json`."""

import json
import re
from collections.abc import Sequence
from importlib import resources

from jaxseq import forms
from jaxseq.errors import UserError

FIGURES, NOISE = "time, form, forward ms, training ms", "time, noise forward, noise training"  # keys of the measurements


def choices(records: Sequence[dict], dtype: str, size: str) -> dict[str, list[list]]:
    """{"train DTYPE SIZE": …, "prefill DTYPE SIZE": …}, see `choose`."""
    kinds = {"train": "training", "prefill": "forward"}
    return {forms.key(purpose, dtype, size): choose(records, kind) for purpose, kind in kinds.items()}


def choose(records: Sequence[dict], kind: str) -> list[list]:
    """[[longest T, form], …] ascending: at each T the form with the least time of this kind, where that of the chunkwise
    form is less by its noise. Equal neighbours are merged."""
    rows: list[list] = []
    for length in sorted({r["time"] for r in records}):
        timed = [r for r in records if r["time"] == length and kind in r and "peer" not in r]
        if not timed:
            continue
        best = min(timed, key=lambda r: r[kind] * (1 - r.get(f"noise_{kind}", 0)))["form"]
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
        for size, shapes in result["shapes"][op].items():
            timed = [r for r in result["records"] if (r["op"], r["size"]) == (op, size) and "training" in r]
            noise = [r for r in timed if "noise_training" in r]
            figures = about | shapes | {
                FIGURES: [[r["time"], r["form"], round(r["forward"], 3), round(r["training"], 3)] for r in timed],
                NOISE: [[r["time"], round(r["noise_forward"], 4), round(r["noise_training"], 4)] for r in noise],
            }
            measured[op] = measured.get(op, {}) | {f"{dtype} {size}": figures}
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
