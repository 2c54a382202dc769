"""`jaxseq forgetting`: what fine-tuning gained on its text and lost on another, and less of it with replay."""

import json

import pytest
from helpers.train_tiny import tiny, write_documents

from jaxseq.cli import main
from jaxseq.train import train

STEPS = {"model.stack": "1*(attention swiglu)", "model.dropout": 0.0, "train.steps": 40, "train.lr": 3e-3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders: two texts, and runs on the general text, on that of the domain from there, and on both from there."""
    folder = tmp_path_factory.mktemp("runs")
    write_documents(folder / "general")
    (folder / "domain").mkdir()
    for number in range(40):
        (folder / "domain" / f"{number:03}.txt").write_text("0123456789 " * (3 + number % 5))
    (folder / "mix.json").write_text(json.dumps({"domain": {"path": "domain"}, "general": {"path": "general"}}))
    train(tiny(folder / "general", **STEPS), folder / "before")
    more = STEPS | {"train.init": str(folder / "before")}
    train(tiny(folder / "domain", **more), folder / "after")
    train(tiny(folder / "mix.json", **more, **{"data.source": "mixture"}), folder / "replayed")
    return folder


def printed(capsys, *words) -> dict:
    status = main([*words, "--json"])
    found = capsys.readouterr()
    assert status == 0, found.err
    return json.loads(found.out)


def forgetting(runs, after, capsys) -> dict:
    texts = f"--domain={runs / 'domain'}", f"--general={runs / 'general'}"
    return printed(capsys, "forgetting", f"--before={runs / 'before'}", f"--after={runs / after}", *texts)


def test_what_is_learned_and_forgotten(runs, capsys):
    plain, replayed = forgetting(runs, "after", capsys), forgetting(runs, "replayed", capsys)
    for found in (plain, replayed):
        assert found["domain"]["change"] < -1  # learned
        for row in found.values():
            assert row["change"] == pytest.approx(row["after"] - row["before"])
    assert plain["general"]["change"] > 0.5  # forgotten
    assert replayed["general"]["change"] < 0.2 * plain["general"]["change"]
    scored = printed(capsys, "eval", f"--workdir={runs / 'after'}", f"--config.data.path={runs / 'general'}")
    assert plain["general"]["after"] == pytest.approx(scored["bits_per_byte"], rel=1e-6)


def test_refusals(runs, capsys):
    words = ["forgetting", f"--before={runs / 'before'}", f"--after={runs / 'after'}", f"--domain={runs / 'domain'}"]
    for more, message in (
        ([f"--general={runs / 'missing'}"], "missing"),
        ([f"--general={runs / 'general'}", "--config.data.path=x"], "give them as --domain and --general"),
        ([f"--general={runs / 'general'}", "--config.train.lr=1"], "was fixed by the run; jaxseq forgetting takes only"),
    ):
        assert main([*words, *more]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
