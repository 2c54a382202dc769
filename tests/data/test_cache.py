"""The token cache stays within its limit, and `jaxseq cache` lists and clears it; `jaxseq bench data`."""

import json
import os
import subprocess
import sys

import pytest
from helpers.data import data_config, texts_of, write_jsonl

from jaxseq import cli, data
from jaxseq.data import cache


def filled(tmp_path, count, **overrides):
    for number in range(count):
        path = write_jsonl(tmp_path / f"{number}.jsonl", [f"{number}", *texts_of([900] * 20)])
        data.corpus(data_config(path=path, cache=str(tmp_path / "cache"), **overrides).data)
        for at, entry in enumerate(cache.entries(tmp_path / "cache")):  # created at the same instant: change the times
            os.utime(entry.path / "meta.json", (at + 1000, at + 1000))
    return [os.path.basename(entry.source) for entry in cache.entries(tmp_path / "cache")]


def test_the_least_recently_used_goes_first(tmp_path, capsys):
    assert filled(tmp_path, 3) == ["0.jsonl", "1.jsonl", "2.jsonl"]
    size = cache.entries(tmp_path / "cache")[0].size
    values = {"cache": str(tmp_path / "cache"), "cache_gb": 3.5 * size / 1e9}
    data.corpus(data_config(path=str(tmp_path / "0.jsonl"), **values).data)  # used again
    assert capsys.readouterr().err == ""
    path = write_jsonl(tmp_path / "3.jsonl", ["3", *texts_of([900] * 20)])
    data.corpus(data_config(path=path, **values).data)
    assert {os.path.basename(entry.source) for entry in cache.entries(tmp_path / "cache")} == {"0.jsonl", "2.jsonl", "3.jsonl"}
    assert "token cache: 1 entries" in capsys.readouterr().err


def test_an_entry_that_is_larger_than_the_limit_is_used_all_the_same(tmp_path):
    assert filled(tmp_path, 2, cache_gb=1e-9) == ["1.jsonl"]


def test_an_entry_whose_arrays_are_damaged_is_made_again(tmp_path):
    filled(tmp_path, 1)
    (entry,) = cache.entries(tmp_path / "cache")
    assert cache.read(entry.path) is not None
    for array in entry.path.glob("*.npy"):
        whole = array.read_bytes()
        array.write_bytes(b"\x93NUMPY\x01\x00\x0a\x00{'descr': (\n" + whole)
        assert cache.read(entry.path) is None
        array.write_bytes(whole)
    assert cache.read(entry.path) is not None


def test_what_is_not_of_the_cache_stays(tmp_path):
    (tmp_path / "cache" / "mine").mkdir(parents=True)
    (tmp_path / "cache" / "mine" / "x").write_text("x")
    (tmp_path / "cache" / ("0" * 32)).mkdir()  # an entry without its meta.json
    assert filled(tmp_path, 1, cache_gb=1e-9) == ["0.jsonl"]
    assert (tmp_path / "cache" / "mine" / "x").exists()


def test_the_command_lists_and_clears(tmp_path, capsys):
    filled(tmp_path, 2)
    assert cli.main(["cache", "tokens", f"--folder={tmp_path / 'cache'}", "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)["tokens"]
    assert [os.path.basename(entry["name"]) for entry in found["entries"]] == ["0.jsonl", "1.jsonl"]
    assert found["bytes"] == sum(entry["bytes"] for entry in found["entries"]) > 0 and "1.jsonl" in shown.err.replace("\n", "")
    assert cli.main(["cache", "tokens", f"--folder={tmp_path / 'cache'}", "--clear"]) == 0
    assert "now removed" in capsys.readouterr().out and cache.entries(tmp_path / "cache") == []
    assert cli.main(["cache", "tokens", f"--folder={tmp_path / 'nothing'}"]) == 0
    assert cli.main(["cache", "x"]) == 2
    assert "there is no cache 'x'; choose one of tokens" in capsys.readouterr().err


def test_bench_data_measures_each_kind(capsys):
    assert cli.main(["bench", "data", "--mb=1", "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)["data"]
    assert [record["kind"] for record in found] == ["text", "jsonl", "zst", "folder"]
    assert all(record["bytes"] >= 1_000_000 and record["peak_bytes"] > record["bytes"] for record in found)
    assert len({record["bytes"] for record in found}) <= 2 and found[2]["disk_bytes"] < found[1]["disk_bytes"]
    assert "peak memory MB" in shown.err


@pytest.mark.parametrize("arguments", [["--mb=0"], ["--mb=1", "--tokenizer=nowhere.json"]])
def test_bench_data_refuses(arguments, capsys):
    assert cli.main(["bench", "data", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_compiled_programs_are_a_cache_of_their_own(tmp_path, capsys):
    folder = tmp_path / "programs"
    compiled = subprocess.run(
        [sys.executable, "-c", "from jaxseq.cli import _programs; _programs.use(); import jax; jax.jit(lambda x: x + 1)(1)"],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                          "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"},
    )  # fmt: skip
    assert compiled.returncode == 0
    (folder / "mine.txt").write_text("not a program")
    assert cli.main(["cache", "programs", f"--folder={folder}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["programs"]
    assert found["bytes"] > 0 and len(found["entries"]) == 1
    assert cli.main(["cache", "programs", f"--folder={folder}", "--clear"]) == 0
    assert [file.name for file in folder.iterdir() if not file.name.startswith(".")] == ["mine.txt"]
