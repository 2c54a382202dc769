"""Learning rates that `jaxseq sweep` found: rates.json beside this file is its sweep.json.

    config.train.update(swept("mamba"))
"""

import json
from importlib import resources
from typing import Any

TABLE = resources.files(__package__).joinpath("rates.json")


def swept(name: str) -> dict[str, Any]:
    """The fields of config.train that are an architecture's learning rate, for the width that it was swept at.

    Other widths get theirs by the rule of `jaxseq.config.scaled`. Raises KeyError for an architecture that the table lacks.
    """
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    entry = table["architectures"][name]
    if not entry["bracketed"]:
        raise ValueError(f"{name}: the sweep in {TABLE} has no worse rate on both sides of its best, {entry['lr']}")
    return {"lr": entry["lr"], "lr_width": entry["width"], "lr_source": f"jaxseq sweep --preset={table['preset']}"}
