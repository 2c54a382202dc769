"""A subject of each kind compiled as users' programs are: the other tests of the laws leave most optimisations out."""

import pytest

import jaxseq
from jaxseq import registry, testing


def op():
    return testing.subjects(registry.load("ops", "retention"))[0]


def mixer():
    return testing.subjects(registry.load_class("mixers", "retention")(width=16, layers=2))[0]


def model():
    config = jaxseq.config("minlstm", **{"model.stack": "2*(minlstm)", "model.width": 16, "model.vocab": 11})
    return testing.subjects(jaxseq.build(config))[0]


@pytest.mark.parametrize("make", [op, mixer, model])
def test_gradients_of_all_forms(make):
    subject = make()
    subject.quick = False
    testing.check_law(subject, "gradient")
