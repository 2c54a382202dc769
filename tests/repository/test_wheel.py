"""A wheel contains every file of the package, including new folders, templates and tables."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from helpers.places import ROOT

FILES = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def files(folder: str, inside: str) -> set[str]:
    found = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {f"{inside}/{path.relative_to(ROOT / folder).as_posix()}" for path in found}


def test_a_wheel_holds_the_whole_package(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    source.mkdir()
    for name in FILES:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    for folder in ("jaxseq", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools.build_meta import build_wheel; build_wheel('wheel')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "wheel").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = files("jaxseq", "jaxseq") | files("configs", "jaxseq/configs")
    assert wanted <= names, f"the wheel lacks {sorted(wanted - names)}; see setup.py and package_data in setup.cfg"
    extra = {name for name in names - wanted if ".dist-info/" not in name}
    assert not extra, f"the wheel holds {sorted(extra)} besides"
    assert any(name.endswith("entry_points.txt") for name in names)
