"""Helpers shared by several tests; a helper of a single test file is in that file."""
