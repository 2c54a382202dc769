"""Importing a sharded checkpoint needs little more memory than the model: of 0.4 GB, and of 1 GB as a slow test."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxseq.convert import _files
from jaxseq.convert.sources import hf_llama

PEAK = """
import re, sys
from jaxseq.cli import main
assert main(["import", *sys.argv[1:]]) == 0
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""


def config(width, layers, vocab):
    return dict(
        model_type="llama", vocab_size=vocab, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=8, rms_norm_eps=1e-5, tie_word_embeddings=True,
    )  # fmt: skip


def checkpoint(folder, theirs, shards):
    """Bytes of the checkpoint, and of the largest array of the imported model."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(theirs))
    width, vocab, hidden = theirs["hidden_size"], theirs["vocab_size"], theirs["intermediate_size"]
    rng, weight_map, total, largest = np.random.default_rng(0), {}, 0, 4 * width * vocab
    kinds = {"embed": (vocab, width), "gate": (hidden, width), "up": (hidden, width), "down": (width, hidden)}
    parts: list[dict] = [{} for _ in range(shards)]
    for entry in hf_llama.entries(theirs):
        for row, names in entry.rows():
            name = names[0]
            shape = next((s for kind, s in kinds.items() if kind in name), (width,) if "norm" in name else (width, width))
            parts[(row or 0) % shards][name] = rng.random(shape, np.float32)
            total += 4 * int(np.prod(shape))
            largest = max(largest, 4 * int(np.prod(shape)) * theirs["num_hidden_layers"] if row is not None else 0)
    for i, part in enumerate(parts):
        save_file(part, folder / f"{i}.safetensors")
        weight_map |= dict.fromkeys(part, f"{i}.safetensors")
    (folder / _files.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return total, largest


def peak(*words) -> int:
    done = subprocess.run([sys.executable, "-c", PEAK, *map(str, words)], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from Linux's /proc")
@pytest.mark.parametrize("layers, size", [(4, 0.4e9), pytest.param(14, 1e9, marks=pytest.mark.slow)])
def test_peak(layers, size, tmp_path):
    checkpoint(tmp_path / "tiny", config(64, 1, 64), 1)
    total, largest = checkpoint(tmp_path / "large", config(1024, layers, 32768), 4)
    assert total > size
    floor = peak(tmp_path / "tiny", tmp_path / "a")
    above = peak(tmp_path / "large", tmp_path / "b") - floor
    assert above < total + 1.2 * largest, f"{above / 2**20:.0f} MiB above a tiny import, of {total / 2**20:.0f} MiB"
