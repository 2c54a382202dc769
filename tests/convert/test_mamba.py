"""Mamba, Mamba-2 and Falcon Mamba equal transformers and the authors' library; round trips."""

import jax
import numpy as np
import pytest
from helpers.convert import check_logits, check_round_trip, imported, oracle

import jaxseq
from jaxseq import convert
from jaxseq.convert import _table
from jaxseq.errors import UserError
from jaxseq.testing import compare

SOURCES = {"mamba": "hf/mamba", "mamba2": "hf/mamba2", "falcon_mamba": "hf/falcon_mamba"}
TOKENS = {"mamba": "tokens"}
OUTPUTS = {"mamba": ("hf_full", "hf_step", "official_full", "official_prefill_then_step")}
OF_AUTHORS = {"mamba": {"d_state": 8}, "mamba2": {"layer": "Mamba2", "d_state": 16, "headdim": 8, "ngroups": 2}}
TIED = ("lm_head.weight",)


@pytest.mark.parametrize("form", ("recurrent", "parallel", "chunkwise"))
@pytest.mark.parametrize("name", SOURCES)
def test_logits(name, form):
    check_logits(SOURCES[name], name, TOKENS.get(name, "input_ids"), form, OUTPUTS.get(name, ("logits", "step")))


@pytest.mark.parametrize("name", SOURCES)
def test_round_trip(name):
    check_round_trip(SOURCES[name], name, TIED if oracle(name)["config"]["tie_word_embeddings"] else ())


def test_sources_tell_themselves_apart():
    for name, source in SOURCES.items():
        model, _ = imported(source, name)
        assert [s for s in SOURCES.values() if convert._source(s).describe(model)] == [source]
        assert [s for s in SOURCES.values() if convert._source(s).recognises(oracle(name)["config"], set())] == [source]


def ssm(name: str, **more) -> tuple[dict, dict]:
    """An oracle in the layout of the authors' library."""
    theirs = oracle(name)["config"]
    config = {"d_model": 32, "n_layer": 2, "vocab_size": theirs["vocab_size"], "pad_vocab_size_multiple": 1, "ssm_cfg": more}
    config |= {"rms_norm": True, "tie_embeddings": theirs["tie_word_embeddings"]}
    params = {key.replace("embeddings", "embedding"): value for key, value in oracle(name)["param"].items()}
    return config, params


@pytest.mark.parametrize("name", ("mamba", "mamba2"))
def test_the_authors_library(name):
    config, params = ssm(name, **OF_AUTHORS[name])
    model, ours = convert.from_state_dict("mamba_ssm", config, params)
    tokens = np.asarray(oracle(name)["input"][TOKENS.get(name, "input_ids")], np.int32)
    logits, _ = jax.jit(model.apply)({"params": ours}, tokens)
    assert compare.error(logits, oracle(name)["output"]["official_full" if name == "mamba" else "logits"]) < 1e-5
    exported = convert.to_state_dict("mamba_ssm", model, ours)
    wanted = {key: value for key, value in params.items() if name == "mamba2" or key not in TIED}
    assert sorted(exported) == sorted(wanted)
    jax.tree.map(np.testing.assert_array_equal, exported, wanted)
    again, _ = convert.from_state_dict("mamba_ssm", convert.describe("mamba_ssm", model), exported)
    assert again == model


def test_what_is_not_read():
    config, params = ssm("mamba")
    for change, message in (
        ({"attn_layer_idx": [1]}, "attn_layer_idx"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "Mamba1 and Mamba2, and this config has ssm_cfg.layer='Mamba3'"),
        ({"ssm_cfg": {"layer": "Mamba2", "norm_before_gate": True}}, "norm_before_gate=False"),
    ):
        with pytest.raises(UserError, match=message):
            convert.from_state_dict("mamba_ssm", config | change, params)
    with pytest.raises(UserError, match="use_bias=False"):
        convert.from_state_dict("hf/mamba", oracle("mamba")["config"] | {"use_bias": True}, params)


# Of the published files: state-spaces/mamba-130m, -2.8b, mamba2-130m, -2.7b, tiiuae/falcon-mamba-7b.
PUBLISHED = {
    "mamba:130m": 129_135_360, "mamba:2.8b": 2_768_345_600, "mamba2:130m": 128_989_632, "mamba2:2.7b": 2_702_599_680,
    "mamba:falcon-7b": 7_272_665_088,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    shapes = _table.flatten(convert.abstract(jaxseq.build(jaxseq.config(name))))
    assert sum(leaf.size for leaf in shapes.values()) == pytest.approx(PUBLISHED[name], rel=1e-9)
