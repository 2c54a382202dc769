"""The plan of a run: its sizes, FLOPs and memory, reported before the first step."""

import dataclasses
from collections import Counter
from typing import Any

import jax
import psutil
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseq.train.objectives._task import Task
from jaxseq.train.step import Trainer

MEMORY_FIELDS = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes", "generated_code_size_in_bytes")


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """Fields:

    parameters: number of parameters of the model.
    splits: {"train": {"documents", "tokens"}, "validation": {…, "scored"}}; see `Task.sizes`.
    tokenizer, vocab: None if the data are not text.
    tokens: number of training tokens of all steps, with repetition.
    flops, hardware_flops: for these tokens, of the model and as executed (with recomputation).
    memory_bytes, available_bytes: of the compiled step, per device; and free there, None if unknown.
    lowers: config fields that lower the memory.
    mesh: {axis: size}.
    repeated: number of validation documents that are also training documents.
    damaged: number of skipped records, see data.skip_records.
    lossy: what the tokenizer loses of the text, None if nothing; bits per byte are then too low.
    """

    parameters: int
    splits: dict[str, dict[str, int | None]]
    tokenizer: str | None
    vocab: int | None
    steps: int
    tokens: int
    flops: float
    hardware_flops: float
    memory_bytes: int
    available_bytes: int | None
    lowers: tuple[str, ...]
    mesh: dict[str, int]
    devices: str
    repeated: int
    damaged: int = 0
    lossy: str | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """The plan as text: six lines, and one more for each warning."""
        train, held = self.splits["train"], self.splits["validation"]
        scored = f", {held['scored']:,} of them scored (eval.tokens)" if held["scored"] != held["tokens"] else ""
        text = f"{self.tokenizer}, vocabulary {self.vocab:,}" if self.tokenizer else "none"
        passes = f", {self.tokens / train['tokens']:.3g} x the training data" if train["tokens"] else ""
        sizes = " ".join(f"{axis}={size}" for axis, size in self.mesh.items() if size != 1) or "data=1"
        lower = f"; {' or '.join(self.lowers)} lowers it" if self.lowers else ""
        lines = [
            f"model: {self.parameters:,} parameters",
            f"data: {to_train(train)}; {_documents(held)}, {held['tokens']:,} tokens to validate{scored}",
            f"tokenizer: {text}",
            f"training: {self.steps:,} steps, {self.tokens:,} tokens{passes}; {self.flops:.3g} FLOPs of the model, "
            f"{self.hardware_flops:.3g} executed",
            f"memory: {size_of(self.memory_bytes)} on each device for the compiled step{lower}",
            f"mesh: {sizes} on {self.devices}",
        ]
        if self.available_bytes is not None and self.memory_bytes > self.available_bytes:
            fix = f"set {self.lowers[0]}" if self.lowers else "choose a smaller train.batch"
            lines.append(f"warning: that is more memory than the {size_of(self.available_bytes)} free here; {fix}")
        if self.repeated:
            lines.append(
                f"warning: {self.repeated:,} of the {held['documents']:,} validation documents are in the training data too; "
                "their scores are too good"
            )
        if self.lossy:
            lines.append(f"warning: the tokenizer is lossy: {self.lossy}; bits per byte, marked with *, are too low")
        if self.damaged:
            lines.append(f"warning: {self.damaged:,} damaged records are skipped (data.skip_records)")
        return lines


def to_train(sizes: dict[str, Any]) -> str:
    """The training data in words. Streamed data are described by their files, because they are not counted."""
    if sizes["tokens"] is None:
        return (
            f"{sizes['files']:,} file(s) of {size_of(sizes['bytes'])} to train, read while training (data.stream): not counted "
            f"beforehand, and shuffled only within blocks of about {sizes['shuffled']:,} tokens"
        )
    return f"{_documents(sizes)}, {sizes['tokens']:,} tokens to train"


def _documents(sizes: dict[str, Any]) -> str:
    return f"{sizes['documents']:,} document{'' if sizes['documents'] == 1 else 's'}"


def make(
    task: Task, trainer: Trainer, compiled: jax.stages.Compiled, tokens: int, flops_per_token: tuple[float, float],
    available_bytes: int | None,
) -> RunPlan:  # fmt: skip
    """See RunPlan. tokens: of all steps; flops_per_token: of the model, and as executed."""
    config = trainer.config
    tokenizer = getattr(task, "tokenizer", None)
    kinds = Counter(device.device_kind for device in trainer.mesh.devices.flat)
    return RunPlan(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(trainer.abstract.variables["params"])),
        splits=task.sizes(),
        tokenizer=None if tokenizer is None else config.data.tokenizer,
        vocab=None if tokenizer is None else config.model.vocab,
        steps=config.train.steps,
        tokens=tokens,
        flops=float(flops_per_token[0] * tokens),
        hardware_flops=float(flops_per_token[1] * tokens),
        memory_bytes=memory_of(compiled),
        available_bytes=available_bytes,
        lowers=tuple(lowering(config)),
        mesh={axis: int(size) for axis, size in trainer.mesh.shape.items()},
        devices=", ".join(f"{count} x {kind}" for kind, count in kinds.items()),
        repeated=task.repeated(),
        damaged=task.damaged(),
        lossy=task.lossy(),
    )


def memory_of(compiled: jax.stages.Compiled) -> int:
    """Bytes of a compiled program on each device; donated arguments count once. 0 if the backend does not report it."""
    found = compiled.memory_analysis()
    if found is None:
        return 0
    return sum(getattr(found, field) for field in MEMORY_FIELDS) - found.alias_size_in_bytes


def available(mesh: Mesh) -> int | None:
    """Free bytes of each device, None if unknown. Simulated devices of one CPU share its memory equally."""
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        return psutil.virtual_memory().available // len(mesh.local_devices)
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None


def lowering(config: ConfigDict) -> list[str]:
    """Config fields, with values, that lower the memory of a step; the one that costs least time first."""
    train = config.train
    fields = ["model.remat=full"] if config.model.get("remat", "full") != "full" else []
    if train.accumulate < train.batch:
        more = next(n for n in range(train.accumulate + 1, train.batch + 1) if train.batch % n == 0)
        fields.append(f"train.accumulate={more}")
    return fields


def size_of(count: float) -> str:
    """Bytes as text: "1.3 GB"."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:.3g} {units[0]}"
