"""gs:// workdirs: like local ones, also if killed and resumed; locks; damage; other schemes are refused."""

import importlib.util
import json
import logging
import signal
import time

import jax
import numpy as np
import pytest
from helpers import fake_results
from helpers.bucket import NAME, served
from helpers.train_tiny import finish, launch, tiny, write_documents
from tensorboardX.proto.event_pb2 import Event

import jaxseq
from jaxseq import paths
from jaxseq.cli import main
from jaxseq.errors import UserError
from jaxseq.train import load, locks, metrics, train


def _installed(name: str) -> bool:
    """Without importing it, because gcsfs reads its environment at import."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(scope="module")
def bucket():
    """gs://bucket on an emulator in this process."""
    missing = [name for name in ("gcsfs", "google.cloud", "gcp_storage_emulator") if not _installed(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install 'jaxseq[gcs]' gcp-storage-emulator")
    with served():
        yield f"gs://{NAME}"


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return write_documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="module")
def config(documents, tmp_path_factory):
    """With a tokenizer file, which is copied into the workdir."""
    out = tmp_path_factory.mktemp("tokenizer") / "bpe.json"
    assert main(["tokenizer", f"--config.data.path={documents}", "--vocab=270", f"--out={out}"]) == 0
    more = {"model.vocab": None, "data.tokenizer": str(out), "train.checkpoint_every": 2, "train.steps": 8, "train.keep": 3}
    return tiny(documents, **more)


@pytest.fixture(scope="module")
def killed(bucket, config):
    """A run in the bucket that was killed after its fourth record and restarted."""
    workdir = f"{bucket}/runs/killed"
    process = launch(config, workdir)
    for line in process.stdout:
        if int(line) >= 4:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert paths.of(f"{workdir}/.lock").exists(), "nobody had the time to remove it"
    finish(launch(config, workdir), seconds=600)
    return workdir


def test_a_run_killed_in_a_bucket_goes_on_and_is_a_local_run(killed, config, tmp_path):
    train(config, tmp_path / "local", devices=jax.devices()[:1])
    got, wanted = metrics.read(killed), metrics.read(tmp_path / "local")
    assert [row["step"] for row in got] == list(range(1, 9))
    assert [row["loss"] for row in got] == [row["loss"] for row in wanted]
    assert got[-1]["validation_bits_per_byte"] == wanted[-1]["validation_bits_per_byte"]
    for one, other in zip(*(jax.tree.leaves(load(where)[1]) for where in (killed, tmp_path / "local")), strict=True):
        np.testing.assert_array_equal(one, other)
    names = set(paths.files(killed))
    assert {"config.json", "metrics.jsonl", "tokenizer.json"} < names and not [name for name in names if name.startswith(".")]
    assert {name.split("/")[1] for name in names if name.startswith("checkpoints")} == {"4", "6", "8"}


def _events(workdir):
    """The events of all TensorBoard files of a workdir, parsed as TensorBoard does: length, checksum, record, checksum."""
    for name in sorted(name for name in paths.files(workdir) if name.startswith("events.")):
        data = (paths.of(workdir) / name).read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def test_tensorboards_events_lie_in_the_bucket_too(killed):
    found = {(value.tag, event.step) for event in _events(killed) for value in event.summary.value}
    assert {("train/loss", step) for step in range(1, 9)} | {("validation/bits_per_byte", 8)} <= found


def test_commands_open_what_lies_in_a_bucket(killed, documents, tmp_path, capsys):
    assert main(["eval", f"--workdir={killed}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_byte"] > 0
    assert main(["generate", f"--workdir={killed}", "--prompt=the", "--max_tokens=4", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tokens"][0]) <= 4
    assert main(["export", killed, str(tmp_path / "out"), "--source=hf/llama"]) == 0
    assert (tmp_path / "out" / "model.safetensors").exists() and (tmp_path / "out" / "tokenizer.json").exists()
    assert jaxseq.config(killed).data.tokenizer == f"{killed}/tokenizer.json"
    _, _, tokenizer = jaxseq.load(killed)
    assert tokenizer.decode(tokenizer.encode("the union")) == "the union"
    capsys.readouterr()
    assert main(["train", f"--workdir={killed}", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 8


def test_weights_go_into_a_bucket_and_come_from_it(bucket, killed, config, documents, tmp_path):
    """`import DIR`, train.init and a tokenizer in a bucket."""
    assert main(["export", killed, str(tmp_path / "out"), "--source=hf/llama"]) == 0
    assert main(["import", str(tmp_path / "out"), f"{bucket}/imported"]) == 0
    more = {"model.vocab": None, "train.steps": 1, "train.warmup": 0, "data.tokenizer": f"{killed}/tokenizer.json"}
    tuned = tiny(documents, **more | {"train.init": killed})
    assert train(tuned, f"{bucket}/tuned", devices=jax.devices()[:1], profile=range(1, 2))["step"] == 1
    assert [name for name in paths.files(f"{bucket}/tuned/profile") if name.endswith(".xplane.pb")]
    for name in ("imported", "tuned"):
        assert paths.of(f"{bucket}/{name}/tokenizer.json").exists()
        assert load(f"{bucket}/{name}")[2].data.tokenizer == f"{bucket}/{name}/tokenizer.json"


@pytest.mark.slow
def test_a_damaged_checkpoint_in_a_bucket_is_passed_over_and_put_aside(bucket, config, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("jaxseq"), "propagate", True)
    workdir, one = f"{bucket}/damaged", jax.devices()[:1]
    short = config.copy_and_resolve_references()
    with short.unlocked():
        short.train.steps = 4
    train(short, workdir, devices=one)
    good = load(workdir, 2)[1]
    (largest,) = sorted((blob for blob in paths._client().list_blobs(NAME, prefix="damaged/checkpoints/4/params/d/")),
                        key=lambda blob: blob.size)[-1:]  # fmt: skip
    data = bytearray(largest.download_as_bytes())
    data[len(data) // 2] ^= 1
    paths.write(paths.of(f"gs://{NAME}/{largest.name}"), bytes(data))
    for one_leaf, other in zip(*(jax.tree.leaves(tree) for tree in (load(workdir)[1], good)), strict=True):
        np.testing.assert_array_equal(one_leaf, other)
    assert "checkpoint of step 4 is damaged" in caplog.text and "differs from what was saved" in caplog.text
    largest.delete()
    assert train(config, workdir, devices=one)["step"] == 8
    assert paths.of(f"{workdir}/checkpoints/4.damaged").exists()
    assert [row["step"] for row in metrics.read(workdir)] == list(range(1, 9))


def test_a_folder_in_a_bucket_has_one_training_at_a_time(bucket, monkeypatch, caplog):
    """A running owner keeps the lock. An owner that does not renew it loses it, and gets an error before it writes again."""
    monkeypatch.setattr(logging.getLogger("jaxseq"), "propagate", True)
    monkeypatch.setattr(locks, "BEAT", 0.2)
    monkeypatch.setattr(locks, "PATIENCE", 1.5)
    workdir = paths.of(f"{bucket}/claimed")
    with locks.claimed(workdir) as held:
        told = r"another training run uses gs://\S+ \(process \d+ on \S+ since"
        with pytest.raises(UserError, match=told), locks.claimed(workdir):
            pass
        held()
    assert not (workdir / ".lock").exists()
    monkeypatch.setattr(locks, "BEAT", 60)
    with locks.claimed(workdir) as held:
        with locks.claimed(workdir) as other:
            assert "which is no longer running" in caplog.text
            time.sleep(1)
            with pytest.raises(UserError, match="took over gs:"):
                held()
            other()
        assert not (workdir / ".lock").exists()


def test_a_lock_of_a_process_that_is_dead_here_does_not_count(bucket, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 3600)
    workdir = paths.of(f"{bucket}/left")
    paths.write(workdir / ".lock", json.dumps({"owner": "process 9", "machine": locks.machine(), "process": 1 << 30}))
    with locks.claimed(workdir):
        pass


def test_a_growing_object_is_sent_in_parts_and_none_twice(bucket, monkeypatch):
    path = paths.of(f"{bucket}/grown/lines")
    for piece in (b"one\n", b"two\n", b"three\n"):
        file = paths.appending(path)
        file.write(piece)
        file.flush()
        file.flush()
        file.close()
    assert path.read_bytes() == b"one\ntwo\nthree\n" and [*paths.files(path.parent)] == ["lines"]


def test_a_report_is_written_beside_results_in_a_bucket(bucket):
    paths.write(paths.of(f"{bucket}/compare/results.json"), json.dumps(fake_results.results()))
    assert main(["report", f"--results={bucket}/compare"]) == 0
    assert b"<html" in paths.of(f"{bucket}/compare/report.html").read_bytes()


@pytest.mark.parametrize("name", ["nowhere/run", "bucket", "bucket/", "bucket/a#1"])
def test_a_bucket_that_is_not_there_is_one_line(bucket, documents, name):
    with pytest.raises(UserError, match="gs://"):
        train(tiny(documents), f"gs://{name}")
