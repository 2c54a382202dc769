"""Every language model of configs/ against every law, at two layers a segment. A new config is picked up without an edit here."""

import functools

import pytest
from helpers.laws import cells, check

import jaxseq
from jaxseq import testing


@functools.cache
def subjects(name: str):
    return [subject for subject in testing.subjects(name) if subject.kind == "model"]


@pytest.mark.parametrize("name, law", cells("configs", jaxseq.names(), testing.LAWS["model"]))
def test_law(name, law, record_property):
    for subject in subjects(name):
        check(record_property, subject, law)
