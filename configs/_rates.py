"""Learning rates found by `jaxseq sweep`; rates.json in this folder is its output file sweep.json.

    config.train.update(swept("mamba"))
"""

import json
from importlib import resources
from typing import Any

TABLE = resources.files(__package__).joinpath("rates.json")


def swept(name: str) -> dict[str, Any]:
    """The fields of config.train for an architecture's learning rate, at the width of the sweep.

    For other widths the rate is scaled by `jaxseq.config.scaled`. Raises KeyError for an architecture that is not in the table,
    and ValueError if the best rate is at the edge of the swept range.
    """
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    entry = table["architectures"][name]
    if not entry["bracketed"]:
        raise ValueError(f"{name}: the sweep in {TABLE} has no worse rate on both sides of its best, {entry['lr']}")
    return {"lr": entry["lr"], "lr_width": entry["width"], "lr_source": f"jaxseq sweep --preset={table['preset']}"}
