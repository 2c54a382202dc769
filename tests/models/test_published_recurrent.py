"""Published sizes of RetNet and of the hybrids: parameters, recipes, initial values."""

import jax
import numpy as np
import pytest

import jaxseq
from jaxseq import convert
from jaxseq.call import Call
from jaxseq.convert import _table
from jaxseq.mixers.retention import Retention

# RetNet: 12 width^2 per layer, an embedding and an untied head. Samba and Jamba: the released models.
PARAMETERS = {
    "retnet:1.3b": 24 * (12 * 2048**2 + 2 * 2048) + 2 * 50257 * 2048 + 2048,
    "samba:421m": 421_793_280, "samba:1.3b": 1_330_207_488,
    "jamba:v0.1": 51_570_323_328, "jamba:1.5-large": 398_555_145_696,
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name):
    shapes = _table.flatten(convert.abstract(jaxseq.build(jaxseq.config(name))))
    assert sum(leaf.size for leaf in shapes.values()) == PARAMETERS[name]


def test_retnets_recipe():
    config = jaxseq.config("retnet:6.7b")
    assert config.model.retention.decay == "experiments" and config.model.retention.deepnet
    assert (config.train.batch * config.train.length, config.train.steps, config.train.warmup) == (4 * 2**20, 25000, 375)
    jaxseq.build(config)


def test_deepnet():
    """Initial values of v and the output are divided by (8 layers)^(1/4); those of q, k and the gate are unchanged."""
    x, pos = np.zeros((1, 2, 64), np.float32), np.zeros((1, 2), np.int32)

    def spread(deepnet):
        mixer = Retention(width=64, layers=32, deepnet=deepnet)
        params = jax.jit(lambda: mixer.init(jax.random.key(0), x, None, Call.of(pos, "parallel")))()["params"]
        return {name: float(np.std(jax.tree.leaves(params[name])[0])) for name in "qkvgo"}

    plain, deep = spread(False), spread(True)
    for name in "qkvgo":
        assert deep[name] == pytest.approx(plain[name] * (256**-0.25 if name in "vo" else 1), rel=1e-5)
