"""The FLOP counter, and the FLOPs of training steps, against counts by hand. Nothing is executed."""

import inspect
import math

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

import jaxseq
from jaxseq.testing.loops import longest_loop
from jaxseq.train import flops, prepare

X = jnp.ones((4, 8, 16))
SQUARE = jnp.ones((16, 16))
MATMUL = 2 * 4 * 8 * 16 * 16


def repeat(x, w):
    return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=7)[0]


@jax.custom_vjp
def doubled(x):
    return x * 2


doubled.defvjp(lambda x: (doubled(x), x), lambda x, ct: (ct * x,))


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        (lambda x, w: x @ w, (X, SQUARE), MATMUL),
        (lambda x, w: jnp.einsum("bth,hk->btk", x, w), (X, SQUARE), MATMUL),
        (repeat, (X, SQUARE), 7 * (MATMUL + X.size)),
        (jax.checkpoint(repeat), (X, SQUARE), 7 * (MATMUL + X.size)),
        (jax.jit(repeat), (X, SQUARE), 7 * (MATMUL + X.size)),
        (lambda x: jax.lax.fori_loop(0, 5, lambda _, c: c + 1.0, x), (X,), 5 * X.size),
        (lambda x, w: jax.lax.cond(x[0, 0, 0] > 0, lambda: x @ w, lambda: x), (X, SQUARE), MATMUL),
        (doubled, (X,), X.size),
        (jnp.fft.rfft, (jnp.ones((3, 64)),), 3 * 2.5 * 64 * 6),
        (lambda x: x.transpose().reshape(-1), (X,), 0),
        (lambda x: jnp.sum(x), (X,), X.size),
        (lambda x, w: (x @ w, x)[1] + 1.0, (X, SQUARE), X.size),
    ],
)
def test_count(function, args, expected):
    # Comparisons and loop counters are at most a handful of operations; a loop's body is more.
    counted = flops.count(function, *args)
    assert expected <= counted <= expected + X.size + 64


def test_the_backward_pass_of_a_matmul_costs_two():
    count = flops.count(jax.grad(lambda x, w: jnp.sum(x @ w), argnums=(0, 1)), X, SQUARE)
    assert 2 * MATMUL <= count <= 3 * MATMUL + 4 * X.size


def test_depthwise_convolution_counts_its_taps():
    kernel = jnp.ones((4, 1, 16))

    def convolve(x):
        return jax.lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=16
        )

    assert flops.count(convolve, X) == 2 * 4 * X.size


def test_the_matmul_peak_is_measured_once_and_quickly():
    assert flops.matmul_peak("float32") > 1e8
    assert flops.matmul_peak.cache_info().currsize >= 1


@pytest.mark.skipif(not hasattr(pl, "kernel"), reason="this JAX has no pl.kernel")
def test_a_pallas_kernel_counts_once_for_each_core_and_is_one_step():
    from jax.experimental.pallas import tpu as pltpu

    def double(x_ref, y_ref):
        y_ref[...] = x_ref[...] * 2.0

    if not hasattr(pltpu, "TensorCoreMesh") or "num_cores" not in inspect.signature(pltpu.TensorCoreMesh).parameters:
        mesh = pltpu.create_tensorcore_mesh("core", num_cores=2)
    else:
        mesh = pltpu.TensorCoreMesh(axis_name="core", num_cores=2)
    out = {next(name for name in ("out_type", "out_shape") if name in inspect.signature(pl.kernel).parameters): X}

    def kernel(x):
        return pl.kernel(double, mesh=mesh, **out)(x)

    assert flops.count(kernel, X) == 2 * X.size
    assert longest_loop(lambda x: jax.lax.fori_loop(0, 3, lambda _, c: kernel(c), x), X) == 3


ROWS, TIME, WIDTH, VOCAB = 2, 512, 1024, 2048
HIDDEN, HEADS, VALUE, CHUNK = 3072, 8, 256, 64  # of SwiGLU; of retention with WIDTH / HEADS key channels
INNER, STATES, RANK, TAPS = 2 * WIDTH, 16, 64, 4  # of Mamba


def combined(tokens: int) -> int:
    """Number of pairs that an associative scan combines: neighbours, the scan of the pairs, then the tokens in between."""
    return 0 if tokens < 2 else tokens // 2 + combined(tokens // 2) + (tokens - 1) // 2


# Multiply-adds of the matrix products of a token, and the operations of its scan, forward.
PRODUCTS = {
    "attention": 4 * WIDTH**2 + 2 * TIME * WIDTH,
    "swiglu": 3 * WIDTH * HIDDEN,
    "retention": 2 * WIDTH**2 + 3 * WIDTH * HEADS * VALUE
    + HEADS * (CHUNK * (WIDTH // HEADS + VALUE) + 2 * (WIDTH // HEADS) * VALUE),
    "mamba": WIDTH * 2 * INNER + TAPS * INNER + INNER * (RANK + 2 * STATES) + RANK * INNER + INNER * WIDTH + INNER * STATES,
}  # fmt: skip
SCAN = {
    "retention": 3 * HEADS * (WIDTH // HEADS) * VALUE * combined(TIME // CHUNK) // TIME,
    # Of every state: exp(dt A) and (dt x) B, three operations a pair, the two additions by which jax puts the halves of A and
    # of h together (2 C - 2 elements over all levels), and A h + h' in front of the output.
    "mamba": INNER * STATES * (3 + (3 * combined(CHUNK) + 2 * (2 * CHUNK - 2)) / CHUNK + 2),
}
FIELDS = {
    "attention": {"attention.heads": HEADS, "attention.kv_heads": HEADS},
    "swiglu": {"swiglu.hidden": HIDDEN},
    "retention": {"retention.heads": HEADS},
    "mamba": {},
}


def trainer(mixer: str, layers: int = 1, **options):
    fields = {"stack": f"{layers}*({mixer})", "width": WIDTH, "vocab": VOCAB, "dropout": 0.0} | FIELDS[mixer]
    sizes = {"train.batch": ROWS, "train.length": TIME, "train.form": "chunkwise"}
    config = jaxseq.config("transformer", **{f"model.{name}": value for name, value in fields.items()} | sizes | options)
    return prepare(config, jax.devices()[:1])


@pytest.mark.parametrize("mixer", PRODUCTS)
def test_model_flops_are_three_times_those_of_the_forward_pass(mixer):
    """The remainder is norms, gates, rotations and the softmax: a few operations per channel, per position of a head and per
    score."""
    forward = 2 * (PRODUCTS[mixer] + VOCAB * WIDTH) + SCAN.get(mixer, 0)
    rest = {"attention": 12 * HEADS * TIME, "retention": 12 * HEADS * CHUNK, "mamba": 3 * INNER * STATES + 30 * INNER}
    counted = trainer(mixer).flops_per_token()
    assert 3 * forward <= counted <= 3 * (forward + rest.get(mixer, 0) + 10 * VOCAB + 60 * WIDTH + 3 * HIDDEN)


def test_neither_form_nor_recomputation_changes_model_flops(monkeypatch):
    """No second model is built to count them. The executed FLOPs differ."""
    choices = [{"train.form": form} for form in ("recurrent", "parallel", "chunkwise", "auto")] + [{"model.remat": "full"}]
    trainers = [trainer("retention", **choice) for choice in choices]
    monkeypatch.setattr(jaxseq, "build", None)
    assert len({one.flops_per_token() for one in trainers}) == 1
    recurrent, parallel, chunkwise, _, remat = (one.hardware_flops_per_token() for one in trainers)
    assert len({recurrent, parallel, chunkwise}) == 3 and chunkwise < min(parallel, remat)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_executed_flops_hold_recomputation(remat):
    """A recomputed block repeats all but the last of its three products, which no gradient needs."""
    layers, updates = 2, 30  # operations per parameter: clipping, Adam and the reported norms
    one = trainer("swiglu", layers, **{"model.remat": remat})
    again = {"none": 0, "full": 2 * WIDTH * HIDDEN}[remat]
    wanted = 2 * (3 * (layers * PRODUCTS["swiglu"] + VOCAB * WIDTH) + layers * again)
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(one.abstract.params))
    rest = updates * parameters / (ROWS * TIME) + 100 * layers * (WIDTH + HIDDEN) + 30 * VOCAB
    assert wanted <= one.hardware_flops_per_token() <= wanted + rest


def test_micro_batches_count_together():
    whole, parts = (trainer("swiglu", **{"train.accumulate": count}) for count in (1, 2))
    assert parts.flops_per_token() == pytest.approx(whole.flops_per_token(), rel=1e-6)
    assert parts.hardware_flops_per_token() == pytest.approx(whole.hardware_flops_per_token(), rel=0.01)
