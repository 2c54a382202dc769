"""The launch scripts with a stub `gcloud` that records its arguments."""

import json
import os
import stat
import subprocess

import pytest
from helpers.places import ROOT

SCRIPTS = ROOT / "scripts"
STUB = """#!/usr/bin/env python3
import json, os, sys
with open(os.environ["CALLS"], "a") as out:
    out.write(json.dumps(sys.argv[1:]) + "\\n")
sys.exit(int(os.environ.get("GCLOUD_STATUS", 0)))
"""


@pytest.fixture
def gcloud(tmp_path, monkeypatch):
    """Puts the stub on PATH; the returned function runs the script and returns its result and the stub's calls."""
    stub = tmp_path / "bin" / "gcloud"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    calls = tmp_path / "calls"
    calls.touch()
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(calls))

    def run(*arguments):
        result = subprocess.run([SCRIPTS / "tpu_vm.sh", *arguments], capture_output=True, text=True, cwd=tmp_path)
        return result, [json.loads(line) for line in calls.read_text().splitlines()]

    return run


WHERE = "--name=demo", "--zone=us-west4-a"


def test_every_action_calls_gcloud_once_in_the_order_given(gcloud):
    result, calls = gcloud(*WHERE, "--spot", "create", "setup", "run", "logs", "delete", "--", "train", "--config=mamba")
    assert result.returncode == 0, result.stderr
    assert [call[:5] for call in calls] == [
        ["compute", "tpus", "tpu-vm", "create", "demo"],
        ["compute", "tpus", "tpu-vm", "scp", calls[1][4]],
        ["compute", "tpus", "tpu-vm", "ssh", "demo"],
        ["compute", "tpus", "tpu-vm", "ssh", "demo"],
        ["compute", "tpus", "tpu-vm", "ssh", "demo"],
        ["compute", "tpus", "tpu-vm", "delete", "demo"],
    ]
    assert all("--zone=us-west4-a" in call for call in calls)
    assert "--spot" in calls[0] and calls[1][4].endswith("jaxseq.tar.gz")
    assert "--worker=all" in calls[2] and "--worker=all" in calls[3] and "--worker=0" in calls[4]
    command = next(word for word in calls[3] if word.startswith("--command="))
    assert "venv/bin/jaxseq train --config=mamba --workdir=runs/tpu" in command and "JAXSEQ_DISTRIBUTED=1" in command


def test_a_dry_run_prints_the_commands_and_calls_nothing(gcloud):
    result, calls = gcloud("--dry-run", *WHERE, "create", "run", "fetch", "--", "train", "--config.data.path=a b.txt")
    assert result.returncode == 0 and calls == []
    lines = result.stdout.splitlines()
    assert lines[0].startswith("gcloud compute tpus tpu-vm create demo --accelerator-type=v5litepod-8")
    assert r"a\\\ b.txt" in lines[1]  # quoted for the remote shell, then for this one
    assert lines[-1].startswith("gcloud compute tpus tpu-vm scp --recurse demo:runs/tpu runs")


def test_a_workdir_in_a_bucket_is_passed_on_and_fetched_from_there(gcloud):
    _, calls = gcloud(*WHERE, "--workdir=gs://bucket/run", "setup", "run", "fetch", "--", "train", "--config=mamba")
    assert any("jaxseq[tpu,gcs]" in word for call in calls for word in call)
    assert any("train --config=mamba --workdir=gs://bucket/run" in word for call in calls for word in call)
    assert calls[-1] == ["storage", "cp", "--recursive", "gs://bucket/run", "runs"]


def test_arguments_with_spaces_and_quotes_reach_the_worker_unchanged(gcloud, tmp_path):
    _, calls = gcloud(*WHERE, "run", "--", "train", "--config.data.path=a b's $HOME.txt")
    command = next(word for word in calls[0] if word.startswith("--command=")).removeprefix("--command=")
    words = command.split("nohup ")[1].split(" >jaxseq.log")[0]
    seen = subprocess.run(["bash", "-c", f"printf '%s\\n' {words}"], capture_output=True, text=True).stdout.splitlines()
    assert seen[2] == "--config.data.path=a b's $HOME.txt"


def test_a_failing_gcloud_stops_the_script(gcloud, monkeypatch):
    monkeypatch.setenv("GCLOUD_STATUS", "7")
    result, calls = gcloud(*WHERE, "create", "delete")
    assert result.returncode == 7 and len(calls) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create"], "--name"),
        (["--name=a", "create"], "--zone"),
        ([*WHERE], "at least one of"),
        ([*WHERE, "destroy"], "destroy"),
        ([*WHERE, "run"], "after --"),
        ([*WHERE, "run", "--", "train", "--workdir=x"], "before the --"),
        ([*WHERE, "--workdir=s3://bucket/run", "fetch"], "gs://bucket/folder"),
        ([*WHERE, "--workdir=gs://bucket", "fetch"], "gs://bucket/folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(gcloud, arguments, words):
    result, calls = gcloud(*arguments)
    assert result.returncode == 2 and calls == []
    assert words in result.stderr and len(result.stderr.splitlines()) == 1
