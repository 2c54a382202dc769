"""Every mixer against every law, with a small width and its defaults. New mixer files are found automatically. The
laws `gradient`, `dtype` and `none` hold for the ops, which have all laws; the default run tests them for mixers of each kind, and
mixers with further options for the laws OF_OPTIONS. The others are slow tests."""

import functools

import pytest
from helpers.laws import MIXER_OPTIONS, cells, check

from jaxseq import registry, testing

OF_OPS = {"gradient", "dtype", "none"}
OF_OPTIONS = {"split", "reset", "padding"}
KINDS = {"attention", "hyena", "lstm", "mamba", "mla", "moe", "retention", "rwkv7", "rwkv_channel", "s4", "swiglu", "unireplk"}


@functools.cache
def subject(name: str):
    mixer = registry.load_class("mixers", name.split()[0])
    (found,) = testing.subjects(mixer(width=16, layers=2, **MIXER_OPTIONS.get(name, {})))
    found.name = " ".join([found.name, *name.split()[1:]])
    return found


NAMES = (*registry.names("mixers"), *MIXER_OPTIONS)


def is_slow(name: str, law: str) -> bool:
    return law not in OF_OPTIONS if name in MIXER_OPTIONS else law in OF_OPS and name not in KINDS


CELLS = cells("mixers", NAMES, testing.LAWS["mixer"], slow=is_slow)


@pytest.mark.cell
@pytest.mark.parametrize("name, law", CELLS)
def test_law(name, law, record_property):
    check(record_property, subject(name), law)
