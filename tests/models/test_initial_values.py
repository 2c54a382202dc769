"""Initial values of every tensor against the published code's (tests/helpers/initial_values.py)."""

import re

import jax
import numpy as np
import pytest
from helpers.initial_values import NORMS, TABLE, Start

import jaxseq
from jaxseq import registry
from jaxseq.errors import UserError

SIGMAS = 5.0
LARGE = 2000  # elements needed to recognise a distribution


def paths(params, read: bool = True) -> dict[str, list[tuple[str, np.ndarray]]]:
    """{path without the block: [(block, array)]}"""
    found: dict = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda leaf: hasattr(leaf, "names")):
        names = [str(key.key) for key in keys]
        block = names.pop(0) if names[0].startswith("blocks_") else ""
        found.setdefault("/".join(names), []).append((block, np.asarray(leaf, np.float64) if read else leaf))
    return found


def initialised(name: str, seed: int = 0, **overrides):
    model = jaxseq.build(jaxseq.config(name, **overrides))
    return model, jax.jit(lambda key: model.init(key))(jax.random.key(seed))["params"]


def start_of(name: str, path: str) -> Start:
    matching = [
        start for _, rows in [NORMS, *TABLE[name]] for pattern, start in rows.items() if re.fullmatch(f"(?:{pattern})", path)
    ]
    assert matching, f"the table has no row for {path} of {name}: add it, with its source"
    return matching[0]


def check_random(x: np.ndarray, form: str, std: float, mean: float = 0.0):
    n, x = x.size, (x - mean).ravel()
    assert abs(x.mean()) < SIGMAS * std * n**-0.5
    assert abs(x.std() / std - 1) < SIGMAS * (2 * n) ** -0.5 + 2 / n
    farthest = {"uniform": 3**0.5, "truncated": 2 / 0.8796}.get(form)
    if farthest:
        assert abs(x).max() <= farthest * std * (1 + 1e-3)
    if n >= LARGE:
        kurtosis = (x**4).mean() / x.var() ** 2
        assert abs(kurtosis - {"uniform": 1.8, "truncated": 2.37}.get(form, 3.0)) < 0.25 + SIGMAS * (24 / n) ** 0.5


def check_orthogonal(x: np.ndarray, std: float):
    for matrix in x:
        matrix = matrix.reshape(matrix.shape[0], -1)
        matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        square = std**2 * matrix.shape[1]
        np.testing.assert_allclose(matrix @ matrix.T, square * np.eye(len(matrix)), atol=2e-3 * square)


def check_special(x: np.ndarray, form: str):
    """Distributions that only one tensor has: a function of it is uniform, or known."""
    if form == "step":
        log_dt = np.log(np.log1p(np.exp(x)))
        check_random(log_dt, "uniform", np.log(100) / 12**0.5, np.log(0.01))
    elif form == "ring":
        check_random(np.exp(-2 * np.log1p(np.exp(x))), "uniform", (0.999**2 - 0.9**2) / 12**0.5, (0.999**2 + 0.9**2) / 2)
    elif form == "poles":  # angles, and decays from 1/2 to 1/500
        check_random(x[..., 1], "uniform", np.pi / 12**0.5, np.pi / 2)
        decays = np.broadcast_to(np.geomspace(0.5, 0.002, 8), x.shape[:-1])
        np.testing.assert_allclose(np.log1p(np.exp(x[..., 0])), decays, rtol=1e-4)
    elif form == "residues":  # of filters with norm about 1
        check_random(x / np.sqrt(-np.expm1(-2 * np.geomspace(0.5, 0.002, 8)) / 8)[:, None], "normal", 1.0)
    elif form == "position":  # time, cosines and sines
        angle = 2 * np.pi * np.arange(256)[:, None] / 256 * np.linspace(1e-4, 1, 2)
        wanted = np.concatenate([np.linspace(0, 1, 256)[:, None], np.cos(angle), -np.sin(angle)], axis=1)
        np.testing.assert_allclose(x, np.broadcast_to(wanted, x.shape), atol=1e-5)
    else:
        raise AssertionError(f"no such form: {form}")


def check(start: Start, block: str, x: np.ndarray):
    if start.form == "fixed":
        first = 0 if block in ("", "blocks_0") else 1  # rwkv7's second segment begins with layer 1
        for i, layer in enumerate(x if block else x[None]):
            wanted = start.values(first + i) if callable(start.values) else start.values
            wanted = np.reshape(wanted, layer.shape) if np.size(wanted) == layer.size else wanted
            np.testing.assert_allclose(layer, np.broadcast_to(wanted, layer.shape), atol=3e-6)
    elif start.form == "orthogonal":
        check_orthogonal(x if block else x[None], start.std)
    elif start.form == "exp_uniform":
        check_random(np.exp(x), "uniform", start.std, start.mean)
    elif start.std is None:
        check_special(x, start.form)
    else:
        check_random(x, start.form, start.std, start.mean)


# An architecture whose config's docstring says that it has the default initial values needs no table.
NAMES = [name for name in jaxseq.names() if "Initial values: the defaults." not in registry.doc(registry.load("configs", name))]


@pytest.mark.parametrize("name", NAMES)
def test_the_table_has_every_tensor(name):
    for path in paths(jaxseq.build(jaxseq.config(name)).boxed()["params"], read=False):
        start_of(name, path)
    assert set(TABLE) == set(NAMES)


ORDINARY = ("transformer", "neox", "retnet", "mamba", "rwkv6", "s4d", "griffin")  # one of each recipe; the others are slow


@pytest.mark.parametrize("name", [n if n in ORDINARY else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_every_tensor_starts_where_the_published_code_has_it(name):
    wrong = []
    for path, arrays in paths(initialised(name)[1]).items():
        for block, x in arrays:
            try:
                check(start_of(name, path), block, x)
            except AssertionError as error:
                wrong.append(f"{path}: {' '.join(str(error).split())[:200]}, std {x.std():.4g}")
    assert not wrong


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("hyena:125m", "h3:125m", "mixtral:8x7b")]


@pytest.mark.parametrize("name", ["gpt2:124m", "llama:7b", *SLOW])
def test_published_sizes_have_the_published_figure(name):
    """0.02, or less for maps back to the residual stream where the source has that; `shapes` of a network of width 64."""
    config = jaxseq.config(name)
    mixers = config.model.stack.partition("(")[2].partition(")")[0]
    overrides = {"model.stack": f"2*({mixers})", "model.width": 64, "model.vocab": 100, "model.max_positions": 100}
    overrides |= {f"model.{label}.heads": 4 for label in mixers.split() if config.model[label].get("heads", 1) > 1}
    overrides |= {f"model.{label}.kv_heads": 2 for label in mixers.split() if config.model[label].get("kv_heads")}
    overrides |= {f"model.{label}.hidden": 64 for label in ("swiglu", "mlp", "moe") if config.model.get(label, {}).get("hidden")}
    shrink = 1.0 if name.startswith(("llama", "mixtral")) else 0.5
    checked = 0
    for path, arrays in paths(initialised(name, **overrides)[1]).items():
        if re.search(r"kernel|(^|/)moe/|embedding|position$", path) and not re.search(r"conv|filter/position|router|h3/o", path):
            back = re.search(r"/(o|down|out)(/|$)", path)
            check_random(arrays[0][1], "normal", 0.02 * (shrink if back else 1.0))
            checked += 1
    assert checked > 3
    head = config.model.head_scale * config.model.width**-0.5
    assert config.model.tied or head == pytest.approx(0.02)


def test_recipes_refuse_what_they_do_not_use():
    with pytest.raises(UserError, match="no initialisation 'gpt3'"):
        initialised("transformer", **{"model.attention.initial": "gpt3"})
    with pytest.raises(UserError, match="init_std=0.02"):
        initialised("neox", **{"model.mlp.init_std": 0.02})
    with pytest.raises(UserError, match="embedding_init"):
        initialised("transformer", **{"model.embedding_init": "zeros"})
