"""`states:0.25` removes the state channels that add nothing, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.train_tiny import small, write_documents

import jaxseq
from jaxseq import UserError, recipes, registry, weights
from jaxseq.call import Call
from jaxseq.compress import states
from jaxseq.compress._calibration import Calibration
from jaxseq.compress._work import Work

WIDTH = 16
# {mixer: (fields, state channels of a group, {parameter that reads the state: the index of channel i of group g in one layer})}
MIXERS = {
    "mamba": ({"state_size": 8}, 8, {"x/kernel": lambda g, i: (..., 1 + 8 + i)}),  # dt_rank 1, B, C
    "mamba2": (  # in: z and x, B of two groups, C of two groups
        {"state_size": 8, "heads": 2, "groups": 2}, 8,
        {"in/kernel": lambda g, i: (..., 64 + 16 + 8 * g + i), "conv_bias": lambda g, i: (..., 32 + 16 + 8 * g + i)},
    ),
    "gla": ({"heads": 2, "key_factor": 1.0}, 8, {"q/kernel": lambda g, i: (..., g, i)}),
    "retention": ({"heads": 1}, 8, {"q/kernel": lambda g, i: (..., slice(2 * i, 2 * i + 2))}),
    "rwkv6": ({"heads": 2, "mix_rank": 4, "decay_rank": 4}, 8, {"r/kernel": lambda g, i: (..., g, i)}),
    "s4d": ({"state_size": 16}, 8, {"C": lambda g, i: (..., i, slice(None))}),
    "hyena_modal": ({"state_size": 8, "order": 3}, 8, {"residues": lambda g, i: (g, slice(None), i)}),
}  # fmt: skip


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return write_documents(tmp_path_factory.mktemp("documents"))


def made(documents, stack: str, label: str, fields: dict) -> Work:
    """A model with random weights, and small documents for calibration."""
    values = {"model.stack": stack, "model.width": WIDTH, "model.vocab": 257}
    values |= {f"model.{label}.{name}": value for name, value in fields.items()}
    config = jaxseq.config("mamba", **values | small(documents))
    params = jaxseq.build(config).init(jax.random.key(0))["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype), params)
    task = registry.load("train.objectives", "next_token").task(config)
    return Work(config, params, lambda line: None, Calibration(task, 128, lambda line: None))


def logits(work: Work) -> np.ndarray:
    tokens = jax.random.randint(jax.random.key(2), (2, 16), 0, 256)
    return np.asarray(jax.jit(work.model.apply)({"params": work.params}, tokens)[0])


def state_numbers(work: Work) -> int:
    return sum(x.size for x in jax.tree.leaves(work.model.init_state(1).segments))


DEFAULT = ("mamba", "retention")  # the others are slow tests


@pytest.mark.parametrize("name", [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in MIXERS])
def test_channels_that_add_nothing_are_removed(documents, name):
    """A quarter of the channels of each layer and group, chosen at random, is not read; these go, and the logits are equal."""
    fields, count, read = MIXERS[name]
    work, rng = made(documents, f"2*({name})", name, fields), np.random.default_rng(0)
    place = states.places(work)[0][0]
    silent = {layer: [rng.permutation(count)[: count // 4] for _ in range(place.states.groups)] for layer in range(2)}
    if place.states.shared:
        silent[1] = silent[0]
    new = {f"blocks_0/{name}/{path}": np.array(weights.leaves(work.params)[f"blocks_0/{name}/{path}"]) for path in read}
    for path, index in read.items():
        for layer, groups in silent.items():
            for group, channels in enumerate(groups):
                for channel in channels:
                    new[f"blocks_0/{name}/{path}"][layer][index(group, channel)] = 0
    work = work.with_arrays({path: jnp.asarray(x) for path, x in new.items()})
    ((module, argument),) = recipes.steps("compress", "states:0.25")
    smaller = module.apply(work, argument)
    shapes = {path: box.value.shape for path, box in weights.leaves(smaller.boxes).items()}
    assert shapes == {path: x.shape for path, x in weights.leaves(smaller.params).items()}, "the config says the new sizes"
    assert state_numbers(smaller) < 0.9 * state_numbers(work)
    np.testing.assert_allclose(logits(smaller), logits(work), rtol=1e-4, atol=1e-4)
    if name == "retention":  # the numbers of its pairs are those of the first model
        kept = sorted(set(range(count)) - set(silent[0][0]))
        assert smaller.config.model.retention.pairs == " ".join(map(str, kept))
        again = module.apply(smaller, argument).config.model.retention.pairs.split()
        assert len(again) == 4 and set(map(int, again)) < set(kept)


@pytest.mark.parametrize("name", ["gla", pytest.param("retention", marks=pytest.mark.slow)])
def test_without_a_removed_channel_nothing_changes(documents, name):
    fields, count, _ = MIXERS[name]
    work = made(documents, f"2*({name})", name, fields)
    found, left = states.places(work)
    groups = found[0].states.groups
    same = states.without(work, found, {found[0].prefix: np.broadcast_to(np.arange(count), (2, groups, count))})
    assert not left and jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), same.params, work.params))
    np.testing.assert_array_equal(logits(same), logits(work))


def test_scores_are_relative_changes_of_the_output(documents):
    """Of blocks that are used twice, both uses count."""
    fields, count, _ = MIXERS["gla"]
    work = made(documents, "2/1*(gla)", "gla", fields)
    (place,), _ = states.places(work)
    found = states.scores(work, [place])[place.prefix]
    params = jax.tree.map(lambda x: x[0], work.params["blocks_0"]["gla"])
    silent = weights.replaced(params, {"q/kernel": params["q"]["kernel"].at[:, 1, 3].set(0)}, None)
    change, total = 0.0, 0.0
    for batch in work.calibration.rows:
        inputs = states._inputs(work.model, "chunkwise", work.params, batch["tokens"], batch["pos"])
        x_BTD, pos_BT = inputs["blocks_0/gla/input/0"][0], inputs["blocks_0/gla/positions/0"][0]
        assert x_BTD.shape[0] == 2 * batch["tokens"].shape[0]
        call = Call.of(pos_BT, "chunkwise")
        y, other = (np.float64(place.mixer.apply({"params": own}, x_BTD, None, call).y_BTD) for own in (params, silent))
        change, total = change + np.sum((y - other) ** 2), total + np.sum(y**2)
    assert found.shape == (1, 2, count)
    np.testing.assert_allclose(found[0, 1, 3], change / total, rtol=1e-4)


@pytest.mark.parametrize(
    ("stack", "fields", "told"),
    [
        ("1*(attention mlp)", {}, "Attention has no state channels"),
        ("1*(mamba)", {"model.mamba.selected_norm": "plain"}, "normalises over all state channels"),
        ("1*(rwkv5)", {}, "the keys and values of RWKV5 have one size"),
        ("1*(gdn)", {}, "unit length"),
        ("1*(s4)", {}, "couples its modes"),
        ("1*(h3)", {}, "taps of H3's shift"),
        ("1*(mamba)", {"model.mamba.state_size": 1}, "none or all"),
    ],
)
def test_why_none_can_be_removed_is_said(documents, stack, fields, told):
    values = {"model.stack": stack, "model.width": WIDTH, "model.vocab": 257} | fields
    config = jaxseq.config("mamba", **values | small(documents))
    params = jaxseq.build(config).init(jax.random.key(0))["params"]
    with pytest.raises(UserError, match=told) as caught:
        states.apply(Work(config, params, lambda line: None, None), "0.25")
    assert "\n" not in str(caught.value)
