"""Laws and equations of blocks and options of language models that no architecture in configs/ uses."""

import functools

import jax
import numpy as np
import pytest

import jaxseq
from jaxseq import testing
from jaxseq.blocks.parallel import Parallel
from jaxseq.blocks.residual import Residual
from jaxseq.errors import UserError
from jaxseq.layers import RMSNormOffset
from jaxseq.mixers import _rotary
from jaxseq.mixers.attention import Attention
from jaxseq.testing import compare

OPTIONS = {
    "output_norm": {"model.block": "output_norm"},
    "pre": {"model.block": "output_norm", "model.output_norm.pre": "swiglu"},
    "sandwich": {"model.block": "sandwich", "model.logit_cap": 2.0, "model.norm": "rmsnorm_offset"},
    "post_norm": {"model.block": "post_norm", "model.last_norm": False, "model.embedding_width": 8},
    "normed_residual": {"model.block": "normed_residual", "model.normed_residual.alpha": 1.5, "model.normed_residual.beta": 0.5},
    "scaled": {"model.block": "scaled", "model.scaled.scale": 0.5, "model.logit_scale": 0.25},
    "semi_parallel": {"model.block": "semi_parallel", "model.stack": "2*(attention retention swiglu)"},
    "offset": {"model.positions": "learned", "model.max_positions": 64, "model.position_offset": 2},
}


def build(name):
    small = {"model.width": 16, "model.vocab": 11, "model.stack": "2*(attention swiglu)", "model.attention.heads": 2}
    return jaxseq.build(jaxseq.config("llama", **small | OPTIONS[name]))


@functools.cache
def subject(name):
    (found,) = (s for s in testing.subjects(build(name)) if s.kind == "model")
    return found


# A block treats every token alike, so the other laws depend on its mixers: slow tests. So is `split` of blocks that differ from
# another only by norms and factors.
DEFAULT = {(name, "parameters") for name in OPTIONS} | {(name, "split") for name in ("output_norm", "post_norm", "semi_parallel")}
LAWS = [(name, law) for name in OPTIONS for law in ("split", "parameters", "reset", "padding", "spec")]


@pytest.mark.parametrize("name, law", [pair if pair in DEFAULT else pytest.param(*pair, marks=pytest.mark.slow) for pair in LAWS])
def test_laws(name, law):
    testing.check_law(subject(name), law)


def test_logits_are_capped():
    tokens = np.arange(10, dtype=np.int32)[None]
    model = build("sandwich")
    params = jax.tree.map(lambda x: 5 * x, model.init(jax.random.key(0), tokens)["params"])
    logits = model.apply({"params": params}, tokens)[0]
    plain = model.clone(logit_cap=0.0).apply({"params": params}, tokens)[0]
    assert np.abs(plain).max() > 2
    assert compare.error(logits, 2 * np.tanh(np.asarray(plain) / 2)) < 1e-6


def test_mixers_and_logits_are_multiplied():
    tokens = np.arange(10, dtype=np.int32)[None]
    model, plain = build("scaled"), build("scaled").clone(logit_scale=1.0)
    params = model.init(jax.random.key(0), tokens)["params"]
    logits = plain.apply({"params": params}, tokens)[0]
    assert compare.error(model.apply({"params": params}, tokens)[0], 0.25 * logits) < 1e-6
    halved = {key: {"kernel": 0.5 * value["kernel"]} for key, value in params["blocks_0"]["attention"].items() if key == "o"}
    blocks = params["blocks_0"] | {"attention": params["blocks_0"]["attention"] | halved}
    blocks["swiglu"] = blocks["swiglu"] | {"down": {"kernel": 0.5 * blocks["swiglu"]["down"]["kernel"]}}
    (block,) = plain.blocks
    ones = plain.clone(blocks=(block.clone(scale=1.0),))
    assert compare.error(ones.apply({"params": params | {"blocks_0": blocks}}, tokens)[0], logits) < 1e-6


def test_semi_parallel_is_parallel_then_residual():
    tokens = np.arange(10, dtype=np.int32)[None]
    model = build("semi_parallel").clone(repeats=(1,))
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    (block,), own = model.blocks, params["blocks_0"]
    assert set(own) == {"norm_attention", "attention", "retention", "norm_swiglu", "swiglu"}
    attention, retention, swiglu = block.mixers
    apart = Parallel(mixers=(attention, retention), shared_norm=True), Residual(mixers=(swiglu,))
    last = {key: own[key] for key in ("norm_swiglu", "swiglu")}
    two = params | {"blocks_0": {key: own[key] for key in own.keys() - last.keys()}, "blocks_1": last}
    logits = jax.jit(model.clone(repeats=(1, 1), blocks=apart).apply)({"params": two}, tokens)[0]
    assert compare.error(jax.jit(model.apply)({"params": params}, tokens)[0], logits) < 1e-6


def test_a_table_of_positions_holds_as_many_as_it_says():
    model, tokens = build("offset"), np.zeros((1, 64), np.int32)
    assert model.boxed()["params"]["position"].value.shape == (66, 16)
    params = model.init(jax.random.key(0), tokens)["params"]
    assert np.isfinite(model.apply({"params": params}, tokens)[0]).all()
    with pytest.raises(UserError, match="positions"):
        model.apply({"params": params}, np.zeros((1, 65), np.int32))


def test_the_offset_norm_begins_as_a_norm_without_scale():
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    y, variables = RMSNormOffset(eps=1e-6).init_with_output(jax.random.key(0), x)
    assert not np.any(jax.tree.leaves(variables)[0])
    assert compare.error(y, x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6)) < 1e-6


@pytest.mark.parametrize("scaling", ("llama3", "yarn", "yarn_exact"))
def test_fast_frequencies_stay_and_slow_ones_are_divided(scaling):
    fields = {"theta": 1e4, "rope_context": 1000, "rope_slow": 1.0, "rope_fast": 32.0, "rope_factor": 8.0}
    plain = np.asarray(_rotary.frequencies(Attention(**fields), 64))
    scaled = np.asarray(_rotary.frequencies(Attention(**fields, rope_scaling=scaling), 64))
    turns, ratio = 1000 * plain / (2 * np.pi), scaled / plain
    np.testing.assert_allclose(ratio[turns > 40], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[turns < 0.7], 1 / 8, rtol=1e-6)
    assert (np.diff(ratio) <= 1e-7).all() and ((ratio > 0.2) & (ratio < 0.9)).sum() > 2


def test_scalings_that_do_not_exist_or_fit():
    with pytest.raises(UserError, match="no rope_scaling 'ntk'; choose one of: none, linear, llama3"):
        _rotary.frequencies(Attention(rope_scaling="ntk"), 8)
    with pytest.raises(UserError, match="rope_slow=4.0 must be below rope_fast=4.0"):
        _rotary.frequencies(Attention(rope_scaling="llama3", rope_slow=4.0), 8)
