"""Measures speed and memory of turning text into tokens on disk, for text, JSON lines, a .zst of them, and a folder.

Each is measured in a separate process, because the peak memory of a process never falls. `python -m jaxseq.data.benchmark
PATH TOKENIZER CACHE` measures one.
"""

import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import zstandard

from jaxseq import data
from jaxseq.config import base
from jaxseq.errors import UserError

FILES = 16  # of the folder


def bench(megabytes: int, tokenizer: str = "byte") -> list[dict]:
    """[{"kind", "bytes" of text, "disk_bytes", "seconds", "bytes_per_second", "peak_bytes"}], for generated text."""
    data.tokenizer(_config("x", tokenizer, None))  # fails early if it cannot be opened
    with tempfile.TemporaryDirectory() as folder:
        made = _make(Path(folder), megabytes * 1_000_000)
        return [{"kind": kind} | _measured(path, tokenizer, folder) for kind, path in made.items()]


def _config(path: str, tokenizer: str, cache: str | None):
    config = base().data
    config.path, config.tokenizer, config.cache = path, tokenizer, cache
    return config


def _make(root: Path, size: int) -> dict[str, Path]:
    """Files that repeat the built-in addresses, each time with another number, up to `size` bytes."""
    addresses = [document.text for document in data.texts(base().data)]
    paths = {"text": root / "x.txt", "jsonl": root / "x.jsonl", "zst": root / "x.jsonl.zst", "folder": root / "folder"}
    paths["folder"].mkdir()
    plain = [(paths["folder"] / f"{i}.txt").open("w", encoding="utf-8") for i in range(FILES)]
    with (
        paths["text"].open("w", encoding="utf-8") as text,
        paths["jsonl"].open("w", encoding="utf-8") as lines,
        zstandard.open(paths["zst"], "wt", encoding="utf-8") as packed,
    ):
        written = number = 0
        while written < size:
            document = f"Address {number}.\n{addresses[number % len(addresses)]}\n\n"
            line = json.dumps({"text": document}, ensure_ascii=False) + "\n"
            for out, content in ((text, document), (plain[number % FILES], document), (lines, line), (packed, line)):
                out.write(content)
            written += len(document)
            number += 1
    for file in plain:
        file.close()
    return paths


def _measured(path: Path, tokenizer: str, folder: str) -> dict:
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        command = [sys.executable, "-m", "jaxseq.data.benchmark", str(path), tokenizer, cache]
        found = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if found.returncode:
        raise UserError(f"reading {path.name} failed ({found.stderr.strip().splitlines()[-1]}); free some disk or memory")
    return json.loads(found.stdout)


def peak() -> int:
    """The peak memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(path: str, tokenizer: str, cache: str) -> dict:
    began = time.perf_counter()
    corpus = data.corpus(_config(path, tokenizer, cache))
    seconds, size = time.perf_counter() - began, corpus.train_bytes + corpus.validation_bytes
    root = Path(path)
    disk = sum(file.stat().st_size for file in ([root] if root.is_file() else root.iterdir()))
    rate = {"seconds": seconds, "bytes_per_second": size / seconds}
    return {"bytes": size, "disk_bytes": disk} | rate | {"peak_bytes": peak()}


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
