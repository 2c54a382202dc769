"""The defining property of each step of a recipe, on a Transformer, a RetNet, a Mamba and an RWKV."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.train_tiny import small, write_documents

import jaxseq
from jaxseq import UserError, forms, recipes, registry, weights
from jaxseq.compress import _units, layers, lowrank, sparsegpt
from jaxseq.compress._calibration import Calibration
from jaxseq.compress._prune import Pattern
from jaxseq.compress._run import count
from jaxseq.compress._work import Work

STACKS = {
    "transformer": "3*(attention swiglu)",
    "retnet": "2*(retention mlp)",
    "mamba": "3*(mamba)",
    "rwkv6": "2*(rwkv6 rwkv_channel)",
}


# retnet is a slow test: its maps are those of the others.
@pytest.fixture(scope="module", params=[pytest.param(n, marks=[pytest.mark.slow] if n == "retnet" else []) for n in STACKS])
def work(request, tmp_path_factory):
    """A model with random non-zero weights, and small documents for calibration."""
    documents = write_documents(tmp_path_factory.mktemp("documents"))
    fields = {"model.width": 32, "model.stack": STACKS[request.param], "model.vocab": 257}
    config = jaxseq.config(request.param, **fields | small(documents))
    params = jaxseq.build(config).init(jax.random.key(0))["params"]
    keys = iter(jax.random.split(jax.random.key(1), 100))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)
    task = registry.load("train.objectives", "next_token").task(config)
    return Work(config, params, lambda line: None, Calibration(task, 256, lambda line: None))


# For steps that treat all matrices alike, whatever their mixer: the other two are slow tests.
TWO = [n if n in ("transformer", "mamba") else pytest.param(n, marks=pytest.mark.slow) for n in STACKS]


def applied(work: Work, recipe: str) -> Work:
    for module, argument in recipes.steps("compress", recipe):
        work = module.apply(work, argument)
    shapes = jax.tree.map(lambda box: (box.value.shape, box.value.dtype), work.boxes, is_leaf=lambda x: hasattr(x, "contracts"))
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), work.params), "config.model.weights describes the parameters"
    return work


def logits(work: Work, params=None) -> np.ndarray:
    tokens = jax.random.randint(jax.random.key(2), (2, 16), 0, 256)
    params = work.params if params is None else params
    return np.asarray(jax.jit(work.model.apply)({"params": params}, tokens)[0])


def kernels(work: Work) -> dict[str, np.ndarray]:
    """The matrices of the blocks, [N, inputs, outputs], as plain arrays."""
    plain = weights.leaves(weights.merged(work.params))
    boxes = weights.leaves(work.model.boxed()["params"])
    return {p: np.asarray(weights.matrices(b, plain[p])) for p, b in boxes.items() if b.contracts and b.contracts != (-1,)}


KINDS = [("int8", 8, 0.05), ("w8a8", 8, 0.1), ("fp8", 8, 0.15), ("int4", 4, 0.6), ("nf4", 4, 0.6)]
DEFAULT = {("mamba", "nf4"), ("rwkv6", "int8")}  # and all kinds of a Transformer; the others are slow tests
QUANTIZED = [
    pytest.param(name, *kind, marks=[] if name == "transformer" or (name, kind[0]) in DEFAULT else [pytest.mark.slow])
    for name in STACKS
    for kind in KINDS
]


@pytest.mark.parametrize(("work", "kind", "bits", "error"), QUANTIZED, indirect=["work"])
def test_quantized_weights_take_their_bits_and_compute_nearly_the_same(work, kind, bits, error):
    made = applied(work, kind)
    codes = [x for path, x in weights.leaves(made.params).items() if path.endswith("/codes")]
    old = weights.leaves(work.params)
    numbers = sum(old[path].size for path, box in weights.leaves(work.model.boxed()["params"]).items() if box.contracts)
    assert sum(x.nbytes for x in codes) * 8 == bits * numbers
    wanted = logits(work)
    assert np.linalg.norm(logits(made) - wanted) < error * np.linalg.norm(wanted)
    if kind == "w8a8":
        assert made.config.model.weights.count("int8 = ") == 1  # of what is no linear map
        assert all(path in dict(made.left) for path, box in weights.leaves(work.plain).items() if box.contracts == (-1,))
        return
    np.testing.assert_allclose(logits(made), logits(made, weights.merged(made.params)), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("work", TWO, indirect=True)
@pytest.mark.parametrize("kind", ["w8a8", "nf4"])
def test_the_recurrence_computes_in_float32(work, kind):
    """No op of a compressed model, recurrent or chunkwise, reads or computes a number in 8 or 16 bits."""
    made, seen = applied(work, kind), {}

    def note(op, form, xs, kwargs):
        own = {name: value for name, value in kwargs.items() if isinstance(value, jax.Array) or name == "state"}
        fixed = {name: value for name, value in kwargs.items() if name not in own}
        shapes = jax.eval_shape(lambda *x: x, xs, own)
        run = lambda xs, own: registry.load("ops", op).FORMS[form](*xs, **own, **fixed)  # noqa: E731
        seen[op, form] = str(jax.make_jaxpr(run)(*shapes))

    def run(params, form, time):
        tokens, state = jnp.zeros((1, time), jnp.int32), made.model.init_state(1, 16)
        return made.model.apply({"params": params}, tokens, state, form=forms.plan(form, seen=note))

    for form, time in (("recurrent", 1), ("chunkwise", 9)):
        jax.eval_shape(lambda params, form=form, time=time: run(params, form, time), made.params)
    assert {form for _, form in seen} == {"recurrent", "chunkwise"}
    for place, program in seen.items():
        assert "f32[" in program and not re.findall(r"\b(?:[iu](?:4|8|16)|bf16|f16|f8\w*)\[", program), place


@pytest.mark.parametrize("kind", ["int8", "w8a8", "nf4", "wanda:0.5", "lowrank:0.5"])
def test_the_arithmetic_of_the_recurrence_is_not_touched(work, kind):
    """Parameters that multiply no activation (decays, step sizes, convolutions, norms) stay float32 arrays, bit for bit."""
    made, boxes = applied(work, kind), weights.leaves(work.model.boxed()["params"])
    before, after = weights.leaves(work.params), weights.leaves(made.params)
    kept = [path for path, box in boxes.items() if not box.contracts]
    assert kept and all(after[path].dtype == jnp.float32 and (after[path] == before[path]).all() for path in kept)
    named = dict(made.left)
    assert all(path in named for path in kept if path.endswith(("A_log", "conv_kernel", "time_first", "decay_a")))


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
def test_pruning_makes_exactly_these_zeros(work, name):
    half, pattern = applied(work, f"{name}:0.5"), applied(work, f"{name}:2:4")
    for path, w in kernels(half).items():
        if name == "wanda":
            assert (np.sum(w == 0, axis=1) == round(w.shape[1] / 2)).all(), path
        else:
            assert abs(np.mean(w == 0) - 0.5) < 1e-6, path
    for path, w in kernels(pattern).items():
        if w.shape[1] % 4:
            assert path in dict(pattern.left)
        else:
            blocks = w.reshape(w.shape[0], -1, 4, w.shape[2])
            assert (np.sum(blocks == 0, axis=2) == 2).all(), path
    assert count(half.params) < count(work.params)


@pytest.mark.parametrize("work", TWO, indirect=True)
def test_zeros_stay_zero_in_further_training(work):
    """The gradient at a zero is zero, also after quantization."""
    made = applied(work, "magnitude:0.5")
    loss = lambda params: jnp.sum(jnp.square(made.model.apply({"params": params}, jnp.arange(8)[None])[0]))  # noqa: E731
    grads = jax.jit(jax.grad(loss))(made.params)
    for w, g in zip(jax.tree.leaves(made.params), jax.tree.leaves(grads), strict=True):
        assert not (g[w == 0]).any()
    for path, w in kernels(applied(made, "nf4")).items():
        assert np.mean(w == 0) >= 0.5 - 1e-6, path


@pytest.mark.parametrize("work", TWO, indirect=True)
def test_low_rank_factors_have_half_of_the_numbers(work):
    made = applied(work, "lowrank:0.5")
    arrays = weights.leaves(made.params)
    factored = {path.removesuffix("/a") for path in arrays if path.endswith("/a")}
    for path, w in kernels(work).items():
        if path in factored:
            a, b = arrays[f"{path}/a"], arrays[f"{path}/b"]
            rank = a.shape[-1]
            assert a.size + b.size <= w.size / 2 < w.shape[0] * (rank + 1) * (w.shape[1] + w.shape[2])
            assert np.linalg.matrix_rank(kernels(made)[path][0]) <= rank
    assert factored


@pytest.mark.parametrize("work", TWO, indirect=True)
def test_quantized_factors(work):
    """A step applies to the factors of an earlier one."""
    made = applied(work, "lowrank:0.5+int8")
    assert any(path.endswith("kernel/a/codes") for path in weights.leaves(made.params))
    assert np.isfinite(logits(made)).all()


def test_a_removed_layer_is_one_that_was_skipped(work):
    """The smaller network equals the larger one with that layer's output projections set to zero."""
    made = layers.without(work, 0, 1)
    skipped = {
        path: x.at[1].set(0)
        for path, x in weights.leaves(work.params).items()
        if path.endswith(("o/kernel", "down/kernel", "out/kernel", "v/kernel")) or path.endswith("down/bias")
    }
    if "attention" in work.config.model.stack:  # attention's v is not an output projection
        skipped = {path: x for path, x in skipped.items() if "attention/v" not in path}
    np.testing.assert_allclose(logits(made), logits(work, weights.replaced(work.params, skipped, None)), rtol=1e-4, atol=1e-4)
    assert applied(work, "layers:0.34").config.model.stack.startswith(str(len(jax.tree.leaves(work.params)[0]) - 1))


@pytest.mark.parametrize("kind", ["heads", "channels"])
def test_removed_units_are_those_that_were_zero(work, kind):
    """The smaller mixer equals the larger one with the removed units' inputs to the output projection set to zero."""
    if kind == "heads" and "attention" not in work.config.model.stack:
        with pytest.raises(UserError, match="no heads can be removed"):
            applied(work, "heads:0.25")
        return
    made = applied(work, f"{kind}:0.25")
    assert count(made.params) < count(work.params)
    own, zero = next(iter(found(work, kind))), {}
    grams = work.calibration.grams(work.config, work.params)
    for part in found(work, kind):
        keep = part.units.count - round(0.25 * part.units.count)
        dropped = np.argsort(-_units.scores(part, grams), axis=1, kind="stable")[:, keep:]
        for path, box in part.boxes.items():
            if box.contracts and box.names[-1] == "embed" and set(box.names[1:-1]) & set(part.units.axes):
                array = np.array(part.arrays[path])
                for layer, units in enumerate(dropped):
                    array[layer][_units.members(part.units, box.names[1], array.shape[1])[units].reshape(-1)] = 0
                zero[path] = jnp.asarray(array)
    assert own and zero
    expected = logits(work, weights.replaced(work.params, zero, None))
    if "mamba" in work.config.model.stack:  # dt, B and C depend on all channels
        inner = {p.replace("out/", "x/"): weights.leaves(work.params)[p.replace("out/", "x/")] for p in zero}
        masks = {p.replace("out/", "x/"): np.abs(zero[p]).sum(-1, keepdims=True) != 0 for p in zero}
        expected = logits(work, weights.replaced(work.params, zero | {p: x * masks[p] for p, x in inner.items()}, None))
    np.testing.assert_allclose(logits(made), expected, rtol=1e-4, atol=1e-4)


def found(work: Work, kind: str) -> list:
    mixers = [mixer for mixer in work.model.blocks[0].mixers if not isinstance(mixer.units(kind), str)]
    return [_units._removable(work, f"blocks_0/{mixer.name}", mixer.units(kind)) for mixer in mixers]


def correlated(rng) -> tuple[np.ndarray, np.ndarray]:
    """A matrix [24, 10], and correlated inputs [400, 24]."""
    x_NI = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 24)) + 0.1 * rng.normal(size=(400, 24))
    return rng.normal(size=(24, 10)), x_NI


@pytest.mark.parametrize("text", ["0.5", "2:4"])
def test_sparsegpt_errs_less_than_magnitude_and_wanda_on_correlated_inputs(text):
    w_IO, x_NI = correlated(np.random.default_rng(0))
    pattern, gram_II = Pattern.of(text, "sparsegpt"), x_NI.T @ x_NI
    error = lambda other_IO: np.linalg.norm(x_NI @ (other_IO - w_IO))  # noqa: E731
    own = error(sparsegpt.solve(w_IO, gram_II, pattern))
    score_IO = np.abs(w_IO) * np.sqrt(np.diagonal(gram_II))[:, None]
    others = [np.where(pattern.zeros(score, per_output=False), 0, w_IO) for score in (np.abs(w_IO), score_IO)]
    assert own < 0.7 * min(map(error, others))


def test_sparsegpt_without_correlation_is_magnitude():
    """With independent inputs of equal norms, the other weights cannot compensate."""
    w_IO, pattern = np.random.default_rng(0).normal(size=(16, 8)), Pattern.of("0.5", "sparsegpt")
    found = sparsegpt.solve(w_IO, np.eye(16), pattern)
    np.testing.assert_allclose(found, np.where(pattern.zeros(np.abs(w_IO), per_output=False), 0, w_IO), atol=1e-12)


def test_low_rank_has_the_smallest_error_on_the_inputs():
    """It follows from the singular values of X W (Eckart and Young 1936), and is smaller than that of the SVD of W."""
    w_IO, x_NI = correlated(np.random.default_rng(1))
    a_IR, b_RO = lowrank.factors(w_IO, x_NI.T @ x_NI, 3)
    best = np.sqrt(np.sum(np.linalg.svd(x_NI @ w_IO)[1][3:] ** 2))
    np.testing.assert_allclose(np.linalg.norm(x_NI @ (a_IR @ b_RO - w_IO)), best, rtol=1e-3)
    u, s, v = np.linalg.svd(w_IO, full_matrices=False)
    assert best < 0.9 * np.linalg.norm(x_NI @ ((u[:, :3] * s[:3]) @ v[:3] - w_IO))


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("int9", "no step 'int9'"),
        ("", "no step ''"),
        ("int8:3", "int8 takes no argument"),
        ("wanda", "needs a fraction"),
        ("wanda:1.5", "needs a fraction"),
        ("wanda:4:2", "not a pattern N:M"),
        ("wanda:0.5+lowrank:0.5", "put lowrank before pruning"),
        ("int8+channels:0.25", "put these steps first"),
        ("int8+nf4", "changes nothing"),
    ],
)
@pytest.mark.parametrize("work", ["mamba"], indirect=True)
def test_a_bad_recipe_is_one_line(work, recipe, told):
    with pytest.raises(UserError, match=told):
        applied(work, recipe)
