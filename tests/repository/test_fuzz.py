"""Fuzzing of files and configs: each case succeeds or raises a UserError of one line, quickly and without much memory. The
default run has 50 fixed cases of each of four kinds; slow tests have 500 others, new each time. A case is determined by its
seed, which failures name. (hypothesis also samples constants of modules that happen to be loaded, even with derandomize=True.)"""

import contextlib
import gzip
import io
import json
import lzma
import random
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

import jaxseq
from jaxseq import UserError, convert, data, registry
from jaxseq.config import from_dict, to_dict
from jaxseq.convert import _files
from jaxseq.data import labelled
from jaxseq.train.workdirs import saved_config

SECONDS, GROWTH = 60, 1 << 30  # maximum seconds of a case; maximum growth in bytes of the process over all cases
ORDINARY = 50
NUMBERS = [0, -1, 1, 2**31, -(2**31), 2**63, 10**30, 0.5, -0.0, 1e300, 5e-324, float("nan"), float("inf"), -float("inf")]
TEXTS = ["", " ", "none", "true", "1e999", "../x", "{}", "\0", "\ud800", "\N{GREEK SMALL LETTER ALPHA}" * 99]
COUNTS = [pytest.param(ORDINARY, id="some"), pytest.param(500, id="many", marks=pytest.mark.slow)]


class Draw(random.Random):
    """Random values for fuzzing, determined by a seed."""

    def value(self, depth: int = 2):
        """A JSON value; most have only a few elements."""
        kind = self.choice(["plain", "plain", "list", "object"]) if depth else "plain"
        if kind == "list":
            return [self.value(depth - 1) for _ in range(self.randrange(4))]
        if kind == "object":
            return {self.text(): self.value(depth - 1) for _ in range(self.randrange(4))}
        return self.choice([None, self.random() < 0.5, self.choice(NUMBERS), self.randrange(-9, 999), self.random(), self.text()])

    def text(self) -> str:
        return self.choice(TEXTS) if self.random() < 0.2 else "".join(map(chr, self.choices(range(0xD800), k=self.randrange(8))))

    def edits(self) -> list[tuple[str, float, bytes]]:
        """Arguments of `edited`."""
        kinds = ["flip", "cut", "insert", "remove", "repeat"]
        return [(self.choice(kinds), self.random(), self.randbytes(self.randint(1, 9))) for _ in range(self.randint(1, 4))]


def cases(count: int):
    """Decorator that runs a function of one case `count` times, immediately."""

    def run(case):
        first = 0 if count == ORDINARY else random.SystemRandom().randrange(1 << 32)
        for seed in range(first, first + count):
            try:
                case(Draw(seed))
            except Exception as error:
                error.add_note(f"the case of seed {seed}")
                raise

    return run


@pytest.fixture(autouse=True)
def small():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GROWTH


@contextlib.contextmanager
def refused_at_most():
    """The body must succeed, or raise a UserError of one line, within SECONDS."""

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


def edited(content: bytes, edits) -> bytes:
    """`content` after some edits, each at a position given as a fraction of its length."""
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


def replaced(content, draw: Draw):
    """A copy of some JSON with one value replaced."""
    *path, last = draw.choice(places(content)[1:])
    content = place = json.loads(json.dumps(content))
    for key in path:
        place = place[key]
    place[last] = draw.value()
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
    @cases(count)
    def case(draw):
        source, kind = FILES / "published" / draw.choice(FAMILIES), draw.choice(["file", "header", "config"])
        if kind == "file":
            whole = draw.choice(weights)
            path = tmp_path / whole.name
            path.write_bytes(edited(whole.read_bytes(), draw.edits()))
        else:
            path = tmp_path / "folder"
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
            config, content = (source / "config.json").read_bytes(), (source / "model.safetensors").read_bytes()
            size = 8 + int.from_bytes(content[:8], "little")
            if kind == "header":
                header = json.dumps(replaced(json.loads(content[8:size]), draw)).encode()
                content = len(header).to_bytes(8, "little") + header + content[size:]
            else:
                config = json.dumps(replaced(json.loads(config), draw)).encode()
            (path / "config.json").write_bytes(config)
            (path / "model.safetensors").write_bytes(content)
        with refused_at_most():
            convert.open_model(path)


CONFIGS = registry.names("configs")


@pytest.mark.parametrize("count", COUNTS)
def test_configs(count, tmp_path):
    plain = {name: to_dict(jaxseq.config(name)) for name in CONFIGS}

    @cases(count)
    def case(draw):
        config = plain[draw.choice(CONFIGS)]
        if draw.random() < 0.5:
            (tmp_path / "config.json").write_bytes(edited(json.dumps(config).encode(), draw.edits()))
            with refused_at_most():
                saved_config(tmp_path)
        else:
            with refused_at_most():
                jaxseq.build(from_dict(replaced(config, draw)))


TOKENIZERS = sorted(path for path in FILES.glob("tokenizers/*.json") if path.stem != "ids")


@pytest.mark.parametrize("count", COUNTS)
def test_tokenizers(count, tmp_path):
    files = [path.read_bytes() for path in TOKENIZERS]
    world = "".join(f"{i + 1} {bytes([i])!r} 1\n" for i in range(256)).encode()

    @cases(count)
    def case(draw):
        content = draw.choice([world, *files])
        path = tmp_path / ("vocab.txt" if content is world else "tokenizer.json")
        if content is world or draw.random() < 0.5:
            path.write_bytes(edited(content, draw.edits()))
        else:
            path.write_text(json.dumps(replaced(json.loads(content), draw)))
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

    @cases(count)
    def case(draw):
        (name, content), edits = draw.choice(files), draw.edits()
        inside, whole = draw.random() < 0.5, draw.random() < 0.5
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
        values = mixture | {"skip_records": draw.randrange(4), "validation_every": 2}
        config = data_config(path=str(folder if whole else folder / name), **values)
        with refused_at_most():
            if name.endswith(".npz"):
                labelled.images(config.data, None)
            else:
                data.corpus(config.data)
