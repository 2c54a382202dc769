"""Adapters in the layout of PEFT: adapter_config.json and adapter_model.safetensors, which change a base model of a source."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxseq import paths, weights
from jaxseq.convert._table import Entry
from jaxseq.errors import UserError
from jaxseq.plain_files import json_text
from jaxseq.weights import Adapted


def write(folder: Path, entries: Sequence[Entry], params: Any) -> None:
    """Writes the adapters among `params`, for the tensors that `entries` map them to. Raises UserError for other adapters."""
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray] = {}
    modules, transposed, last = set(), set(), None
    for node, entry, row, name in _adapted(entries, params):
        inputs, outputs, swapped = _order(entry, node, row, name)
        a, b = (np.asarray(x if row is None else x[row]) for x in (node.a, node.b))
        key = f"base_model.model.{name.removesuffix('.weight')}"
        rank = a.shape[-1]
        tensors[f"{key}.lora_A.weight"] = np.ascontiguousarray(a.reshape(-1, rank)[inputs].T)
        tensors[f"{key}.lora_B.weight"] = np.ascontiguousarray(b.reshape(rank, -1)[:, outputs].T)
        if node.magnitude is not None:
            m = np.asarray(node.magnitude if row is None else node.magnitude[row]).reshape(-1)
            tensors[f"{key}.lora_magnitude_vector"] = np.ascontiguousarray(m[outputs])
        modules.add(name.removesuffix(".weight").rpartition(".")[2])
        transposed.add(swapped)
        last = node
    if last is None:
        raise UserError("these weights have no adapters; train them with --config.train.lora_rank, or export without --adapter")
    rank = last.a.shape[-1]
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": last.scale * rank, "bias": "none",
        "use_dora": last.magnitude is not None, "target_modules": sorted(modules), "fan_in_fan_out": transposed == {True},
        "inference_mode": True, "base_model_name_or_path": None,
    }  # fmt: skip
    paths.make_folder(folder, str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json_text(config, indent=2) + "\n", encoding="utf-8")


def _adapted(entries: Sequence[Entry], params: Any) -> Iterator[tuple[Adapted, Entry, int | None, str]]:
    """(adapter, its entry, layer or None, their name of the matrix) for all matrices with an adapter."""
    nodes = jax.tree_util.tree_leaves_with_path(params, is_leaf=weights.is_weight)
    found = {weights.path_of(keys): node for keys, node in nodes if isinstance(node, Adapted)}
    for entry in entries:
        if not set(entry.ours) & found.keys():
            continue
        if len(entry.ours) > 1 or len(entry.theirs) > 1:
            fused = f"{', '.join(entry.ours)} are {', '.join(entry.theirs)} there"
            raise UserError(f"PEFT cannot hold these adapters, because {fused}; export without --adapter, which merges them")
        for row, names in entry.rows():
            yield found[entry.ours[0]], entry, row, names[0]


def _order(entry: Entry, node: Adapted, row: int | None, name: str) -> tuple[np.ndarray, np.ndarray, bool]:
    """(our input of each of theirs, our output of each of theirs, whether their matrix is [inputs, outputs]).

    Found by converting a matrix that contains the input numbers, and one that contains the output numbers.
    """
    lead = 0 if row is None else 1
    ins, outs = node.a.shape[lead:-1], node.b.shape[lead + 1 :]
    number_I, number_O = np.arange(np.prod(ins)), np.arange(np.prod(outs))
    both_IO = number_I[:, None] + 0 * number_O, number_O + 0 * number_I[:, None]
    input_, output = (entry.backward(x.reshape(*ins, *outs).astype(np.float64))[0] for x in both_IO)
    if input_.ndim == 2:
        swapped = input_.shape[1] > 1 and (input_[:, :1] == input_).all()
        inputs, outputs = (input_[:, 0], output[0]) if swapped else (input_[0], output[:, 0])
        if np.array_equal(np.sort(inputs), number_I) and np.array_equal(np.sort(outputs), number_O):
            return inputs.astype(int), outputs.astype(int), bool(swapped)
    raise UserError(f"PEFT cannot hold the adapter of {entry.ours[0]}: {name} is another kind of map; export without --adapter")
