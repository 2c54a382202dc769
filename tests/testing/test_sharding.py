"""Eight devices compute the same as one, for ops and models: one of each kind in the default run, the others as slow tests."""

import json
import os
import subprocess
import sys

import pytest
from helpers.compiler import flags

import jaxseq
from jaxseq import registry
from jaxseq.testing import sharding

NAMES = tuple(dict.fromkeys((*registry.names("ops"), *jaxseq.names())))
KINDS = ("attention", "retention", "retnet")


def errors(*names: str) -> dict[str, dict[str, float]]:
    """{name: {sharding: largest error}}, from a process with eight devices."""
    given = {"XLA_FLAGS": flags("--xla_force_host_platform_device_count=8"), "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-m", "jaxseq.testing.sharding", *names]
    done = subprocess.run(words, env=os.environ | given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {line["name"]: line["errors"] for line in map(json.loads, done.stdout.splitlines())}


def expected(name: str) -> set[str]:
    """The shardings that are tested."""
    op = registry.load("ops", name) if name in registry.names("ops") else None
    ways = {"rows", "sequence"} | ({"summaries"} if hasattr(op, "summary") else set()) if op else set()
    return ways | (set(sharding.meshes(name)) if name in jaxseq.names() else set())


def test_one_of_each_kind():
    found = errors(*KINDS)
    assert {name: set(ways) for name, ways in found.items()} == {name: expected(name) for name in KINDS}
    assert "summaries" in found["retention"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in KINDS])
def test_all(name):
    assert set(errors(name)[name]) == expected(name)
