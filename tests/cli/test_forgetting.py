"""`jaxseq forgetting`: what fine-tuning gained on its text and lost on another, and less of it with replay."""

import json

import pytest
from helpers.train_tiny import tiny, write_documents

from jaxseq import registry
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


def test_one_command_trains_and_scores(runs, tmp_path, capsys):
    """Half of the training tokens are general text; a second call only scores again."""
    words = ["forgetting", f"--before={runs / 'before'}", f"--domain={runs / 'domain'}", f"--general={runs / 'general'}"]
    words += [f"--out={tmp_path / 'out'}", "--steps=40", "--replay=0.5", "--config.train.lr=3e-3"]
    found = printed(capsys, *words)
    plain = forgetting(runs, "after", capsys)
    assert found["domain"]["change"] < -1 and found["general"]["change"] < 0.3 * plain["general"]["change"]
    assert printed(capsys, *words) == found
    parts = json.loads((tmp_path / "out" / "mixture.json").read_text())
    counts = {name: read(runs / name) for name in parts}
    tokens = {name: counts[name] * part["weight"] for name, part in parts.items()}
    assert tokens["general"] == pytest.approx(tokens["domain"]) and min(part["weight"] for part in parts.values()) == 1
    assert main([*words[:-2], "--replay=0.2"]) == 2 and "was begun with replay 0.5" in capsys.readouterr().err


def read(folder) -> int:
    """The training tokens of a text, counted by the objective."""
    config = tiny(folder)
    return registry.load("train.objectives", config.train.objective).task(config).sizes()["train"]["tokens"]


def test_refusals(runs, capsys):
    words = ["forgetting", f"--before={runs / 'before'}", f"--after={runs / 'after'}", f"--domain={runs / 'domain'}"]
    for more, message in (
        ([f"--general={runs / 'missing'}"], "missing"),
        ([f"--general={runs / 'general'}", "--config.data.path=x"], "give texts as --domain and --general"),
        ([f"--general={runs / 'general'}", "--config.train.lr=1"], "was fixed by the run; jaxseq forgetting takes only"),
    ):
        assert main([*words, *more]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    words = [*words[:2], *words[3:], f"--general={runs / 'general'}"]  # without --after
    for more, message in (
        ([], "give either --out with --steps"),
        ([f"--out={runs / 'new'}"], "--steps and --replay belong to --out"),
        ([f"--out={runs / 'new'}", "--steps=0"], "trains nothing"),
        ([f"--out={runs / 'new'}", "--steps=2", "--replay=1"], "is no share"),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err and not (runs / "new").exists()
