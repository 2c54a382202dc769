"""Every mixer against every law, with a small width and its defaults. New mixer files are found automatically."""

import functools

import pytest
from helpers.laws import MIXER_OPTIONS, cells, check

from jaxseq import registry, testing


@functools.cache
def subject(name: str):
    mixer = registry.load_class("mixers", name.split()[0])
    (found,) = testing.subjects(mixer(width=16, layers=2, **MIXER_OPTIONS.get(name, {})))
    found.name = " ".join([found.name, *name.split()[1:]])
    return found


@pytest.mark.cell
@pytest.mark.parametrize("name, law", cells("mixers", (*registry.names("mixers"), *MIXER_OPTIONS), testing.LAWS["mixer"]))
def test_law(name, law, record_property):
    check(record_property, subject(name), law)
