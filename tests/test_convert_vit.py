"""The Vision Transformer as transformers computes it, and the way back."""

import jax
import numpy as np
from _convert import check_round_trip, imported, oracle

from jaxseq import convert
from jaxseq.convert.sources.hf_vit import OLD, rename
from jaxseq.testing import compare


def test_logits():
    model, params = imported("hf/vit", "vit")
    images = oracle("vit")["input"]["pixel_values"].transpose(0, 2, 3, 1)
    got = jax.jit(model.apply)({"params": params}, images).classes
    assert compare.error(got, oracle("vit")["output"]["logits"]) < 1e-5


def test_round_trip():
    check_round_trip("hf/vit", "vit")


def test_the_names_of_published_files():
    parts, back = oracle("vit"), {new: old for old, new in OLD.items()}

    def old(name: str) -> str:
        if not name.startswith("vit.layers."):
            return name
        _, _, layer, *middle, last = name.split(".")
        return f"vit.encoder.layer.{layer}.{back.get('.'.join(middle), '.'.join(middle))}.{last}"

    published = {old(name): value for name, value in parts["param"].items()}
    assert set(rename(set(published))) == set(parts["param"]) != set(published)
    model, params = convert.from_state_dict("hf/vit", parts["config"], published)
    jax.tree.map(np.testing.assert_array_equal, params, imported("hf/vit", "vit")[1])
    bare = {name.removeprefix("vit."): value for name, value in published.items() if not name.startswith("classifier")}
    assert convert.from_state_dict("hf/vit", parts["config"], bare)[0].classes == 0 < model.classes
