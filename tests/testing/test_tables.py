"""No cell of the printed tables is empty: there is a test for each, and a test that records nothing fails."""

import importlib.util
import subprocess
import sys

import pytest
from helpers.laws import KERNELS, MIXER_OPTIONS
from helpers.places import ROOT

import jaxseq
from jaxseq import kernels, testing
from jaxseq.ops._example import STRESSES
from jaxseq.testing import stress_models


def files(folder: str) -> set[str]:
    return {path.stem for path in (ROOT / folder).glob("[!_]*.py")}


OPS, MIXERS = files("jaxseq/ops"), files("jaxseq/mixers") | set(MIXER_OPTIONS)
WIDE = ("long", "bfloat16")
EXPECTED = {  # {file: {function: the values of its parameters, one set for each}}
    "ops/test_laws.py": {"test_law": (OPS, set(testing.LAWS["op"]) - {"stress"})},
    "ops/test_stress.py": {"test_stress": (OPS, STRESSES), "test_all_cases": (OPS, WIDE)},
    "mixers/test_laws.py": {"test_law": (MIXERS, testing.LAWS["mixer"])},
    "models/test_laws.py": {"test_law": (jaxseq.names(), testing.LAWS["model"])},
    "models/test_stress.py": {"test_stress": (jaxseq.names(), ("hard", *WIDE), stress_models.CASES)},
    "kernels/test_laws.py": {
        "test_law": ({op for op in OPS if kernels.forms(op, "tpu")}, KERNELS["quick"]),
        "test_long_law": ({op for op in OPS if kernels.forms(op, "tpu")}, KERNELS["long"]),
    },
}


def product(*columns) -> set[tuple]:
    return {()} if not columns else {(value, *rest) for value in columns[0] for rest in product(*columns[1:])}


@pytest.mark.parametrize("file", EXPECTED)
def test_every_cell_has_a_test(file):
    spec = importlib.util.spec_from_file_location("_cells", ROOT / "tests" / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, columns in EXPECTED[file].items():
        marks = {mark.name: mark for mark in getattr(module, name).pytestmark}
        assert "cell" in marks and {cell.values for cell in marks["parametrize"].args[1]} == product(*columns)


def test_a_test_that_records_nothing_fails(tmp_path):
    (tmp_path / "test_cells.py").write_text(
        """
import pytest

pytestmark = pytest.mark.cell

def test_recorded(record_property):
    record_property("law", ("op", "split", 0.0))

def test_nothing():
    pass

def test_skipped():
    pytest.skip("no kernel here")
""",
        "utf-8",
    )
    options = ["-c", "/dev/null", "-p", "helpers.cells", "-p", "no:cacheprovider", "-q", "--tb=short"]
    command, places = [sys.executable, "-m", "pytest", *options, str(tmp_path)], {"PYTHONPATH": str(ROOT / "tests")}
    found = subprocess.run(command, capture_output=True, encoding="utf-8", env=places)
    assert found.returncode == 1 and "2 failed, 1 passed" in found.stdout, found.stdout
    assert found.stdout.count("leaves its cell of the table empty") == 2
