"""Modal form: sums of exponentials are recovered, other filters are approximated, and the modal model runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.data import texts_of, write_jsonl

import jaxseq
from jaxseq import cli, modal
from jaxseq.train import load, save_params


def filters(poles, residues, taps):
    """[D, W] from complex [D, N]."""
    return np.einsum("cn,cnw->cw", residues, poles[..., None] ** np.arange(taps)).real


def test_a_modal_filter_is_found():
    rng = np.random.default_rng(0)
    poles = rng.uniform(0.3, 0.8, (3, 3)) * np.exp(1j * rng.uniform(0.2, 3, (3, 3)))
    h_DW = filters(poles, rng.normal(size=(3, 3)) + 1j * rng.normal(size=(3, 3)), 96)
    found = modal.fit(h_DW, modes=3, steps=0)
    assert found.error_D.max() < 1e-6
    got = np.sort_complex(np.asarray(modal.poles(found.poles_DN2)))
    np.testing.assert_allclose(got, np.sort_complex(poles), atol=1e-5)
    rebuilt_DW = filters(np.asarray(modal.poles(found.poles_DN2)), found.residues_DN2 @ [1, 1j], 96)
    assert np.linalg.norm(rebuilt_DW - h_DW) / np.linalg.norm(h_DW) < 1e-5


def test_refinement_and_more_modes_come_closer():
    rng, t = np.random.default_rng(1), np.arange(64) / 64
    h_DW = np.sin(rng.uniform(1, 30, (4, 1)) * t + rng.normal(size=(4, 1))) * np.exp(-4 * t) + np.exp(-(((t - 0.3) / 0.1) ** 2))
    small, large = (modal.fit(h_DW, modes, steps=100) for modes in (2, 6))
    assert (small.error_D <= small.start_error_D).all() and small.error_D.mean() < small.start_error_D.mean()
    assert (large.error_D < small.error_D).all() and large.error_D.max() < 0.05
    assert all((abs(modal.poles(found.poles_DN2)) < 1).all() for found in (small, large))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("modal") / "run"
    texts = write_jsonl(path.parent / "texts.jsonl", texts_of(range(20, 60)))
    data = {"data.source": "jsonl", "data.path": texts, "data.cache": str(path.parent), "train.length": 24}
    model = {"stack": "2*(hyena:a)", "width": 8, "hyena:a.order": 3, "hyena:a.l_max": 32, "hyena:a.hidden": 8}
    config = jaxseq.config("hyena", **data, **{f"model.{key}": value for key, value in model.items()})
    params = jax.jit(jaxseq.build(config).init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    save_params(path, config, params)
    return path


def test_command(workdir, tmp_path, capsys):
    words = ["modal", f"--workdir={workdir}", f"--out={tmp_path / 'modal'}", "--state=12,2", "--steps=20", "--rows=2", "--json"]
    assert cli.main(words) == 0
    result = json.loads(capsys.readouterr().out)
    few, many = result["sizes"]
    assert (few["state"], many["state"], result["state"]) == (2, 12, 12)
    assert many["filter_error"] < few["filter_error"] and many["logit_error"] < min(few["logit_error"], 0.05)
    assert many["worst_filter_error"] >= many["filter_error"] and set(many["layers"]) == set(few["layers"])
    assert few["state_bytes"] < many["state_bytes"] < result["state_bytes_before"]

    assert load(tmp_path / "modal")[2].model.stack == "2*(hyena_modal:a)"
    assert cli.main(["generate", f"--workdir={tmp_path / 'modal'}", "--prompt=a", "--max_tokens=2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tokens"][0]) <= 2


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--state=8,x"], "--state=8,x"), (["--state=0"], "positive"), (["--rows=0"], "--rows=0"), (["--steps=-1"], "--steps=-1")],
)
def test_errors_are_one_line(workdir, tmp_path, capsys, words, message):
    assert cli.main(["modal", f"--workdir={workdir}", f"--out={tmp_path / 'out'}", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_config():
    stack = "2*(hyena mlp hyena) + (hyena:b mamba)"
    config = jaxseq.config("hyena", **{"model.stack": stack, "model.hyena.order": 3, "model.hyena:b.convention": "paper"})
    model = modal.modal_config(config, 4).model
    assert model.stack == "2*(hyena_modal mlp hyena_modal) + (hyena_modal:b mamba)"
    assert (model.hyena_modal.order, model.hyena_modal.state_size, model["hyena_modal:b"].convention) == (3, 4, "paper")


def test_a_model_without_hyena_is_refused():
    with pytest.raises(jaxseq.UserError, match="no hyena"):
        modal.modal_config(jaxseq.config("mamba"), 8)


def test_the_old_name_of_the_command_says_the_new_one(workdir, tmp_path, capsys):
    assert cli.main(["distill", f"--workdir={workdir}", f"--out={tmp_path / 'out'}", "--state=0"]) == 2
    note, error = capsys.readouterr().err.splitlines()
    assert "`jaxseq modal`" in note and "--state=0" in error
