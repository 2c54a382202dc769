"""Every mixer against every law, at a small width and its own defaults. A new mixer file is picked up without an edit here."""

import functools

import pytest
from helpers.laws import cells, check

from jaxseq import registry, testing


@functools.cache
def subject(name: str):
    return testing.subjects(registry.load_class("mixers", name)(width=16, layers=2))[0]


@pytest.mark.parametrize("name, law", cells("mixers", registry.names("mixers"), testing.LAWS["mixer"]))
def test_law(name, law, record_property):
    check(record_property, subject(name), law)
