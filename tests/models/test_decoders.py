"""Options of the decoder Transformers: positions, biases, parallel branches, PanGu-pi's parts, diversity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.convert import imported, oracle

import jaxseq
from jaxseq import testing
from jaxseq.call import Call
from jaxseq.errors import UserError
from jaxseq.evaluation.diversity import diversity, effective_dimension, hidden_states, relative_diversity
from jaxseq.mixers import attention as attention_file
from jaxseq.mixers.attention import Attention, alibi_slopes
from jaxseq.mixers.mlp import MLP
from jaxseq.mixers.series_swiglu import SeriesSwiGLU
from jaxseq.testing import compare

POS = np.arange(9, dtype=np.int32)[None]


def softmax_attention(params, x_TD, heads, bias_HTS, turn=lambda x: x):
    """Softmax attention of one row, in numpy."""
    q, k, v = (np.einsum("td,dhk->thk", x_TD, params[n]["kernel"]) + params[n].get("bias", 0) for n in "qkv")
    scores = np.einsum("thk,shk->hts", turn(q), turn(k)) * q.shape[-1] ** -0.5 + bias_HTS
    scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    y = np.einsum("hts,shk->thk", weights / weights.sum(-1, keepdims=True), v)
    return np.einsum("thk,hkd->td", y, params["o"]["kernel"]) + params["o"].get("bias", 0)


def fresh(module, x):
    return jax.device_get(nn.meta.unbox(module.init(jax.random.key(0), x, None, Call.of(POS, "parallel")))["params"])


def moved(module, x):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32), fresh(module, x))


def shapes(model):
    return jax.tree.map(jnp.shape, jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]))


@pytest.mark.parametrize("heads", (4, 6))
def test_alibi_is_a_linear_bias(heads):
    module = Attention(width=24, heads=heads, rotary=False, alibi=True)
    x = np.random.default_rng(0).normal(size=(1, 9, 24)).astype(np.float32)
    params = moved(module, x)
    slopes = {4: [2**-2, 2**-4, 2**-6, 2**-8], 6: [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]}[heads]
    assert alibi_slopes(heads) == slopes
    distance = np.arange(9)[:, None] - np.arange(9)[None]
    wanted = softmax_attention(params, x[0], heads, -np.array(slopes)[:, None, None] * distance)
    far = POS + 60_000  # only distances count
    for form in ("recurrent", "parallel", "chunkwise"):
        y = module.apply({"params": params}, x, module.init_state(1, 9), Call.of(POS, form))[0]
        assert compare.error(y[0], wanted) < 1e-5
        y = module.apply({"params": params}, x, module.init_state(1, 9), Call.of(far, form))[0]
        assert compare.error(y[0], wanted) < 2e-3  # float32 represents slope * 60000 to 0.01


def test_alibi_in_bfloat16_keeps_positions_apart():
    q = jnp.zeros((1, 2, 4, 8), jnp.bfloat16)
    pos = jnp.array([[65_534, 65_535]], jnp.int32)
    long_q, long_k = attention_file.add_alibi(q, q, pos, scale=8**-0.5)
    scores = 8**-0.5 * jnp.einsum("bthk,bshk->hts", long_q, long_k, preferred_element_type=jnp.float32)[:, 0]
    np.testing.assert_allclose(scores[:, 1] - scores[:, 0], alibi_slopes(4), rtol=2**-8)


@pytest.mark.parametrize(("fraction", "interleaved"), ((0.5, False), (1.0, True), (0.5, True)))
def test_a_part_of_each_head_turns(fraction, interleaved):
    module = Attention(width=32, heads=4, rotary_fraction=fraction, interleaved=interleaved, theta=100.0, bias=True)
    x = np.random.default_rng(0).normal(size=(1, 9, 32)).astype(np.float32)
    params = moved(module, x)
    turned = int(8 * fraction)

    def turn(x_THK):  # channel pairs as complex numbers
        left, right = (x_THK[..., 0:turned:2], x_THK[..., 1:turned:2]) if interleaved else np.split(x_THK[..., :turned], 2, -1)
        angle = np.arange(9)[:, None] * 100.0 ** (-np.arange(0, turned, 2) / turned)
        z = (left + 1j * right) * np.exp(1j * angle)[:, None]
        parts = np.stack([z.real, z.imag], -1).reshape(*z.shape[:-1], -1) if interleaved else np.concatenate([z.real, z.imag], -1)
        return np.concatenate([parts, x_THK[..., turned:]], -1)

    y = module.apply({"params": params}, x, None, Call.of(POS, "parallel"))[0]
    assert compare.error(y[0], softmax_attention(params, x[0], 4, 0, turn)) < 1e-5


OPTIONS = {
    "alibi": {"alibi": True, "rotary": False, "window": 5},
    "pairs": {"interleaved": True, "rotary_fraction": 0.5, "kv_heads": 2, "bias": True, "output_bias": False},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_options_obey_the_laws(options):
    subject = testing.subjects(Attention(width=16, layers=2, **OPTIONS[options]))[0]
    for law in ("split", "reset", "padding", "spec", "parameters"):
        testing.check_law(subject, law)


def test_biases_are_chosen_apart():
    x = np.zeros((1, 9, 16), np.float32)
    for fields, wanted in (({"bias": True}, "qkvo"), ({"bias": True, "output_bias": False}, "qkv"), ({"output_bias": True}, "o")):
        params = fresh(Attention(width=16, **fields), x)
        assert "".join(n for n in "qkvo" if "bias" in params[n]) == wanted


def test_what_is_refused():
    with pytest.raises(UserError, match="rotate pairs"):
        shapes(jaxseq.build(jaxseq.config("neox", **{"model.attention.rotary_fraction": 0.1})))
    with pytest.raises(UserError, match="no activation 'swish'; choose one of: relu"):
        fresh(MLP(width=8, activation="swish"), jnp.zeros((1, 9, 8)))


def test_one_norm_for_both_branches():
    model = jaxseq.build(jaxseq.config("neox", **{"model.parallel.shared_norm": True, "model.width": 32, "model.vocab": 11}))
    assert set(shapes(model)["blocks_0"]) == {"attention", "mlp", "norm_attention"}


# PanGu-pi


def test_without_its_parts_pangu_is_llama():
    """With no shortcuts and one term with a = 1 and b = 0, logits from Llama's weights equal Llama's bit for bit."""
    llama, params = imported("hf/llama", "llama")
    theirs = oracle("llama")["config"]
    fields = {
        "model.stack": "2*(attention series_swiglu)", "model.width": 32, "model.vocab": 61, "model.tied": False,
        "model.augmented.shortcuts": 0, "model.series_swiglu.terms": 1, "model.series_swiglu.hidden": 48,
        "model.attention.heads": 4, "model.attention.kv_heads": 2, "model.norm_eps": theirs["rms_norm_eps"],
    }  # fmt: skip
    model = jaxseq.build(jaxseq.config("pangu", **fields))
    block = dict(params["blocks_0"])
    series = block.pop("swiglu") | {"scale": jnp.ones((2, 1, 48)), "shift": jnp.zeros((2, 1, 48))}
    block |= {"series_swiglu": series, "norm_series_swiglu": block.pop("norm_swiglu")}
    own = params | {"blocks_0": block}
    assert jax.tree.map(jnp.shape, own) == shapes(model)
    tokens = oracle("llama")["input"]["input_ids"].astype(np.int32)
    for form in ("recurrent", "parallel", "chunkwise"):
        apply = lambda model, params: jax.jit(model.apply, static_argnames="form")({"params": params}, tokens, form=form)[0]  # noqa: E731, B023
        wanted = apply(llama, params)
        np.testing.assert_array_equal(apply(model, own), wanted)
    assert compare.error(wanted, oracle("llama")["output"]["logits"]) < 1e-5


def test_a_series_is_a_sum_of_shifted_activations():
    module = SeriesSwiGLU(width=6, hidden=5, terms=3)
    x = np.random.default_rng(0).normal(size=(1, 9, 6)).astype(np.float32)
    np.testing.assert_array_equal(fresh(module, x)["shift"], np.repeat([[-1.0], [0.0], [1.0]], 5, axis=1))
    params = moved(module, x)
    silu = lambda v: v / (1 + np.exp(-v))  # noqa: E731
    gate, up = x @ params["gate"]["kernel"], x @ params["up"]["kernel"]
    series = sum(silu(params["scale"][i] * gate + params["shift"][i]) for i in range(3))
    y = module.apply({"params": params}, x, None, Call.of(POS, "parallel"))[0]
    assert compare.error(y, (series * up) @ params["down"]["kernel"]) < 1e-5


def test_shortcuts_are_added_to_attention_alone():
    """The difference to a block without shortcuts is T(h), the bottleneck of the normed stream."""
    config = jaxseq.config("pangu", **{"model.stack": "1*(attention)", "model.width": 32, "model.augmented.shortcuts": 2})
    block, bare = jaxseq.build(config).blocks[0], jaxseq.build(config).blocks[0].clone(shortcuts=0)
    x = np.random.default_rng(0).normal(size=(1, 9, 32)).astype(np.float32)
    params = fresh(block, x)
    run = lambda block: block.apply({"params": params}, x, None, Call.of(POS, "parallel"))[0]  # noqa: E731
    h = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-5)

    def bottleneck(i):
        down, up = (params[f"shortcut_attention_{i}_{name}"]["kernel"] for name in ("down", "up"))
        return jax.nn.gelu(h @ down, approximate=False) @ up

    assert params["shortcut_attention_0_down"]["kernel"].shape == (32, 4)
    assert compare.error(run(block) - run(bare), bottleneck(0) + bottleneck(1)) < 1e-5
    names = set(shapes(jaxseq.build(jaxseq.config("pangu", **{"model.width": 32})))["blocks_0"])
    assert {n for n in names if n.startswith("shortcut")} == {"shortcut_attention_0_down", "shortcut_attention_0_up"}


# Diversity


def test_relative_diversity():
    rng = np.random.default_rng(0)
    h = rng.normal(size=(3, 7, 5))
    h[1] = h[1, :1]  # all tokens alike
    h[2] -= h[2].mean(0)  # orthogonal tokens
    center = np.eye(7) - np.ones((7, 7)) / 7
    wanted = [np.linalg.norm(center @ rows) / np.linalg.norm(rows) for rows in h]
    np.testing.assert_allclose(relative_diversity(jnp.array(h)), wanted, atol=1e-6)
    assert wanted[1] < 1e-6 and wanted[2] == pytest.approx(1)
    nearest = min(np.linalg.norm(h[0] - x) for x in (h[0].mean(0), *rng.normal(size=(50, 5))))
    assert nearest == pytest.approx(wanted[0] * np.linalg.norm(h[0]))


def test_effective_dimension():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    h = rng.normal(size=(4000, 6)) * [3, 3, 1, 1, 0.1, 0.1] @ axes + 5
    assert [int(effective_dimension(jnp.array(h), share)) for share in (0.4, 0.8, 0.95, 0.9999)] == [1, 2, 4, 6]
    assert int(effective_dimension(jnp.ones((9, 4)))) == 0


def test_any_language_model_is_measured_layer_by_layer():
    config = jaxseq.config("transformer", **{"model.stack": "2*(attention swiglu) + (mlp)", "model.width": 16})
    model = jaxseq.build(config)
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 257)
    params = model.init(jax.random.key(0), tokens)["params"]
    h_LBTD = hidden_states(model, params, tokens)
    assert h_LBTD.shape == (4, 2, 12, 16)
    np.testing.assert_array_equal(h_LBTD[0], params["embedding"][tokens])
    last = model.apply({"params": params}, tokens, method="hidden")[0]
    final = h_LBTD[3] / np.sqrt(np.mean(np.square(h_LBTD[3]), -1, keepdims=True) + 1e-5) * params["final_norm"]["scale"]
    assert compare.error(final, last) < 1e-5
    found = diversity(model, params, tokens)
    assert found.diversity.shape == found.dimension.shape == (4,)
    assert ((found.diversity > 0) & (found.diversity <= 1)).all() and ((found.dimension >= 1) & (found.dimension <= 16)).all()
    alike = diversity(model, params, jnp.zeros((2, 12), jnp.int32))
    assert alike.diversity[0] == pytest.approx(0, abs=1e-6) and alike.dimension[0] == 0


def test_none_is_a_value_of_text_and_empties_anything_else():
    config = jaxseq.config("gpt2", **{"model.positions": "none", "model.remat": "none", "model.attention.kv_heads": 2})
    assert (config.model.positions, config.model.remat) == ("none", "none")
    assert jaxseq.config("mixtral", **{"model.attention.kv_heads": "none"}).model.attention.kv_heads is None
