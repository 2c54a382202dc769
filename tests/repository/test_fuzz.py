"""Files and configs that nobody would write: each ends well or in one line of UserError, soon, and without much memory.

50 cases of each of four kinds in the ordinary run, the same ones every time; 500 others, new each time, in `slow`.
"""

import contextlib
import gzip
import io
import json
import lzma
import resource
import shutil
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zstandard
from helpers.data import data_config
from helpers.places import FILES
from helpers.torch_file import state_dict
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import jaxseq
from jaxseq import UserError, convert, data, registry
from jaxseq.config import from_dict, to_dict
from jaxseq.convert import _files
from jaxseq.data import labelled
from jaxseq.train.workdirs import saved_config

SECONDS, GROWTH = 60, 1 << 30  # that a case may take; bytes that the process may grow by in all of them
COUNTS = [pytest.param(50, id="some"), pytest.param(500, id="many", marks=pytest.mark.slow)]


def cases(count: int, **strategies):
    """Decorates a function of one case: it is run `count` times, here and now."""

    def run(case):
        quick = settings(
            max_examples=count, derandomize=count == 50, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        quick(given(**strategies)(case))()

    return run


@pytest.fixture(autouse=True)
def small():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GROWTH


@contextlib.contextmanager
def refused_at_most():
    """What happens within it ends well, or in a UserError of one line, within SECONDS."""

    def late(number, frame):
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    except UserError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 3000, str(error)[:3000]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, 1e300, 0.5])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "remove", "repeat"]), st.floats(0, 1), st.binary(min_size=1, max_size=9)),
    min_size=1, max_size=4,
)  # fmt: skip


def edited(content: bytes, edits) -> bytes:
    """`content` after some edits, each at a place that is a fraction of its length."""
    for kind, where, extra in edits:
        at = int(where * len(content))
        before, after = content[:at], content[at:]
        if kind == "flip":
            content = before + bytes(a ^ b for a, b in zip(after, extra, strict=False)) + after[len(extra) :]
        elif kind == "cut":
            content = before
        elif kind == "insert":
            content = before + extra + after
        elif kind == "remove":
            content = before + after[len(extra) :]
        else:
            content = before + after[:64] * extra[0] + after
    return content


def places(content, path=()) -> list[tuple]:
    """The paths of all values of some JSON."""
    inner = content.items() if isinstance(content, dict) else enumerate(content[:8]) if isinstance(content, list) else ()
    return [path, *[place for key, value in inner for place in places(value, (*path, key))]]


def replaced(content, where: float, value):
    """A copy of some JSON with another value at one place."""
    paths = places(content)
    *path, last = paths[1 + int(where * (len(paths) - 2))]
    content = place = json.loads(json.dumps(content))
    for key in path:
        place = place[key]
    place[last] = value
    return content


FAMILIES = sorted(path.parent.name for path in FILES.glob("published/*/model.safetensors"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> list[Path]:
    """A small file of each format."""
    folder = tmp_path_factory.mktemp("weights")
    arrays = {name: np.asarray(array, np.float32) for name, array in _files.read(FILES / "published" / "llama")[1].items()}
    np.savez(folder / "a.npz", **arrays)
    state_dict(folder / "a.pth", arrays)
    shutil.copy(FILES / "published" / "llama" / "model.safetensors", folder / "a.safetensors")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("count", COUNTS)
def test_weights(count, weights, tmp_path):
    @cases(count, which=st.integers(0, len(weights) - 1), edits=EDITS, family=st.sampled_from(FAMILIES), where=st.floats(0, 1),
           value=VALUES, kind=st.sampled_from(["file", "header", "config"]))  # fmt: skip
    def case(which, edits, family, where, value, kind):
        source = FILES / "published" / family
        if kind == "file":
            path = tmp_path / weights[which].name
            path.write_bytes(edited(weights[which].read_bytes(), edits))
        else:
            path = tmp_path / "folder"
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
            config, content = (source / "config.json").read_bytes(), (source / "model.safetensors").read_bytes()
            size = 8 + int.from_bytes(content[:8], "little")
            if kind == "header":
                header = json.dumps(replaced(json.loads(content[8:size]), where, value)).encode()
                content = len(header).to_bytes(8, "little") + header + content[size:]
            else:
                config = json.dumps(replaced(json.loads(config), where, value)).encode()
            (path / "config.json").write_bytes(config)
            (path / "model.safetensors").write_bytes(content)
        with refused_at_most():
            convert.open_model(path)


CONFIGS = registry.names("configs")


@pytest.mark.parametrize("count", COUNTS)
def test_configs(count, tmp_path):
    plain = {name: to_dict(jaxseq.config(name)) for name in CONFIGS}

    @cases(count, name=st.sampled_from(CONFIGS), where=st.floats(0, 1), value=VALUES, edits=EDITS, kind=st.booleans())
    def case(name, where, value, edits, kind):
        if kind:
            (tmp_path / "config.json").write_bytes(edited(json.dumps(plain[name]).encode(), edits))
            with refused_at_most():
                saved_config(tmp_path)
        else:
            with refused_at_most():
                jaxseq.build(from_dict(replaced(plain[name], where, value)))


TOKENIZERS = sorted(path for path in FILES.glob("tokenizers/*.json") if path.stem != "ids")


@pytest.mark.parametrize("count", COUNTS)
def test_tokenizers(count, tmp_path):
    files = [path.read_bytes() for path in TOKENIZERS]
    world = "".join(f"{i + 1} {bytes([i])!r} 1\n" for i in range(256)).encode()

    @cases(count, which=st.integers(0, len(files)), where=st.floats(0, 1), value=VALUES, edits=EDITS, kind=st.booleans())
    def case(which, where, value, edits, kind):
        if which == len(files):
            path, content = tmp_path / "vocab.txt", edited(world, edits)
        else:
            path, content = tmp_path / "tokenizer.json", files[which]
            content = edited(content, edits) if kind else json.dumps(replaced(json.loads(content), where, value)).encode()
        path.write_bytes(content)
        with refused_at_most():
            tokenizer = data.tokenizer(data_config(tokenizer=str(path)).data)
            tokenizer.decode(tokenizer.encode("The state, é, of the union.\n"))


def corpora(folder: Path) -> list[Path]:
    """A small file of each kind."""
    records = [{"id": n, "text": f"document {n}", "label": n % 2} for n in range(6)]
    lines = "\n".join(map(json.dumps, records)).encode()
    arrays = io.BytesIO()
    np.savez(arrays, images=np.zeros((4, 2, 2, 3), np.uint8), labels=np.arange(4))
    content = {
        "a.txt": b"one\n\ntwo<|endoftext|>three\nfour", "a.jsonl": lines, "a.json": json.dumps(records).encode(),
        "a.csv": b'n,text\n1,"one, two"\n2,three\n3,"four\nfive"\n', "a.tsv": b"n\ttext\n1\tone\n2\ttwo\n",
        "a.fa": b">one\nACGT\nACGN\n>two\nTTGA\n", "a.jsonl.gz": gzip.compress(lines), "a.txt.xz": lzma.compress(b"text " * 50),
        "a.jsonl.zst": zstandard.compress(lines), "wide.txt": "one two three".encode("utf-16"), "a.npz": arrays.getvalue(),
        "mixture.json": json.dumps({"a": {"path": "a.jsonl", "weight": 2}}).encode(),
        "a.bin": np.arange(9, dtype="<u2").tobytes(),
    }  # fmt: skip
    with contextlib.suppress(ImportError):
        import pyarrow
        from pyarrow import ipc, parquet

        table = pyarrow.Table.from_pylist(records)
        parquet.write_table(table, folder / "a.parquet")
        with ipc.new_stream(str(folder / "a.arrow"), table.schema) as stream:
            stream.write_table(table)
    for name, value in content.items():
        (folder / name).write_bytes(value)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("count", COUNTS)
def test_data(count, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxseq.data.files.say", lambda line: None)
    (tmp_path / "whole").mkdir()
    files = [(path.name, path.read_bytes()) for path in corpora(tmp_path / "whole")]

    @cases(count, which=st.integers(0, len(files) - 1), edits=EDITS, skip=st.integers(0, 3), inside=st.booleans(),
           whole=st.booleans())  # fmt: skip
    def case(which, edits, skip, inside, whole):
        name, content = files[which]
        folder = tmp_path / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(tmp_path / "whole" / "a.jsonl", folder)
        if name.endswith(".npz") and inside:  # an array in a zip that is whole
            with zipfile.ZipFile(tmp_path / "whole" / name) as old, zipfile.ZipFile(folder / name, "w") as new:
                for member in old.namelist():
                    new.writestr(member, edited(old.read(member), edits))
        elif name.endswith(".gz") and inside:
            (folder / name).write_bytes(gzip.compress(edited(gzip.decompress(content), edits)))
        else:
            (folder / name).write_bytes(edited(content, edits))
        mixture = {"source": "mixture"} if name == "mixture.json" else {}
        config = data_config(path=str(folder if whole else folder / name), skip_records=skip, validation_every=2, **mixture)
        with refused_at_most():
            if name.endswith(".npz"):
                labelled.images(config.data, None)
            else:
                data.corpus(config.data)
