"""results.json: rewritten atomically after every finished part, so that an interrupted comparison can be resumed."""

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxseq import paths
from jaxseq.errors import UserError

if TYPE_CHECKING:
    from jaxseq.compare.engine import Comparison

SCHEMA = 1
IDENTITY = ("schema", "preset", "seed", "budget", "evaluation", "overrides", "data")  # must agree to resume
ELSEWHERE = ("path",)  # fields of `data` that may differ: the text may have moved; its fingerprint identifies it


class ResultsFile:
    """The file results.json; `results` is its content as plain data."""

    def __init__(self, out: Path):
        self.path = out / "results.json"
        self.results: dict[str, Any] = {}

    def open(self, fresh: dict[str, Any]) -> None:
        """Resumes the comparison in the folder, or starts with `fresh`. Raises UserError if the folder holds another one."""
        if not self.path.exists():
            self.results = fresh
            return
        try:
            self.results = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{self.path} is not JSON ({error}); delete it, or give another --out") from None
        if not isinstance(self.results, dict) or not isinstance(self.results.get("architectures"), dict):
            raise UserError(f"{self.path} is not the results.json of a comparison; delete it, or give another --out")
        keys = IDENTITY
        if self.results.get("preset") != fresh["preset"]:
            keys = ("preset", "seed", "data")  # the rest follows from the preset
        wrong = [text for key in keys for text in _differing(key, self.results.get(key), fresh[key])]
        if wrong:
            raise UserError(
                f"{self.path} belongs to another comparison ({'; '.join(wrong)}); give another --out, "
                f"or delete {self.path.parent} to start over"
            )
        seeds = {*self.results.get("seeds", [self.results["seed"]]), *fresh["seeds"]}
        self.results |= {"command": fresh["command"], "seeds": sorted(seeds)}
        for entry in self.results["architectures"].values():
            entry.setdefault("seed", self.results["seed"])  # older files with one seed do not store it

    def save(self) -> None:
        if not paths.is_remote(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        paths.write(self.path, json.dumps(self.results, indent=1, allow_nan=False) + "\n")


def fresh(comparison: "Comparison", command: str) -> dict[str, Any]:
    """The results before the first part."""
    preset, excerpts, corpus, data = comparison.preset, comparison.excerpts, comparison.corpus, comparison.data
    return {
        "schema": SCHEMA,
        "preset": preset.name,
        "created": datetime.datetime.now(datetime.UTC).astimezone().isoformat(timespec="seconds"),
        "command": command,
        "seed": comparison.seed,
        "seeds": list(comparison.seeds),
        "overrides": {key: str(value) for key, value in comparison.overrides.items() if key != "data.path"},
        "data": {
            "source": data.source,
            "path": data.path,
            "tokenizer": data.tokenizer,
            "train_documents": len(corpus.train),
            "validation_documents": len(corpus.validation),
            "train_bytes": corpus.train_bytes,
            "validation_bytes": corpus.validation_bytes,
            "fingerprint": corpus.fingerprint,
            **({"lossy": corpus.lossy} if corpus.lossy else {}),
        },
        "budget": {
            "parameters": preset.parameters,
            "tokens": preset.steps * preset.batch * preset.length,
            "batch": preset.batch,
            "length": preset.length,
            "steps": preset.steps,
        },
        "evaluation": {
            "documents": excerpts.count,
            "longest": excerpts.cut,
            "tokens": excerpts.tokens,
            "context": preset.length,
        },
        "architectures": {},
        "seconds": {},  # of each part
        "other_programs": {},  # the share of all processors that they used during each part
    }


def _differing(name: str, there: Any, here: Any) -> list[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [key for key in {**there, **here} if key not in ELSEWHERE]
        return [text for key in keys for text in _differing(f"{name}.{key}", there.get(key), here.get(key))]
    return [] if there == here else [f"its {name} is {there}, now {here}"]
