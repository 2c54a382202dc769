"""A model's capacity is checked before every compiled loop; inside jit positions are not clamped."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseq
from jaxseq import cli
from jaxseq.data import ByteTokenizer
from jaxseq.evaluation import bits_per_byte
from jaxseq.train import save_params
from jaxseq.train.step import prepare

PLACES = 24
SMALL = {
    "model.stack": "1*(attention mlp)", "model.width": 16, "model.attention.heads": 2, "model.max_positions": PLACES,
    "train.length": PLACES, "train.batch": 2, "train.steps": 1, "train.warmup": 0, "eval.length": 8, "eval.documents": 2,
}  # fmt: skip


@functools.cache
def gpt2():
    model = jaxseq.build(jaxseq.config("gpt2", **SMALL))
    return model, model.init(jax.random.key(0))["params"]


def test_learned_positions_are_a_capacity_and_others_are_none():
    assert gpt2()[0].capacity == PLACES
    for positions in ("none", "sinusoidal"):
        assert jaxseq.build(jaxseq.config("gpt2", **SMALL, **{"model.positions": positions})).capacity is None
    assert jaxseq.build(jaxseq.config("bert")).capacity == 512


def test_inside_jit_a_position_past_the_table_is_nan():
    model, params = gpt2()
    tokens = jnp.zeros((1, 3), jnp.int32)
    call = jax.jit(lambda pos: model.apply({"params": params}, tokens, pos=pos)[0])
    logits = call(jnp.array([[PLACES - 2, PLACES - 1, PLACES]]))
    assert jnp.isnan(logits[0, 2]).all()
    assert jnp.isfinite(call(jnp.array([[0, -1, 1]]))).all(), "padding is no position"


def test_outside_of_jit_it_is_refused():
    model, params = gpt2()
    with pytest.raises(jaxseq.UserError, match=f"{PLACES} positions"):
        model.apply({"params": params}, jnp.zeros((1, 2), jnp.int32), pos=jnp.array([[PLACES - 1, PLACES]]))
    with pytest.raises(jaxseq.UserError, match=f"{PLACES} positions"):
        model.apply({"params": params}, jnp.zeros((1, PLACES + 1), jnp.int32))


def test_generation_asks_first():
    model, params = gpt2()
    (ids,) = jaxseq.generate(model, params, [[1] * 5], max_tokens=PLACES - 4)  # the last token is never read
    assert len(ids) == PLACES - 4
    with pytest.raises(jaxseq.UserError, match="max_tokens"):
        jaxseq.generate(model, params, [[1] * 5], max_tokens=PLACES - 3)


def test_evaluation_asks_first(monkeypatch):
    model, params = gpt2()

    class Corpus:
        tokenizer = ByteTokenizer()

        @staticmethod
        def documents(split):
            return [("a", np.ones(60, np.int32), 60)]

    def settings(**more):
        return jaxseq.config("gpt2", **SMALL, **more)

    assert bits_per_byte.evaluate(model, params, settings(), Corpus)["context"] == PLACES
    monkeypatch.setattr(bits_per_byte, "score_piece", None)  # nothing may be compiled
    for more in ({"eval.context": 2 * PLACES}, {"eval.context": 0}, {"eval.length": PLACES + 1}):
        with pytest.raises(jaxseq.UserError, match="eval.length"):
            bits_per_byte.evaluate(model, params, jaxseq.config("gpt2", **SMALL | more), Corpus)


@pytest.mark.parametrize(
    "more", [{"eval.length": PLACES + 1}, {"eval.context": 2 * PLACES}, {"train.length": PLACES + 1}], ids=lambda more: str(more)
)
def test_training_asks_before_its_first_step(more, tmp_path, capsys):
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": f"document {i} " * 9}) + "\n" for i in range(40)))
    words = [f"--config.{key}={value}" for key, value in (SMALL | more).items()]
    status = cli.main(
        ["train", "--config=gpt2", f"--workdir={tmp_path / 'run'}", f"--config.data.path={tmp_path / 'text.jsonl'}", *words]
    )
    err = capsys.readouterr().err
    assert status == 2 and str(PLACES) in err.splitlines()[-1] and "Traceback" not in err
    assert not (tmp_path / "run" / "checkpoints").exists() and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_command_says_how_far_the_model_reaches(tmp_path, capsys):
    model, params = gpt2()
    save_params(tmp_path / "run", jaxseq.config("gpt2", **SMALL), params)
    assert cli.main(["generate", f"--workdir={tmp_path / 'run'}", "--prompt=abc"]) == 2  # 256 tokens by default
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{PLACES} positions" in line and "max_tokens" in line


def test_a_plan_is_refused_as_well():
    prepare(jaxseq.config("gpt2", **SMALL))
    with pytest.raises(jaxseq.UserError, match="positions"):
        prepare(jaxseq.config("gpt2", **SMALL | {"train.length": PLACES + 1}))
