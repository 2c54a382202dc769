"""Output folders: made with their parents, or refused in one line."""

import errno
import os
from pathlib import Path

import pytest

from jaxseq import paths
from jaxseq.errors import UserError


def test_a_folder_is_made_with_its_parents(tmp_path):
    for _ in range(2):
        paths.make_folder(tmp_path / "a" / "b", "--out=b")
        assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/a", "file/a/b"):
        with pytest.raises(UserError, match=r"^--out=x is a file or inside a file; choose a folder$"):
            paths.make_folder(tmp_path / name, "--out=x")
    with pytest.raises(UserError, match=r"^--out=x cannot be made \(File name too long\)"):
        paths.make_folder(tmp_path / ("a" * 300), "--out=x")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # a read-only file system, also for root
    with pytest.raises(UserError, match=f"^--out=x cannot be written: {tmp_path} is not writable; choose a folder"):
        paths.check_folder(tmp_path / "a" / "b", "--out=x")


def test_a_full_disk_is_no_fault_of_the_user(tmp_path, monkeypatch):
    def full(*args, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match="No space left"):
        paths.make_folder(tmp_path / "a", "--out=x")
