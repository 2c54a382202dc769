"""Every language model of configs/ against every law, at two layers a segment. A new config is picked up without an edit here."""

import functools
import re

import pytest
from _laws import cells, check

import jaxseq
from jaxseq import testing


@functools.cache
def subject(name: str):
    stack = re.sub(r"\d+\s*\*", "2*", jaxseq.config(name).model.stack)
    model = jaxseq.build(jaxseq.config(name, **{"model.stack": stack, "model.width": 32, "model.vocab": 11}))
    subject = testing.subjects(model)[0]
    subject.name = name
    return subject


@pytest.mark.parametrize("name, law", cells("configs", jaxseq.names(), testing.LAWS["model"]))
def test_law(name, law, record_property):
    check(record_property, subject(name), law)
