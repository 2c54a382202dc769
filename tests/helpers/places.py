"""Where the tests' files and the repository are, whatever folder a test lies in."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
FILES = TESTS / "files"
ROOT = TESTS.parent
