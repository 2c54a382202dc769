"""UniRepLKNet for images: sizes, batch norm, drop path, and merging and tiles in float64 with random statistics."""

import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.train_tiny import finish as wait_for
from helpers.train_tiny import launch

import jaxseq
from jaxseq.compat import enable_x64
from jaxseq.config import base, finish
from jaxseq.errors import UserError
from jaxseq.mixers import _reparam
from jaxseq.models import _unireplknet_blocks as parts
from jaxseq.models._unireplknet_merge import merge_block
from jaxseq.models.unireplknet import merge, parse, tiled
from jaxseq.testing import compare
from jaxseq.train import load_variables, train
from jaxseq.train.objectives import classification


def randomised(variables, seed=0):
    """Parameters moved away from their initial values, normal running means, running variances between 2 and 3."""
    rng = np.random.default_rng(seed)
    draws = {"mean": lambda x: rng.normal(size=x.shape), "var": lambda x: rng.uniform(2, 3, size=x.shape)}
    draw = lambda path, x: np.asarray(draws.get(path[-1].key, lambda x: x)(x), x.dtype)  # noqa: E731
    params = jax.tree.map(lambda x: np.asarray(x + 0.1 * rng.normal(size=x.shape), x.dtype), variables["params"])
    return {"params": params, "batch_stats": jax.tree_util.tree_map_with_path(draw, variables["batch_stats"])}


def build(stages, **fields):
    fields = {"stages": stages, "classes": 5} | fields
    return jaxseq.build(finish(base("unireplknet"), **{f"model.{key}": value for key, value in fields.items()}))


@pytest.mark.parametrize("kernel", [3, 13])
def test_merged_block_is_the_branches(kernel, x64):
    """Batch norms with random statistics, GRN's bias and layer scale are all folded into the merged kernels."""
    block = parts.UniRepLKNetBlock(width=4, kernel=kernel, dtype=jnp.float64)
    x_BYXD = jax.random.normal(jax.random.key(1), (1, 11, 9, 4), jnp.float64)  # less than the largest kernel
    shapes = nn.meta.unbox(jax.eval_shape(block.init, jax.random.key(0), x_BYXD))
    variables = randomised(jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes), kernel)

    @jax.jit
    def both(params, stats):
        merged = merge_block(params, stats, kernel)
        trained = block.apply({"params": params, "batch_stats": stats}, x_BYXD)
        return trained - x_BYXD, block.clone(merged=True).apply({"params": merged}, x_BYXD) - x_BYXD

    wanted, got = both(**{"params": variables["params"], "stats": variables["batch_stats"]})
    assert compare.error(got, wanted) < 1e-11


@pytest.mark.parametrize("kernel", _reparam.BRANCHES)
def test_one_kernel_is_the_sum_of_dilated_convolutions(kernel):
    """Each branch is a loop over its taps around the centre, with zeros outside the image."""
    rng = np.random.default_rng(0)
    x_YX, own = rng.normal(size=(8, 9)), ((kernel, 1), *_reparam.branches(kernel))
    weights = [rng.normal(size=(taps, taps)) for taps, _ in own]
    around = np.pad(x_YX, kernel)
    wanted = np.zeros(x_YX.shape)
    for w, (taps, dilation) in zip(weights, own, strict=True):
        for i, j in np.ndindex(w.shape):
            y, x = (kernel + dilation * (n - taps // 2) for n in (i, j))
            wanted += w[i, j] * around[y : y + 8, x : x + 9]
    with enable_x64(True):
        one = sum(
            _reparam.spread(jnp.asarray(w), r, kernel, 2, _reparam.centre(taps, r, kernel))
            for w, (taps, r) in zip(weights, own, strict=True)
        )
        got = parts.depthwise(jnp.asarray(x_YX)[None, :, :, None], one[:, :, None])
    assert compare.error(got[0, :, :, 0], wanted) < 1e-12


def test_merged_model_and_tiles(x64):
    """An image with odd sides: whole, merged, and in tiles that do not divide it."""
    model = build("2*8:3 2*12:7", dtype="float64")
    shapes = jax.tree.map(lambda box: box.value, model.boxed(), is_leaf=lambda leaf: hasattr(leaf, "names"))
    draw = np.random.default_rng(0)
    variables = randomised(jax.tree.map(lambda leaf: np.asarray(draw.normal(size=leaf.shape), leaf.dtype), shapes))
    images = draw.normal(size=(2, 53, 38, 3))
    both = lambda model, v: (model.apply(v, images), model.apply(v, images, features=True))  # noqa: E731
    whole = jax.jit(functools.partial(both, model))(variables)
    merged = merge(model, variables)
    assert compare.error(jax.jit(merged[0].apply)(merged[1], images), whole[0]) < 1e-11
    assert compare.worst(tiled(model, variables, images, 6, features=True), whole[1])[0] < 1e-11
    assert compare.error(tiled(*merged, images, 6), whole[0]) < 1e-11
    with pytest.raises(UserError, match="tile=0 is not positive"):
        tiled(model, variables, images, 0)


def test_batch_norm_is_torchs(x64):
    """Normalised by the batch's biased variance; running statistics by momentum 0.1 and the unbiased one."""
    norm = parts.BatchNorm(dtype=jnp.float64)
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, size=(3, 2, 5, 4))
    params = {"scale": rng.normal(size=4), "bias": rng.normal(size=4)}
    stats = {"mean": rng.normal(size=4), "var": rng.uniform(1, 2, 4), "count": jnp.int32(7)}
    variables = {"params": params, "batch_stats": stats}
    y, changed = norm.apply(variables, x, True, mutable="batch_stats")
    axes = (0, 1, 2)
    plain = (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5) * params["scale"] + params["bias"]
    assert compare.error(y, plain) < 1e-12
    after = {"mean": 0.9 * stats["mean"] + 0.1 * x.mean(axes), "var": 0.9 * stats["var"] + 0.1 * x.var(axes, ddof=1)}
    assert compare.worst(changed["batch_stats"], after | {"count": 8})[0] < 1e-12
    running = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]
    assert compare.error(norm.apply(variables, x, False), running) < 1e-12
    assert compare.error(norm.apply(variables, x, True), plain) < 1e-12  # statistics that must not change


def test_training_changes_every_statistic_and_evaluation_none():
    model = build("2*8:7", drop_path=0.5)
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))

    @jax.jit
    def run(variables, key):
        apply = functools.partial(model.apply, variables, images, rngs={"dropout": key}, mutable="batch_stats")
        return apply(train=True), apply(train=False)

    variables = jax.jit(model.init)(jax.random.key(0))
    (logits, changed), evaluated = run(variables, jax.random.key(2))
    before = jax.tree_util.tree_leaves_with_path(variables["batch_stats"])
    for (path, old), new in zip(before, jax.tree.leaves(changed["batch_stats"]), strict=True):
        assert np.all(np.any(np.reshape(old != new, (2, -1)), axis=1)), path
    assert compare.worst(evaluated[1]["batch_stats"], variables["batch_stats"])[0] == 0
    variables = {"params": randomised(variables)["params"], "batch_stats": changed["batch_stats"]}
    first, second = run(variables, jax.random.key(2)), run(variables, jax.random.key(3))
    assert not np.array_equal(first[0][0], second[0][0]) and np.array_equal(first[1][0], second[1][0])


def test_drop_path_keeps_the_mean():
    block, x_BYXD = (
        parts.UniRepLKNetBlock(width=4, kernel=3, layer_scale=1.0),
        jax.random.normal(jax.random.key(1), (400, 2, 2, 4)),
    )

    @jax.jit
    def both(key):
        variables = nn.meta.unbox(block.init(key, x_BYXD))
        dropped = block.apply(variables, x_BYXD, jnp.float32(0.25), True, rngs={"dropout": jax.random.key(2)})
        return block.apply(variables, x_BYXD, None, True) - x_BYXD, dropped - x_BYXD

    whole, got = jax.device_get(both(jax.random.key(0)))
    kept = np.any(got != 0, axis=(1, 2, 3))
    assert 0.68 < kept.mean() < 0.82
    assert compare.error(got[kept] * 0.75, whole[kept]) < 1e-4


def test_sizes_are_the_published_ones():
    """Parameters of the merged models, from shapes alone, as listed on the released page."""
    published = {"a": 4.4, "f": 6.2, "p": 10.7, "n": 18.3, "t": 31, "s": 56, "b": 98, "l": 218, "xl": 386}
    counts = {}
    for name in published:
        config = jaxseq.config(f"unireplknet_image:{name}", **{"model.merged": True, "model.classes": 1000})
        params = jaxseq.build(config).boxed()["params"]
        counts[name] = sum(math.prod(x.shape) for x in jax.tree.leaves(params)) / 1e6
    for name, millions in published.items():
        printed = 0.05 if millions < 30 else 0.5  # half of the last digit
        assert abs(counts[name] - millions) < max(printed, 0.005 * millions), counts


@pytest.mark.parametrize("stages", ["", "2*40", "0*40:3", "2*41:3", "2*40:4", "2*40:13,8"])
def test_stages_that_cannot_be(stages):
    with pytest.raises(UserError, match=r"stages|branches"):
        parse(stages)


def test_branches_fit_their_kernels():
    for kernel, branches in _reparam.BRANCHES.items():
        for taps, dilation in branches:
            assert dilation * (taps - 1) + 1 <= kernel


def pictures(path, count=48):
    """Two classes: white noise, and noise that is smooth along the rows."""
    random = np.random.default_rng(0)
    labels = np.arange(count) // 3 % 2
    rough = random.integers(0, 256, (count, 16, 16, 3))
    smooth = np.stack([np.roll(rough, n, axis=2) for n in range(4)]).mean(0)
    np.savez(path, images=np.where(labels[:, None, None, None], smooth, rough).astype(np.uint8), labels=labels)
    return str(path)


def run_of(tmp_path, **fields):
    """The config of a run on the images."""
    fixed = {"data.path": pictures(tmp_path / "pictures.npz"), "data.validation_every": 4, "model.stages": "1*8:3 1*8:7"}
    fixed |= {"train.batch": 8, "train.warmup": 1, "train.lr": 1e-2, "eval.batch": 12}
    return jaxseq.config("unireplknet_image", **fixed | fields)


def test_statistics_travel_through_training_and_checkpoints(tmp_path):
    """A resumed run ends with the same values, including running statistics, and evaluates with them."""
    fields = {"train.steps": 40, "train.accumulate": 2, "train.checkpoint_every": 20, "train.keep": 3}
    record = train(run_of(tmp_path, **fields), tmp_path)
    model, variables, config = load_variables(tmp_path)
    half = load_variables(tmp_path, step=20)[1]
    assert set(half) == set(variables) == {"params", "batch_stats"}
    for found, batches in ((half, 20 * 2), (variables, 40 * 2)):
        leaves = jax.tree_util.tree_leaves_with_path(found["batch_stats"])
        assert {int(x[0]) for path, x in leaves if path[-1].key == "count"} == {batches}
    shutil.rmtree(tmp_path / "checkpoints" / "40")
    train(config, tmp_path)
    assert compare.worst(load_variables(tmp_path)[1], variables)[0] == 0

    task = classification.task(config)
    result = task.evaluate(model, variables)
    assert result["accuracy"] == record["validation_accuracy"] > 0.9
    assert task.evaluate(*merge(model, variables))["loss"] == pytest.approx(result["loss"], rel=1e-3)


ON_FOUR = """
import json, sys
import jax
from jaxseq.config import from_dict
from jaxseq.train import mesh, prepare
from jaxseq.train.objectives import classification

task = classification.task(from_dict(json.loads(sys.argv[1])))
for sizes in ({}, {"data": 2, "fsdp": 2}):
    task.config.mesh.update(sizes)
    trainer = prepare(task.config, jax.devices()[: 4 if sizes else 1])
    batch = mesh.put_batch(next(task.batches(0, 1)), trainer.mesh, task.config.train.batch)
    with trainer.scope():
        state = jax.jit(trainer.step)(trainer.init(), batch)[0]
    print(json.dumps([leaf.tolist() for leaf in jax.tree.leaves(state.collections)]))
"""


@pytest.mark.slow
def test_statistics_are_those_of_all_devices(tmp_path):
    """A batch on four devices is normalised as a whole, and the statistics are those of the whole batch."""
    out = wait_for(launch(run_of(tmp_path), tmp_path, 4, ON_FOUR), 300)
    one, four = map(json.loads, out.splitlines()[-2:])
    for got, wanted in zip(four, one, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
