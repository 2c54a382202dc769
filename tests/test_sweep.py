"""`jaxseq sweep`: one grid that is extended until the best rate is bracketed, on documents that are not used elsewhere."""

import json
import math

import numpy as np
import pytest

import jaxseq
from jaxseq import data, sweep
from jaxseq.cli import main
from jaxseq.compare import entries
from jaxseq.compare.presets import PRESETS
from jaxseq.errors import UserError
from jaxseq.train import NonFiniteError

TINY = PRESETS["quick"]._replace(
    name="tiny", parameters=35_500, tokens=256, batch=4, length=32, evaluations=1, evaluation_tokens=600
)


def searched(score, seeds=(0,)):
    """All trials of a sweep in which a run has score(rate, seed)."""
    trials = []
    while todo := sweep.missing(trials, seeds):
        lr, seed = todo[0]
        trials.append({"lr": lr, "seed": seed, "bits_per_byte": score(lr, seed)})
    return trials


@pytest.mark.parametrize("best", [-5, -3, -2, 0, 2, 4])
def test_the_grid_goes_on_until_the_best_is_bracketed(best):
    trials = searched(lambda lr, seed: abs(math.log2(lr / sweep.CENTRE) - best))
    assert sweep.best(trials) == (sweep.rate(best), True)
    assert {trial["lr"] for trial in trials} >= set(sweep.GRID), "one grid for all"
    assert len(trials) == len(sweep.GRID) + abs(best), "and no more than bracketing asks for"


def test_the_grid_ends_and_says_so():
    trials = searched(lambda lr, seed: -lr)
    assert sweep.best(trials) == (sweep.rate(sweep.FARTHEST), False)
    trials = searched(lambda lr, seed: None)
    assert sweep.best(trials) == (None, False) and min(t["lr"] for t in trials) == sweep.rate(-sweep.FARTHEST)


def test_a_run_that_diverged_is_worse_than_all_and_seeds_are_averaged():
    score = {sweep.rate(k): (2.0, 2.0) for k in range(-2, 3)} | {sweep.rate(0): (1.0, None), sweep.rate(1): (1.5, 1.9)}
    trials = searched(lambda lr, seed: score[lr][seed], seeds=(0, 1))
    assert sweep.best(trials) == (sweep.rate(1), True)
    assert sweep.means(trials)[sweep.rate(0)] == math.inf and sweep.means(trials)[sweep.rate(1)] == pytest.approx(1.7)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    words = ["the", "state", "of", "union", "is", "strong", "and", "people", "country", "work", "for", "peace"]
    random = np.random.default_rng(0)
    for i in range(48):
        (folder / f"{i:02}.txt").write_text(f"document {i:02} " + " ".join(random.choice(words, 40)))
    return folder


@pytest.fixture(scope="module")
def scenario(tmp_path_factory, text):
    """A sweep of two architectures with one diverging rate, interrupted in the middle and then completed. Returns the runs."""
    out = tmp_path_factory.mktemp("sweep")
    calls, real, patch = [], sweep.train, pytest.MonkeyPatch()

    def train(config, workdir, **kwargs):
        if len(calls) == 2:
            calls.append(None)
            raise KeyboardInterrupt
        calls.append((config.train.lr, config.model.stack.split("(")[1].split()[0]))
        if config.train.lr > 1e-2:
            raise NonFiniteError("not finite at step 1")
        return real(config, workdir, **kwargs)

    def run(**changes):
        given = {"overrides": {"data.path": str(text)}, "command": "jaxseq sweep"} | changes
        return sweep.sweep(given.pop("preset", TINY), ["transformer", "gru"], out, **given)

    patch.setattr(sweep, "train", train)
    patch.setattr(sweep, "GRID", tuple(map(sweep.rate, (0, 1))))
    with pytest.raises(KeyboardInterrupt):
        run()
    half = json.loads((out / "sweep.json").read_text())
    results = run()
    yield {"out": out, "run": run, "half": half, "calls": calls, "results": results, "text": text}
    patch.undo()


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_and_repeats_nothing(scenario):
    calls = [call for call in scenario["calls"] if call is not None]
    assert len(scenario["half"]["architectures"]["transformer"]["trials"]) == 2
    assert len(calls) == len(set(calls))
    for name, mixer in (("transformer", "attention"), ("gru", "gru")):
        trials = scenario["results"]["architectures"][name]["trials"]
        assert sorted(trial["lr"] for trial in trials) == sorted(lr for lr, kind in calls if kind == mixer)
        assert {trial["lr"] for trial in trials} >= {sweep.rate(0), sweep.rate(1)}
    before = len(scenario["calls"])
    assert scenario["run"]()["architectures"] == scenario["results"]["architectures"]
    assert len(scenario["calls"]) == before
    assert not any(path.is_file() for path in (scenario["out"] / "runs").rglob("*")), "what was tried leaves a number only"


@pytest.mark.slow
def test_what_it_writes(scenario):
    results = json.loads((scenario["out"] / "sweep.json").read_text())
    assert results["architectures"] == scenario["results"]["architectures"]
    assert results["alike"] == {"schedule": "cosine", "final_lr": 0.1, "weight_decay": 0.1, "warmup": 1}
    for entry in results["architectures"].values():
        diverged = [trial for trial in entry["trials"] if trial["bits_per_byte"] is None]
        assert all(trial["lr"] == sweep.rate(2) and "not finite" in trial["failed"] for trial in diverged)
        assert (entry["lr"], entry["bracketed"]) == sweep.best(entry["trials"])
        assert entry["parameters"] == pytest.approx(TINY.parameters, rel=0.02) and entry["width"] > 0
    table = (scenario["out"] / "sweep.md").read_text()
    assert "| transformer |" in table and "best rate x width / other width" in table
    assert table == sweep.markdown(results) + "\n"


@pytest.mark.slow
def test_what_tunes_is_neither_trained_on_nor_reported(scenario):
    config = entries.text(entries.overridden({"data.path": str(scenario["text"])}))
    reported = {document.text for document in data.texts(config, "validation")}
    file = scenario["out"] / "training.jsonl"
    written = {json.loads(line)["text"] for line in file.read_text().splitlines()}
    assert len(reported) == 2 and len(written) == 46 and not reported & written
    mine = entries.text({"data.source": "jsonl", "data.path": str(file)})
    trained, tuned = ({document.text for document in data.texts(mine, split)} for split in ("train", "validation"))
    assert trained | tuned == written and not trained & tuned and len(tuned) == 2
    assert scenario["results"]["tuning"]["documents"] == 2


@pytest.mark.slow
def test_another_sweep_in_the_same_folder_is_refused(scenario, tmp_path):
    for i in range(48):  # the same number of documents of another text
        (tmp_path / f"{i:02}.txt").write_text(f"another text altogether, number {i}. " * 8)
    for changes, named in (
        ({"seeds": 2}, "seeds"),
        ({"preset": TINY._replace(tokens=512)}, "budget"),
        ({"overrides": {"data.path": str(tmp_path)}}, "tuning"),
    ):
        with pytest.raises(UserError, match=named) as refused:
            scenario["run"](**changes)
        assert "--out" in str(refused.value)


@pytest.mark.slow
def test_the_command_prints_one_json_document_and_the_table_for_people(scenario, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    words = [
        "--preset=tiny",
        "--architectures=transformer,gru",
        f"--out={scenario['out']}",
        f"--config.data.path={scenario['text']}",
    ]
    assert main(["sweep", "--json", *words]) == 0
    out, error = capsys.readouterr()
    assert json.loads(out)["architectures"] == scenario["results"]["architectures"]
    assert "| transformer |" in error and "sweep.json" in error
    assert main(["sweep", *words]) == 0
    assert "| transformer |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset=fast"], "choose one of: quick, standard"),
        (["--architectures=transfomer"], "choose one of"),
        (["--config.train.lr=1"], "config.train.lr cannot be set here"),
        (["--config.data.path=/nowhere/text.txt"], "/nowhere/text.txt"),
        (["--seeds=0"], "--seeds=0"),
    ],
)
def test_bad_input_is_one_line(arguments, said, tmp_path, capsys):
    assert main(["sweep", f"--out={tmp_path}", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "sweep.json").exists()


@pytest.mark.slow
def test_the_table_marks_what_diverged_and_what_is_not_bracketed(scenario):
    results = json.loads((scenario["out"] / "sweep.json").read_text())
    results["architectures"]["gru"]["trials"] = [
        {"lr": 3e-3, "seed": 0, "bits_per_byte": 2.0}, {"lr": 6e-3, "seed": 0, "bits_per_byte": None}
    ]  # fmt: skip
    line = next(line for line in sweep.markdown(results).splitlines() if line.startswith("| gru |"))
    assert "0.003 (not bracketed) |" in line and "| **2.0000** | diverged |" in line


def test_a_rate_is_for_its_width():
    swept = {"train.lr": 4e-3, "train.lr_width": 64}
    assert jaxseq.config("gru", **swept, **{"model.width": 64}).train.lr == 4e-3
    wide = jaxseq.config("gru", **swept, **{"model.width": 256}).train
    assert (wide.lr, wide.lr_width) == (1e-3, 256) and "64 / 256" in wide.lr_source
    assert jaxseq.config("gru", **{"train.lr": 4e-3, "model.width": 256}).train.lr == 4e-3, "a rate that is given stays"
    again = jaxseq.config("gru", **swept, **{"model.width": 128})
    assert entries.fitted(entries.prepared(again, TINY, 0, {}), 35_500).train.lr == pytest.approx(
        4e-3 * 64 / entries.fitted(entries.prepared(again, TINY, 0, {}), 35_500).model.width, rel=1e-3
    )


@pytest.mark.slow
def test_configs_read_their_rate_from_the_committed_table(scenario, tmp_path, monkeypatch):
    from jaxseq.configs import _rates

    table = tmp_path / "rates.json"
    results = json.loads((scenario["out"] / "sweep.json").read_text())
    results["architectures"]["gru"] |= {"lr": 3e-3, "bracketed": True}
    results["architectures"]["transformer"] |= {"bracketed": False}
    table.write_text(json.dumps(results))
    monkeypatch.setattr(_rates, "TABLE", table)
    width = results["architectures"]["gru"]["width"]
    assert _rates.swept("gru") == {"lr": 3e-3, "lr_width": width, "lr_source": "jaxseq sweep --preset=tiny"}
    with pytest.raises(ValueError, match="both sides"):
        _rates.swept("transformer")
