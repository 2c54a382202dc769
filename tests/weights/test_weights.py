"""Weights that are not plain arrays: their dense arrays, and that they compute the same as these."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import jaxseq
from jaxseq import UserError, weights
from jaxseq.layers import Linear, Parameter
from jaxseq.weights import Adapted, Factored, QuantizedWeight, Rounded, Sparse
from jaxseq.weights._quantized import NF4, _pack, _unpack

KEY = jax.random.key(0)
WEIGHTS_ONLY = [kind for kind, code in weights.CODES.items() if not code.activations]


@pytest.mark.parametrize("shape", [(4, 5, 6), (2, 3, 7, 9)])  # x is narrower than y in the second only
def test_a_plain_kernel_is_one_dot_general(shape):
    """The gradients are computed by this module; they are JAX's own."""
    x, w = jax.random.normal(KEY, (2, 3, *shape[:2])), jax.random.normal(KEY, shape)

    def plain(x, w):
        return jax.lax.dot_general(x, w, (((2, 3), (0, 1)), ((), ())))

    y, pull = jax.vjp(lambda x, w: weights.contract(x, w, 2), x, w)
    wanted, wanted_pull = jax.vjp(plain, x, w)
    assert (y == wanted).all() and jax.jit(weights.contract, static_argnums=2).lower(x, w, 2).as_text().count("dot_general") == 1
    for ours, theirs in zip(pull(jnp.cos(y)), wanted_pull(jnp.cos(y)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_nf4_is_made_of_quantiles_of_the_normal_distribution():
    """arXiv:2305.14314, appendix E: 8 quantiles above zero, 7 below, and zero, scaled to [-1, 1]."""
    offset = (1 - 1 / 30 + 1 - 1 / 32) / 2
    positive, negative = norm.ppf(np.linspace(offset, 0.5, 9))[:-1], -norm.ppf(np.linspace(offset, 0.5, 8))[:-1]
    wanted = np.sort(np.concatenate([positive, [0], negative]))
    np.testing.assert_allclose(NF4, wanted / wanted.max(), atol=2e-4)


@pytest.mark.parametrize("axis", [-1, -2, -3])
def test_two_codes_in_a_byte_come_out_again(axis):
    codes = jax.random.randint(KEY, (4, 6, 8), 0, 16).astype(jnp.uint8)
    packed = _pack(codes, axis)
    assert packed.size * 2 == codes.size and (_unpack(packed, axis) == codes).all()


@pytest.mark.parametrize("kind", weights.CODES)
@pytest.mark.parametrize("contracts", [(-3,), (-3, -2), (-1,)])
def test_quantized_numbers_are_the_nearest(kind, contracts):
    """The error is at most half of the largest gap between codes; zeros are exact."""
    w = jax.random.normal(KEY, (2, 32, 4, 64)).at[0, 0].set(0)
    found = QuantizedWeight.of(w, kind, contracts)
    values = found.dense()
    gap = {"int8": 2 / 255, "w8a8": 2 / 255, "fp8": 1 / 14, "int4": 2 / 15, "nf4": 0.31}[kind]
    axes = tuple(axis % 4 for axis in contracts)
    largest = jnp.max(jnp.abs(w), axis=axes, keepdims=True)
    assert (jnp.abs(values - w) <= largest * gap / 2 * 1.001).all()
    assert (values[0, 0] == 0).all()


def test_w8a8_is_a_product_of_integers():
    """Activations have one scale per token, max|x| / 127, weights one per output; the sum of the products is exact."""
    w, x = jax.random.normal(KEY, (6, 4, 8)), jax.random.normal(jax.random.key(1), (2, 3, 6, 4)).at[0, 0].set(0)
    found = QuantizedWeight.of(w, "w8a8", (-3, -2))
    largest = np.abs(np.asarray(x)).max(axis=(2, 3))
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    codes = np.round(np.asarray(x) / scale[..., None, None]).astype(np.int64)
    sums = np.einsum("btik,iko->bto", codes, np.asarray(found.codes, np.int64))
    wanted = sums * scale[..., None].astype(np.float64) * np.asarray(found.scale, np.float64)[0, 0]
    got = weights.contract(x, found, 2)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    assert not got[0, 0].any() and np.abs(got - weights.contract(x, w, 2)).max() < 0.03 * np.abs(got).max()
    text = str(jax.make_jaxpr(weights.contract, static_argnums=2)(x, found, 2))
    assert "i32[2,3,8] = dot_general" in text and text.count("dot_general[") == 1


@pytest.mark.parametrize("make", [lambda w: QuantizedWeight.of(w, "w8a8", (-3, -2)), lambda w: Rounded(w, "w8a8", (-3, -2))])
def test_gradients_go_past_the_rounding_of_activations(make):
    """They are those of a product with the rounded weights."""
    w, x = jax.random.normal(KEY, (6, 4, 8)), jax.random.normal(jax.random.key(1), (2, 3, 6, 4))
    found = make(w)
    y, pull = jax.vjp(lambda x: weights.contract(x, found, 2), x)
    _, plain = jax.vjp(lambda x: weights.contract(x, found.dense(), 2), x)
    np.testing.assert_allclose(pull(jnp.cos(y))[0], plain(jnp.cos(y))[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(y, weights.contract(x, QuantizedWeight.of(w, "w8a8", (-3, -2)), 2), rtol=1e-4, atol=1e-4)


def test_rows_of_a_quantized_table():
    for kind in weights.CODES:
        table = QuantizedWeight.of(jax.random.normal(KEY, (9, 16)), kind, (-1,))
        ids = jnp.array([[3, 3], [0, 8]])
        np.testing.assert_array_equal(table.rows(ids), table.dense()[ids])


def kernels() -> dict[str, weights.Weight]:
    """One weight of each type, for an array [6, 4, 8] with two contracted axes."""
    keys = jax.random.split(KEY, 4)
    w, a, b = (jax.random.normal(k, s) for k, s in zip(keys, [(6, 4, 8), (6, 4, 3), (3, 8)], strict=False))
    magnitude = jnp.abs(jax.random.normal(keys[3], (1, 1, 8)))
    sparse = Sparse(w * (w > 0))
    return {
        **{kind: QuantizedWeight.of(w, kind, (-3, -2)) for kind in WEIGHTS_ONLY},
        "sparse": sparse,
        "factored": Factored(a, b, 2),
        "adapted": Adapted(w, a, b, None, 2, 0.5),
        "adapted magnitude": Adapted(w, a, b, magnitude, 2, 0.5),
        "adapted nf4": Adapted(QuantizedWeight.of(w, "nf4", (-3, -2)), a, b, None, 2, 0.5),
        "adapted sparse": Adapted(sparse, a, b, None, 2, 0.5),
    }


@pytest.mark.parametrize("name", kernels())
def test_a_weight_multiplies_as_its_array_does(name):
    w, x = kernels()[name], jax.random.normal(KEY, (2, 5, 6, 4))
    linear = Linear((8,), ("heads", None, "embed"), 2)
    y = linear.apply({"params": {"kernel": w}}, x)
    np.testing.assert_allclose(y, linear.apply({"params": {"kernel": w.dense()}}, x), rtol=1e-4, atol=1e-4)


def test_the_zeros_of_an_adapted_sparse_stay_zero():
    w = kernels()["adapted sparse"]
    assert (w.dense()[w.base.w == 0] == 0).all() and (w.dense() != w.base.w).any()


def test_magnitudes_are_the_norms_of_the_outputs():
    """DoRA, eq. 5: for any a and b, output j has the norm m_j."""
    w = kernels()["adapted magnitude"]
    np.testing.assert_allclose(jnp.linalg.norm(w.dense().reshape(24, 8), axis=0), w.magnitude[0, 0], rtol=1e-5)


def test_parts_are_joined_to_the_whole():
    """If there are adapters, only these are trained; codes and scales never are."""
    tree = {"norm": jnp.ones(3), "kernel": kernels()["nf4"], "factored": kernels()["factored"]}
    trained, frozen = weights.parted(tree)
    assert sorted(weights.leaves(trained)) == ["factored/a", "factored/b", "norm"]
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), weights.joined(trained, frozen), tree))
    trained, _ = weights.parted(tree | {"adapted": kernels()["adapted nf4"]})
    assert sorted(weights.leaves(trained)) == ["adapted/a", "adapted/b"]
    assert weights.parted({"norm": jnp.ones(3)})[1] is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("int8", "cannot read"),
        ("int9 = embedding", "cannot read"),
        ("factored = embedding", "cannot read"),
        ("int8:3 = blocks_0/swiglu/up/kernel; import os", "cannot read"),
        ("int8 = blocks_0/nothing", "no such matrix"),
        ("int8 = final_norm/scale", "no such matrix"),
        ("int8 = embedding; int8 = embedding/codes", "no such matrix"),
    ],
)
def test_bad_rules_are_told(text, told):
    boxes = jaxseq.build(jaxseq.config("transformer")).boxed()["params"]
    with pytest.raises(UserError, match=told):
        weights.typed(boxes, text)


def test_four_bits_need_an_even_number_of_inputs():
    box = Parameter(jax.ShapeDtypeStruct((7, 4), jnp.float32), ("embed", "mlp"), contracts=(-2,))
    assert not weights.fits(box, "nf4") and weights.fits(box, "int8")
    with pytest.raises(UserError, match="7 inputs"):
        weights.typed({"w": box}, "nf4 = w")


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_codes_are_those_of_qwix(kind):
    """Skipped unless qwix is installed."""
    qarray = pytest.importorskip("qwix._src.core.qarray")
    w = jax.random.normal(KEY, (128, 16))
    how = {"channelwise_axes": (1,), "tiled_axes": {0: 64} if kind == "int4" else {}}
    theirs = qarray.quantize(w, qarray.HowToQuantize(qtype=kind, calibration_method="absmax", **how))
    ours, theirs = np.asarray(QuantizedWeight.of(w, kind, (-2,)).dense()), np.asarray(qarray.dequantize(theirs))
    assert np.mean(np.isclose(ours, theirs, rtol=1e-5)) > 0.999  # a few are halfway between two codes
