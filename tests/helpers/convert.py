"""Conversion of the reference checkpoints in tests/oracles/models, and round trips."""

import functools
import json

import jax
import numpy as np

from helpers.places import TESTS
from jaxseq import convert
from jaxseq.testing import compare

MODELS = TESTS / "oracles" / "models"


@functools.cache
def oracle(name: str) -> dict:
    """{"config": dict, "param": {…}, "input": {…}, "output": {…}}"""
    with np.load(MODELS / f"{name}.npz") as arrays:
        parts = {"config": json.loads(str(arrays["config_json"])), "param": {}, "input": {}, "output": {}}
        for key in arrays:
            kind, _, rest = key.partition("/")
            if rest:
                parts.setdefault(kind, {})[rest] = arrays[key]
    return parts


@functools.cache
def imported(source: str, name: str):
    """(model, params)"""
    parts = oracle(name)
    return convert.from_state_dict(source, parts["config"], parts["param"])


def logits(source: str, name: str, tokens, form: str):
    """The model's logits for the oracle's tokens."""
    model, params = imported(source, name)
    tokens = np.asarray(oracle(name)["input"][tokens], np.int32)
    return jax.jit(model.apply, static_argnames="form")({"params": params}, tokens, form=form)[0]


def check_logits(source: str, name: str, tokens: str, form: str, outputs: tuple[str, ...], allowed: float = 1e-5):
    got = logits(source, name, tokens, form)
    for output in outputs:
        assert compare.error(got, oracle(name)["output"][output]) < allowed, output


def saved(source: str, name: str, twice: tuple[str, ...] = ()) -> dict:
    """The oracle's tensors under their names in files."""
    kept = {key: value for key, value in oracle(name)["param"].items() if key not in twice}
    rename = convert._source(source).rename or dict.fromkeys
    return {new: kept[old or new] for new, old in rename(set(kept)).items()}


def check_round_trip(source: str, name: str, twice: tuple[str, ...] = ()):
    """Export gives the names in files with the same shapes and bits; importing the result gives the same parameters. `twice`:
    second names of tied tensors, which files do not contain."""
    (model, params), wanted = imported(source, name), saved(source, name, twice)
    exported = convert.to_state_dict(source, model, params)
    assert sorted(exported) == sorted(wanted)
    for key, value in wanted.items():
        np.testing.assert_array_equal(exported[key], value, err_msg=key, strict=True)
    check_comes_back(source, model, params, exported)


def check_comes_back(source: str, model, params, exported: dict):
    """Importing what was exported, with the exported config, gives the same model and parameters."""
    again_model, again = convert.from_state_dict(source, convert.describe(source, model), exported)
    assert again_model == model
    jax.tree.map(np.testing.assert_array_equal, again, params)
