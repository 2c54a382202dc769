"""RWKV models against the `rwkv` package: the same weights give the same logits, in every form."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseq
from jaxseq.testing import compare

MODELS = Path(__file__).parent / "oracles" / "models"


class Checkpoint:
    """A checkpoint with BlinkDL's names; torch's matrices are (outputs, inputs)."""

    def __init__(self, name: str):
        with np.load(MODELS / f"{name}.npz") as arrays:
            self.arrays = {key: arrays[key] for key in arrays}
        self.config = json.loads(str(self.arrays["config_json"]))
        self.heads, self.width = self.config["n_head"], self.config["n_embd"]

    def __call__(self, name: str) -> np.ndarray:
        return self.arrays[f"param/{name}"]

    def flat(self, name):
        return self(name).reshape(-1)

    def linear(self, name, *shape):
        kernel = self(f"{name}.weight").T
        return {"kernel": kernel.reshape(shape) if shape else kernel}

    def norm(self, name):
        return {"scale": self(f"{name}.weight"), "bias": self(f"{name}.bias")}

    def projections(self, att, names, *shape):
        sources = {"r": "receptance", "k": "key", "v": "value", "g": "gate"}
        return {n: self.linear(f"{att}.{sources[n]}", *shape) for n in names} | {"o": self.linear(f"{att}.output")}

    def group_norm(self, att):
        return {"ln_x_scale": self(f"{att}.ln_x.weight"), "ln_x_bias": self(f"{att}.ln_x.bias")}


def rwkv4(get: Checkpoint, att: str) -> dict:
    mixes = {f"mix_{n}": get.flat(f"{att}.time_mix_{n}") for n in "rkv"}
    return get.projections(att, "rkv") | mixes | {n: get(f"{att}.{n}") for n in ("time_decay", "time_first")}


def rwkv5(get: Checkpoint, att: str) -> dict:
    mixes = {f"mix_{n}": get.flat(f"{att}.time_mix_{n}") for n in "rkvg"}
    decays = {"time_decay": get(f"{att}.time_decay"), "time_first": get(f"{att}.time_faaaa")}
    return get.projections(att, "rkvg", get.width, get.heads, -1) | get.group_norm(att) | mixes | decays


def rwkv6(get: Checkpoint, att: str) -> dict:
    mixes = {f"mix_{n}": get.flat(f"{att}.time_maa_{n}") for n in "xwkvrg"}
    low_rank = {"mix_a": get(f"{att}.time_maa_w1").reshape(get.width, 5, -1), "mix_b": get(f"{att}.time_maa_w2")}
    low_rank |= {"decay_a": get(f"{att}.time_decay_w1"), "decay_b": get(f"{att}.time_decay_w2")}
    decays = {"time_decay": get.flat(f"{att}.time_decay"), "time_first": get(f"{att}.time_faaaa")}
    return get.projections(att, "rkvg", get.width, get.heads, -1) | get.group_norm(att) | mixes | low_rank | decays


def channel(get: Checkpoint, ffn: str) -> dict:
    """Version 6 stores the share of the last token, the others that of this one."""
    of_last = f"param/{ffn}.time_maa_k" in get.arrays
    mixes = {n: 1 - get.flat(f"{ffn}.time_maa_{n}") if of_last else get.flat(f"{ffn}.time_mix_{n}") for n in "kr"}
    sources = {"k": "key", "v": "value", "r": "receptance"}
    return {n: get.linear(f"{ffn}.{source}") for n, source in sources.items()} | {f"mix_{n}": mix for n, mix in mixes.items()}


def load(name: str, time_mix, **fields):
    """(model, params, checkpoint)"""
    get = Checkpoint(name)
    layers = get.config["n_layer"]
    overrides = {"stack": f"{layers}*({name} rwkv_channel)", "width": get.width, "vocab": get.config["vocab"]}
    overrides |= {"rwkv_channel.hidden": get.config["dim_ffn"]} | {f"{name}.{key}": value for key, value in fields.items()}
    model = jaxseq.build(jaxseq.config(name, **{f"model.{key}": value for key, value in overrides.items()}))
    rows = [
        {
            name: time_mix(get, f"blocks.{i}.att"),
            "rwkv_channel": channel(get, f"blocks.{i}.ffn"),
            f"norm_{name}": get.norm(f"blocks.{i}.ln1"),
            "norm_rwkv_channel": get.norm(f"blocks.{i}.ln2"),
        }
        for i in range(layers)
    ]
    params = {"blocks_0": jax.tree.map(lambda *leaves: np.stack(leaves), *rows), "embedding": get("emb.weight")}
    params |= {"head": get("head.weight"), "first_norm": get.norm("blocks.0.ln0"), "final_norm": get.norm("ln_out")}
    wanted = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"])
    assert compare.spec(params) == compare.spec(wanted)
    return model, params, get


CASES = {
    "rwkv4": (rwkv4, {}),
    "rwkv5": (rwkv5, {"heads": 2}),
    "rwkv6": (rwkv6, {"heads": 2, "mix_rank": 8, "decay_rank": 8}),
}


@pytest.mark.parametrize("form", ("recurrent", "parallel", "chunkwise"))
@pytest.mark.parametrize("name", CASES)
def test_logits(name, form):
    time_mix, fields = CASES[name]
    model, params, get = load(name, time_mix, **fields)
    tokens = get.arrays["input/tokens"].astype(np.int32)
    logits, _ = jax.jit(model.apply, static_argnames="form")({"params": params}, tokens, form=form)
    for output in ("seq", "step", "two_chunks"):
        assert compare.error(logits, get.arrays[f"output/{output}"]) < 1e-5
