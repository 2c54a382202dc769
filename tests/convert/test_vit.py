"""The Vision Transformer equals transformers'; round trip."""

import jax
import numpy as np
from helpers.convert import check_round_trip, imported, oracle, saved

from jaxseq import convert
from jaxseq.testing import compare


def test_logits():
    model, params = imported("hf/vit", "vit")
    images = oracle("vit")["input"]["pixel_values"].transpose(0, 2, 3, 1)
    got = jax.jit(model.apply)({"params": params}, images).classes
    assert compare.error(got, oracle("vit")["output"]["logits"]) < 1e-5


def test_round_trip():
    check_round_trip("hf/vit", "vit")


def test_the_names_in_memory_and_in_files():
    parts = oracle("vit")
    files = saved("hf/vit", "vit")
    assert set(files) != set(parts["param"]) and "vit.encoder.layer.0.attention.attention.query.weight" in files
    model, params = convert.from_state_dict("hf/vit", parts["config"], files)
    jax.tree.map(np.testing.assert_array_equal, params, imported("hf/vit", "vit")[1])
    bare = {name.removeprefix("vit."): value for name, value in files.items() if not name.startswith("classifier")}
    assert convert.from_state_dict("hf/vit", parts["config"], bare)[0].classes == 0 < model.classes
