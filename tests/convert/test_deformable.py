"""Deformable attention and an encoder layer around it equal Deformable DETR's; round trip."""

import jax
import numpy as np
import pytest
from helpers.convert import check_round_trip, imported, oracle

from jaxseq import convert
from jaxseq.layers import LayerNorm
from jaxseq.testing import compare

SOURCE = "deformable_detr/attention"


@pytest.mark.parametrize("reference, masked", (("ref2", True), ("ref4", False)))
def test_layer(reference, masked):
    module, params = imported(SOURCE, "deformable")
    given, sizes = oracle("deformable")["input"], tuple(map(tuple, oracle("deformable")["input"]["spatial_shapes"].tolist()))
    apply = jax.jit(lambda q, ref, src, seen: module.apply({"params": params}, q, ref, src, sizes, seen))
    y_BTD = apply(given["query"], given[reference], given["src"], ~given["padding_mask"] if masked else None)
    for output in (reference, f"hf_{reference}"):
        assert compare.error(y_BTD, oracle("deformable")["output"][output]) < 1e-5


def test_encoder_layer():
    parts = oracle("deformable_detr_layer")
    own = {name.removeprefix("self_attn."): x for name, x in parts["param"].items() if name.startswith("self_attn.")}
    config, given, param = parts["config"], parts["input"], parts["param"]
    theirs = {"n_heads": config["encoder_attention_heads"], "n_levels": config["num_feature_levels"]}
    theirs |= {"d_model": config["d_model"], "n_points": config["encoder_n_points"]}
    module, params = convert.from_state_dict(SOURCE, theirs, own)
    sizes, x = tuple(map(tuple, given["spatial_shapes"].tolist())), given["hidden_states"]

    def norm(name, x):
        params = {"scale": param[f"{name}.weight"], "bias": param[f"{name}.bias"]}
        return LayerNorm(config["layer_norm_eps"]).apply({"params": params}, x)

    @jax.jit
    def layer(x, position, reference, seen):
        x += module.apply({"params": params}, x + position, reference, x, sizes, seen)
        x = norm("self_attn_layer_norm", x)
        hidden = jax.nn.relu(x @ param["mlp.fc1.weight"].T + param["mlp.fc1.bias"])
        return norm("final_layer_norm", x + hidden @ param["mlp.fc2.weight"].T + param["mlp.fc2.bias"])

    y = layer(x, given["position_embeddings"], given["reference_points"], given["attention_mask"])
    assert compare.error(y, parts["output"]["y"]) < 1e-5


def test_round_trip():
    check_round_trip(SOURCE, "deformable")


def test_found_by_its_names():
    names = set(oracle("deformable")["param"])
    found = [name for name in convert.source_names() if convert._source(name).recognises({}, names)]
    assert found == ["deformable/detr_attention"]


def test_initial_offsets_are_the_directions_of_the_heads():
    """The values that the released code's formula gives for 8 heads: the eight neighbours of a pixel, 1 to P pixels away."""
    module, _ = imported(SOURCE, "deformable")
    module = module.clone(heads=8, levels=1, points=2, width=16)
    x = np.ones((1, 4, 16), np.float32)
    params = jax.jit(lambda: module.init(jax.random.key(0), x, np.ones((1, 4, 1, 2)), x, ((2, 2),)))()["params"]
    params = jax.tree.map(np.asarray, jax.tree.map(lambda box: box.value, params, is_leaf=lambda box: hasattr(box, "names")))
    neighbours = np.array([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)])
    np.testing.assert_allclose(params["offsets"]["bias"][:, 0, 0], neighbours, atol=2e-6)
    np.testing.assert_allclose(params["offsets"]["bias"][:, 0, 1], 2 * neighbours, atol=2e-6)
    for name in ("offsets", "weights"):
        assert not params[name]["kernel"].any()
    bound = (6 / 32) ** 0.5  # of U(-b, b) with variance 2 / (16 + 16)
    for name in ("v", "o"):
        assert not params[name]["bias"].any() and 0.9 * bound < np.abs(params[name]["kernel"]).max() <= bound
