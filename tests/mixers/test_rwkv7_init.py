"""Initial values of RWKV-7 for each channel and layer, and learning-rate multipliers."""

import jax
import numpy as np
import pytest

import jaxseq

LAYERS, WIDTH, SIZE = 3, 32, 8


def released(layer: int) -> dict[str, np.ndarray]:
    """The released code's formulas (arXiv:2503.14456, appendix on initialisation), one channel at a time."""
    done, left = layer / (LAYERS - 1), 1 - layer / LAYERS
    start = {name: np.zeros(WIDTH) for name in ("decay", "rate", "value", "removal", "mix_rate", "channel", *"rwkvag")}
    for n in range(WIDTH):
        line = n / (WIDTH - 1) - 0.5
        wave = (n % SIZE - (SIZE - 1) / 2) / ((SIZE - 1) / 2)
        wave *= abs(wave)
        start["decay"][n] = -6 + 6 * (n / (WIDTH - 1)) ** (1 + done**0.3) + 0.5 + 2.5 * wave
        start["rate"][n] = -0.19 + 0.3 * wave + 0.4 * line
        start["value"][n] = 0.73 - 0.4 * line
        start["removal"][n] = 0.71 - 0.1 * line
        start["mix_rate"][n] = 1.02
        start["channel"][n] = 1 - (n / WIDTH) ** left**4
        for name, power in {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}.items():
            start[name][n] = 1 - (n / WIDTH) ** (power * left)
    return start


@pytest.fixture(scope="module")
def model():
    fields = {f"model.{label}.heads": WIDTH // SIZE for label in ("rwkv7", "rwkv7:first")}
    stack = f"(rwkv7:first rwkv_channel) + {LAYERS - 1}*(rwkv7 rwkv_channel)"
    return jaxseq.build(jaxseq.config("rwkv7", **{"model.stack": stack, "model.width": WIDTH, "model.vocab": 5}, **fields))


def test_initial_values(model):
    params = jax.jit(lambda: model.init(jax.random.key(0), np.zeros((1, 2), np.int32)))()["params"]
    for layer in range(LAYERS):
        segment, row = min(layer, 1), max(layer - 1, 0)
        block = jax.tree.map(lambda x, row=row: x[row], params[f"blocks_{segment}"])
        mixer, wanted = block["rwkv7:first" if layer == 0 else "rwkv7"], released(layer)
        np.testing.assert_allclose(block["rwkv_channel"]["mix_k"], wanted.pop("channel"), atol=2e-6)
        if layer == 0:
            del wanted["value"]
        assert ("value" in mixer, "value_a" in mixer, "value_b" in mixer) == (layer > 0,) * 3
        for name, value in wanted.items():
            np.testing.assert_allclose(mixer[f"mix_{name}" if len(name) == 1 else name], value, atol=2e-6, err_msg=name)
        np.testing.assert_allclose(mixer["bonus"], -0.04)
        np.testing.assert_allclose(mixer["ln_x_scale"], ((1 + layer) / LAYERS) ** 0.7, rtol=1e-6)
        for name in ("decay_a", "rate_a", "gate_a", "o"):
            assert not np.any(jax.tree.leaves(mixer[name])[0])
        for name, gain in {"r": 1.0, "k": 0.1, "v": 1.0}.items():
            kernel = np.asarray(mixer[name]["kernel"])
            np.testing.assert_allclose(kernel @ kernel.T, gain**2 * np.eye(WIDTH), atol=1e-5)
        low = np.asarray(mixer["gate_b"])
        np.testing.assert_allclose(low @ low.T, 0.01 * np.eye(len(low)), atol=1e-6)


def test_learning_rates_and_decay(model):
    boxes = model.boxed()["params"]["blocks_1"]["rwkv7"]
    assert {name for name, box in boxes.items() if getattr(box, "lr", 1.0) != 1.0} == {"decay"} and boxes["decay"].lr == 2.0
    decayed = {name for name, box in boxes.items() if jax.tree.leaves(box, is_leaf=lambda b: hasattr(b, "decay"))[0].decay}
    assert decayed == {"r", "k", "v", "o"}
