"""StripedHyena equals its authors' code; round trip."""

import numpy as np
import pytest
from helpers.convert import check_logits, check_round_trip, imported, oracle

import jaxseq
from jaxseq.convert.sources import stripedhyena
from jaxseq.testing import compare

OUTPUTS = ("parallel", *(f"prefill_fft_{n}_then_step" for n in (2, 3, 11)))  # its other prefills are wrong
SOURCE, NAMES = "stripedhyena", ("stripedhyena", "stripedhyena_hyenaonly")


@pytest.mark.parametrize("form", ("recurrent", "parallel", "chunkwise"))
@pytest.mark.parametrize("name", NAMES)
def test_logits(name, form):
    check_logits(SOURCE, name, "tokens", form, OUTPUTS)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name):
    check_round_trip(SOURCE, name)


def test_filter():
    """h_t = Re sum_n R_n p_n^t."""
    params = imported(SOURCE, "stripedhyena")[1]["blocks_0"]["hyena_modal"]
    p_DN, r_DN = (np.asarray(params[name][0, 0], np.float64) @ [1, 1j] for name in ("poles", "residues"))
    h_DT = np.einsum("dn,dnt->dt", r_DN, p_DN[..., None] ** np.arange(24)).real
    assert compare.error(h_DT, oracle("stripedhyena")["output"]["filter_h_0"][0]) < 1e-5


def test_config_of_the_published_size():
    theirs = {
        "hidden_size": 4096, "vocab_size": 32000, "num_layers": 32, "attn_layer_idxs": list(range(1, 32, 2)), "eps": 1e-5,
        "hyena_layer_idxs": list(range(0, 33, 2)), "num_attention_heads": 32, "proj_groups": 4, "inner_mlp_size": 14336,
        "state_size": 2, "short_filter_length": 3, "hyena_filter_groups": 1, "column_split_hyena": True, "tie_embeddings": False,
        "rotary_emb_base": 500000, "qkv_proj_bias": False, "mha_out_proj_bias": False,
    }  # fmt: skip
    assert stripedhyena.config(theirs).model.to_dict() == jaxseq.config("stripedhyena:7b").model.to_dict()
