"""The whole recipe on a pod: its three stages on eight devices, and compiled for TPUs."""

import json
import os
import subprocess
import sys

import pytest
from helpers import compiler
from helpers.train_tiny import trained

from jaxseq import cli

RUN = "import sys; from jaxseq import cli; sys.exit(cli.main(sys.argv[1:]))"
WORDS = "--to=mamba2,window:8", "--steps=2,2,2", "--json"


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """(the workdir of the teacher, that of a migration on one device)"""
    teacher = trained(tmp_path_factory.mktemp("teacher"), tmp_path_factory.mktemp("documents"), steps=20)
    out = tmp_path_factory.mktemp("out") / "one"
    assert cli.main(["migrate", f"--workdir={teacher}", f"--out={out}", *WORDS]) == 0
    return teacher, out


def result(words, flags: str) -> dict:
    """What a command prints as JSON in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words], env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_stages_on_eight_devices_give_what_they_give_on_one(one, tmp_path):
    teacher, out = one
    mesh = [f"--config.mesh.{axis}=2" for axis in ("data", "fsdp", "tensor")]
    words = ["migrate", f"--workdir={teacher}", f"--out={tmp_path / 'eight'}", *WORDS, *mesh]
    found = result(words, compiler.devices(8))["stages"]
    wanted = json.loads((out / "migrate.json").read_text())["stages"]
    assert [stage["stage"] for stage in found] == ["start", "matching", "hidden_states", "distillation"]
    assert [stage["bits_per_byte"] for stage in found] == pytest.approx([s["bits_per_byte"] for s in wanted], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stages/matching", "stages/hidden_states", "."])
def test_jaxseq_plan_compiles_each_stage_for_tpus(one, stage):
    pytest.importorskip("libtpu", reason="libtpu is the compiler: pip install libtpu")
    words = ["plan", f"--config={one[1] / stage}", "--what=train", "--json", "--config.train.batch=16"]
    (found,) = result(words, "")["records"]
    assert found["chips"] == 8 and found["mesh"] == {"fsdp": 8} and found["products"] > 0
