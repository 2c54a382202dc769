"""Paths of the repository and of tests/files, for tests in any folder."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
FILES = TESTS / "files"
ROOT = TESTS.parent
