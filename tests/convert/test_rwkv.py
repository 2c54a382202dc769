"""RWKV models against the `rwkv` package: the same logits in every form, and bitwise round trips."""

import jax
import numpy as np
import pytest
from helpers.convert import check_logits, check_round_trip, imported, oracle

import jaxseq
from jaxseq import convert
from jaxseq.convert import _table
from jaxseq.convert.sources import blinkdl_rwkv4
from jaxseq.errors import UserError

NAMES = ("rwkv4", "rwkv5_2", "rwkv6", "rwkv7")


@pytest.mark.parametrize("form", ("recurrent", "parallel", "chunkwise"))
@pytest.mark.parametrize("name", NAMES)
def test_logits(name, form):
    check_logits(f"blinkdl/{name}", name, "tokens", form, ("seq", "step", "two_chunks"))


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name):
    check_round_trip(f"blinkdl/{name}", name)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_without_a_config(name, tmp_path):
    """The version is read from the names, the sizes from the shapes."""
    tensors = oracle(name)["param"]
    np.savez(tmp_path / "model.npz", **tensors)
    source, theirs, _ = convert.open_source(tmp_path / "model.npz")
    assert source == f"blinkdl/{name}"
    model, params = convert.from_state_dict(source, theirs, tensors)
    wanted_model, wanted = imported(source, name)
    assert model == wanted_model
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


def test_the_first_layers_unread_values_are_dropped():
    """The released RWKV-7 checkpoints have v0, v1 and v2 in every layer."""
    parts = oracle("rwkv7")
    extra = {f"blocks.0.att.v{i}": parts["param"][f"blocks.1.att.v{i}"] for i in range(3)}
    _, params = convert.from_state_dict("blinkdl/rwkv7", parts["config"], parts["param"] | extra)
    jax.tree.map(np.testing.assert_array_equal, params, imported("blinkdl/rwkv7", "rwkv7")[1])


def test_what_is_no_rwkv_checkpoint():
    with pytest.raises(UserError, match="no emb.weight or no blocks.0"):
        blinkdl_rwkv4.infer({"weight": (1, 2)})


# The released models; for RWKV-7 the paper's counts (arXiv:2503.14456, appendix).
PUBLISHED = {
    "rwkv4:169m": 169_342_464, "rwkv4:430m": 430_397_440, "rwkv4:1.5b": 1_515_106_304, "rwkv4:3b": 2_984_627_200,
    "rwkv5:1.5b": 1_577_754_624, "rwkv6:1.6b": 1_599_873_024, "rwkv7:0.1b": 191_034_624, "rwkv7:0.4b": 450_767_872,
    "rwkv7:1.5b": 1_527_404_544, "rwkv7:2.9b": 2_947_735_040,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    shapes = _table.flatten(convert.abstract(jaxseq.build(jaxseq.config(name))))
    assert sum(leaf.size for leaf in shapes.values()) == PUBLISHED[name]
