"""Language models of configs/ against every law, with two layers per segment. New configs are found automatically. Ops and
mixers have their own tests of the laws (tests/ops, tests/mixers). A model adds a way to combine them, and the default run
tests each way once: `REPRESENTED` lists the architectures that add no new one; their laws are slow tests. So are some laws of
the others, which for a model add only what the scan over layers does (`OF_LAYERS`)."""

import dataclasses
import functools

import pytest
from helpers.laws import MIXER_OPTIONS, cells, check

import jaxseq
from jaxseq import registry, testing

REPRESENTED = (
    *("gdn", "gla", "granite_hybrid", "gru", "h3", "hyena", "jamba", "kda", "kimi_linear", "lfm2", "llama", "lstm", "mamba2"),
    *("minlstm", "mixtral", "qwen3_next", "retnet", "rwkv4", "rwkv5", "rwkv6", "s4d", "samba", "sru", "transformer"),
    *("unireplknet", "dsa", "infini", "nsa"),
)
# Laws that mixers are tested on too, or that depend on the scan over layers only. These
# models have streams between layers, losses of routers, and learned positions.
OF_LAYERS, LAYERED = ("dtype", "spec", "remat", "gradient", "none"), ("rwkv7", "switch", "gpt2")
# Fields for sizes, initial values and dtypes: they do not change how components are combined.
NO_PART = {"name", "parent", "mixers", "blocks", "repeats", "layers", "dtype", "residual_dtype"}
NO_PART |= {"width", "hidden", "head_size", "dt_rank"}
NO_PART |= {"additions", "initial", "embedding_init", "embedding_std", "head_init", "head_scale", "init_std", "mix_power"}


@functools.cache
def subjects(name: str):
    return [subject for subject in testing.subjects(name) if subject.kind == "model"]


def parts(name: str) -> set[tuple]:
    """The components of a model without sizes and initial values: blocks, streams, segments, and every option of model, blocks
    and mixers that is not at its default."""
    (subject,) = subjects(name)
    model = subject.module
    found = {("segments", len(model.blocks) > 1)} | _options(model)
    for block in model.blocks:
        found |= {("block", type(block).__name__, len(block.mixers) > 1)} | _options(block)
        for mixer in block.mixers:
            found |= _options(mixer)
    return found


def _options(module) -> set[tuple]:
    """Texts and bools by value; a number by whether it is set where the default is None."""
    found = set()
    for field in dataclasses.fields(module):
        if field.name not in NO_PART and field.default is not dataclasses.MISSING:
            value, default = (x if isinstance(x, bool | str) else bool(x) for x in (getattr(module, field.name), field.default))
            found |= {(type(module).__name__, field.name, value)} if value != default else set()
    return found


def of_mixers() -> set[tuple]:
    """Options of mixers that are tested in addition to the defaults (tests/mixers/test_laws.py)."""
    mixers = (registry.load_class("mixers", name.split()[0])(**options) for name, options in MIXER_OPTIONS.items())
    return set().union(*map(_options, mixers))


def test_what_is_left_to_slow_tests_is_made_of_parts_that_the_others_have():
    kept = of_mixers().union(*(parts(name) for name in jaxseq.names() if name not in REPRESENTED))
    assert set(REPRESENTED) < set(jaxseq.names())
    assert {name: alone for name in REPRESENTED if (alone := parts(name) - kept)} == {}


def slow(name: str, law: str) -> bool:
    return name in REPRESENTED or (law in OF_LAYERS and name not in LAYERED)


@pytest.mark.cell
@pytest.mark.parametrize("name, law", cells("configs", jaxseq.names(), testing.LAWS["model"], slow=slow))
def test_law(name, law, record_property):
    for subject in subjects(name):
        check(record_property, subject, law)
