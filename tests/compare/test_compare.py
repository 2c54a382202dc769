"""`jaxseq compare`: equal sizes, one comparison that is interrupted and fails in part, and errors."""

import json
import textwrap

import numpy as np
import pytest
from helpers.presets import TINY

import jaxseq
from jaxseq.cli import main
from jaxseq.cli.compare import DEFAULT
from jaxseq.compare import engine, entries, fit, measure
from jaxseq.compare.excerpts import Excerpts, markov
from jaxseq.compare.presets import PRESETS
from jaxseq.config import base
from jaxseq.data import batches, corpus
from jaxseq.errors import UserError
from jaxseq.models import _stack
from jaxseq.train import NonFiniteError

OWN = textwrap.dedent(
    '''
    """My net: attention with a window."""
    from jaxseq.config import base

    def get_config(size=""):
        config = base()
        config.model.stack = "2*(attention mlp)"
        config.model.width = 64
        config.model.attention = {"window": 16}
        return config
    '''
)


def config_of(name, **overrides):
    return jaxseq.config(name, **{"model.vocab": 257, **overrides})


@pytest.mark.parametrize(
    "name", [name if name in DEFAULT.split(",") else pytest.param(name, marks=pytest.mark.slow) for name in jaxseq.names()]
)
def test_fit_gives_all_the_same_size(name):
    config = config_of(name)
    for preset in PRESETS.values() if name in DEFAULT.split(",") else [PRESETS["quick"]]:
        fitted = fit.fit(config, preset.parameters)
        assert fit.parameters_of(jaxseq.build(fitted)) == pytest.approx(preset.parameters, rel=fit.TOLERANCE)
        layers = [jaxseq.build(c).layers for c in (config, fitted)]
        aspect = (fitted.model.width / layers[1]) / (config.model.width / layers[0])
        assert 1 / fit.SOUND[-1] <= aspect <= fit.SOUND[-1]


def test_fit_repeats_a_segment_beside_a_single_one_as_often_as_needed():
    stack = {"model.stack": "3*(attention swiglu) + (mamba2 swiglu)"}
    fitted = fit.fit(config_of("transformer", **stack), 20_000_000)
    assert fit.parameters_of(jaxseq.build(fitted)) == pytest.approx(20_000_000, rel=fit.TOLERANCE)
    (repeated, single), aspect = _stack.parse(fitted.model.stack), fitted.model.width / 32
    assert single.repeats == 1 and 1 / fit.SOUND[-1] <= (repeated.repeats + 1) / aspect <= fit.SOUND[-1]


def test_fit_needs_a_stack():
    with pytest.raises(UserError, match="only architectures with a model.stack"):
        fit.fit(jaxseq.config("bert"), 1_000_000)


def test_fit_keeps_segments_in_proportion_and_respects_heads():
    overrides = {"model.stack": "4*(attention swiglu) + 2*(mamba)", "model.width": 96}
    overrides |= {"model.attention.heads": 6, "model.attention.kv_heads": 6}
    fitted = fit.fit(config_of("transformer", **overrides), 600_000)
    assert fit.parameters_of(jaxseq.build(fitted)) == pytest.approx(600_000, rel=fit.TOLERANCE)
    assert fitted.model.width == 16 * fitted.model.attention.heads == 16 * fitted.model.attention.kv_heads


def head_sizes(config, shared: bool = False) -> dict[str, float]:
    """{label: width / heads, "label, field": query heads per head of that field}; single heads are included only if `shared`"""
    found = {}
    for label, section in config.model.items():
        if hasattr(section, "get") and (section.get("heads") or 0) > (0 if shared else 1):
            found[label] = config.model.width / section.heads
            for name in fit.GROUPED:
                if (section.get(name) or 0) > (0 if shared else 1):
                    found[f"{label}, {name}"] = section.heads / section[name]
    return found


WITH_HEADS = [name for name in jaxseq.names() if head_sizes(jaxseq.config(name))]


@pytest.mark.parametrize("name", WITH_HEADS)
def test_fit_keeps_the_size_of_heads(name):
    """Exactly at half and at twice the width; within a quarter at a budget."""
    config = config_of(name)
    segments = len(_stack.parse(config.model.stack))
    for width in (config.model.width // 2, config.model.width * 2):
        fitted = head_sizes(fit.reshape(config, fit.ModelSize(width, (1,) * segments)), shared=True)
        assert {label: fitted[label] for label in head_sizes(config)} == head_sizes(config)
    with pytest.raises(UserError, match="the head size of"):
        fit.reshape(config, fit.ModelSize(config.model.width + 2, (1,) * segments))


@pytest.mark.parametrize("name", ("retnet", "llama", "mamba2"))
def test_fit_keeps_the_size_of_heads_at_a_budget(name):
    config = config_of(name)
    fitted = head_sizes(fit.fit(config, PRESETS["quick"].parameters), shared=True)
    assert all(fitted[label] == pytest.approx(size, rel=0.3) for label, size in head_sizes(config).items())


def test_fit_keeps_the_ratio_of_hidden_widths():
    config = config_of("mixtral")
    half = fit.reshape(config, fit.ModelSize(64, (2,)))
    assert (half.model.moe.hidden, config.model.moe.hidden) == (88, 176)
    half = fit.reshape(config_of("hyena"), fit.ModelSize(64, (2,)))
    assert (half.model.mlp.hidden, half.model.hyena.hidden) == (128, 16)  # not for the filter's MLP


def test_fit_varies_hidden_widths_where_nothing_else_is_sound():
    fitted = fit.fit(config_of("transformer"), 300_000)
    assert fit.parameters_of(jaxseq.build(fitted)) == pytest.approx(300_000, rel=fit.TOLERANCE)
    assert fitted.model.width / jaxseq.build(fitted).layers > 16


def test_fit_refuses_what_cannot_be_met():
    with pytest.raises(UserError, match="parameters"):
        fit.fit(config_of("transformer"), 900)
    with pytest.raises(UserError, match="heads"):  # at no width
        fit.fit(config_of("transformer", **{"model.attention.kv_heads": 3}), 165_000)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of short documents of different lengths."""
    folder = tmp_path_factory.mktemp("text")
    words = ["the", "state", "of", "union", "is", "strong", "and", "people", "country", "work", "for", "peace"]
    random = np.random.default_rng(0)
    for i in range(24):
        (folder / f"{i:02}.txt").write_text(" ".join(random.choice(words, 60 + 10 * i)))
    return folder


@pytest.fixture(scope="module")
def scenario(tmp_path_factory, text):
    """A comparison of three architectures, one of which fails. It is interrupted while measuring, then completed. Returns the
    calls."""
    out, own = tmp_path_factory.mktemp("compare"), tmp_path_factory.mktemp("own") / "windowed.py"
    own.write_text(OWN)
    calls = []
    patch = pytest.MonkeyPatch()
    real = {"train": engine.train, "evaluate": engine.evaluate, "generate": engine.generate}

    def train(config, workdir, **kwargs):
        calls.append(("train", workdir.name))
        if workdir.name == "retnet":
            raise NonFiniteError("not finite at step 3: the loss is nan")
        return real["train"](config, workdir, **kwargs)

    patch.setattr(engine, "train", train)
    patch.setattr(measure.energy, "counters", lambda: [None])
    patch.setattr(measure.energy, "joules", lambda call, found: 3.0 * TINY.decode_steps)
    for name in ("evaluate", "generate"):
        patch.setattr(engine, name, lambda *a, _name=name, **k: (calls.append((_name,)), real[_name](*a, **k))[1])
    for name in ("train_speed", "train_memory", "decode", "prefill"):
        function = getattr(measure, name)
        patch.setattr(measure, name, lambda s, n, *a, _n=name, _f=function: (calls.append((_n, n)), _f(s, n, *a))[1])

    def run(**changes):
        names = ["transformer", "retnet", str(own)]
        given = {"seed": 0, "overrides": {"data.path": str(text), "data.validation_every": 6}, "command": "jaxseq compare"}
        preset = changes.pop("preset", TINY)
        return engine.compare(preset, names, out, **{**given, **changes})

    with pytest.MonkeyPatch.context() as inner:

        def interrupt(*args):
            raise KeyboardInterrupt

        inner.setattr(measure, "decode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run()
    half = json.loads((out / "results.json").read_text())
    first = list(calls)
    results = run()
    yield {"out": out, "run": run, "half": half, "first": first, "calls": calls, "results": results}
    patch.undo()


def test_an_interrupted_comparison_goes_on_and_repeats_nothing(scenario):
    half, calls = scenario["half"], scenario["calls"]
    assert half["architectures"]["transformer"]["status"] == "partial"
    assert "decode" not in half["architectures"]["transformer"]
    assert "verdicts" not in half
    assert calls.count(("train", "transformer")) == calls.count(("train", "windowed")) == 1
    assert calls.count(("train", "retnet")) == 2  # it failed and was tried again
    assert calls.count(("evaluate",)) == 2 * TINY.evaluations
    assert calls.count(("generate",)) == 2
    for name, sizes in (
        ("train_speed", TINY.speed_lengths),
        ("train_memory", TINY.memory_lengths),
        ("decode", TINY.decode_contexts),
        ("prefill", TINY.prefill_lengths),
    ):
        assert [call for call in calls if call[0] == name] == [(name, size) for size in sizes]
    kept = ("curve", "evaluations", "samples", "train_speed", "train_memory")
    for key in kept:
        entry = scenario["results"]["architectures"]["transformer"]
        assert entry[key] == half["architectures"]["transformer"][key]


def test_done_is_done(scenario):
    before = len(scenario["calls"])
    results = scenario["run"]()
    assert [call for call in scenario["calls"][before:] if call != ("train", "retnet")] == []
    assert results["architectures"]["transformer"] == scenario["results"]["architectures"]["transformer"]


def test_results_follow_the_schema(scenario):
    results = json.loads((scenario["out"] / "results.json").read_text())
    assert results["schema"] == 1
    assert results["preset"] == "tiny"
    assert {"platform", "device", "devices", "cpu", "cores", "memory_bytes", "python", "versions"} <= results["machine"].keys()
    assert results["machine"]["versions"]["jaxseq"] == jaxseq.__version__
    assert results["data"]["source"] == "folder"
    assert results["data"]["validation_documents"] == 4
    assert results["budget"] == {"parameters": TINY.parameters, "tokens": 512, "batch": 4, "length": 32, "steps": 4}
    assert [model["order"] for model in results["markov"]] == [1, 2, 3]
    assert {"equal_tokens", "equal_time", "pairs", "ranking"} <= results["verdicts"].keys()
    assert (scenario["out"] / "report.html").stat().st_size > 10_000
    ids = [document["id"] for document in results["markov"][0]["documents"]]
    for name in ("transformer", "windowed"):
        entry = results["architectures"][name]
        assert entry["status"] == "done"
        assert entry["parameters"] == pytest.approx(TINY.parameters, rel=fit.TOLERANCE)
        assert entry["curve"][-1]["tokens"] == entry["evaluations"][-1]["tokens"] == 512
        assert [point["step"] for point in entry["evaluations"]] == [2, 4]
        assert entry["evaluations"][-1]["seconds"] == pytest.approx(entry["train_seconds"])
        for point in [*entry["evaluations"], entry["validation"]]:
            assert [document["id"] for document in point["documents"]] == ids
        assert 0 < entry["validation"]["bits_per_byte"] < 12
        assert entry["compile_seconds"] > 0
        assert entry["flops_per_token"] > 0
        assert [p["context"] for p in entry["state_bytes"]] == [128, 32768]
        assert [p["length"] for p in entry["train_memory"]] == [32]
        assert all(p["seconds_per_token"] > 0 and p["state_bytes"] > 0 for p in entry["decode"])
        assert entry["disk_bytes"] > entry["parameters"]
        assert [(p["context"], p["joules_per_token"]) for p in entry["decode_energy"]] == [(64, 3.0)]
        assert len(entry["samples"]) == engine.PROMPTS
    assert results["architectures"]["windowed"]["title"] == "My net: attention with a window."
    assert results["architectures"]["transformer"]["forms"].keys() == {"attention"}
    states = [results["architectures"][name]["state_bytes"][-1]["bytes"] for name in ("transformer", "windowed")]
    assert states[0] > 100 * states[1]


def test_one_that_fails_leaves_the_others_alone(scenario):
    entry = scenario["results"]["architectures"]["retnet"]
    assert entry["status"] == "failed: not finite at step 3: the loss is nan"
    assert "curve" not in entry
    assert "NonFiniteError" in (scenario["out"] / "runs" / "retnet" / "failure.txt").read_text()


def test_another_comparison_in_the_same_folder_is_refused(scenario):
    for changes, named in (
        ({"seed": 1}, "its seed is 0, now 1"),
        ({"preset": TINY._replace(tokens=1024)}, "budget.tokens"),
        ({"overrides": {"data.source": "dna"}}, "its overrides.data.source is folder, now dna"),
    ):
        with pytest.raises(UserError, match=named) as refused:
            scenario["run"](**changes)
        assert "--out" in str(refused.value)


@pytest.mark.slow
def test_an_old_comparison_of_one_seed_goes_on_with_more(tmp_path, text, monkeypatch):
    """Seed 0 is not trained again, an interruption costs one run, and each seed has its own initial values and data order."""
    bare = TINY._replace(evaluations=1, speed_lengths=(), memory_lengths=(), decode_contexts=(), prefill_lengths=())
    calls, real = [], engine.train

    def train(config, workdir, **kwargs):
        if len(calls) == 2:
            calls.clear()
            raise KeyboardInterrupt
        calls.append((workdir.relative_to(tmp_path / "runs").as_posix(), config.train.seed, config.data.seed))
        return real(config, workdir, **kwargs)

    def run(seeds):
        return engine.compare(bare, ["gru"], tmp_path, seeds=seeds, overrides={"data.path": str(text)}, command="jaxseq compare")

    monkeypatch.setattr(engine, "train", train)
    old = run(1)
    del old["architectures"]["gru"]["seed"]
    del old["seeds"], old["verdicts"]
    (tmp_path / "results.json").write_text(json.dumps(old))
    with pytest.raises(KeyboardInterrupt):
        run(3)
    results = run(3)
    assert calls == [("seed-2/gru", 2, 2)]
    assert results["seeds"] == [0, 1, 2]
    entry = results["architectures"]["gru"]
    assert entry["status"] == "done"
    assert entry["validation"] == old["architectures"]["gru"]["validation"]
    bits = [run["validation"]["bits_per_byte"] for run in (entry, *entry["repeats"])]
    assert [run["seed"] for run in entry["repeats"]] == [1, 2] and len(set(bits)) == 3
    row = results["verdicts"]["ranking"]["tokens"][0]
    assert row["bits_per_byte"] == pytest.approx(sum(bits) / 3) and row["seeds"] == 3
    assert "3 seeds of each architecture" in (tmp_path / "report.html").read_text()
    assert run(1)["verdicts"] == results["verdicts"], "what is there is kept"


def test_a_seed_that_fails_is_named(tmp_path, text, monkeypatch):
    bare = TINY._replace(evaluations=1, speed_lengths=(), memory_lengths=(), decode_contexts=(), prefill_lengths=())
    real = engine.train

    def train(config, workdir, **kwargs):
        if config.train.seed == 1:
            raise NonFiniteError("not finite at step 3")
        return real(config, workdir, **kwargs)

    monkeypatch.setattr(engine, "train", train)
    results = engine.compare(bare, ["gru"], tmp_path, seeds=2, overrides={"data.path": str(text)})
    assert results["architectures"]["gru"]["status"] == "failed: seed 1: not finite at step 3"


def test_excerpts_cut_the_longest_documents_first(text):
    config = base()
    config.data.source, config.data.path, config.data.validation_every = "folder", str(text), 4
    whole = corpus(config.data)
    lengths = whole.validation.lengths
    cut = Excerpts(whole, tokens=2400, length=32)
    found = list(cut.documents("validation"))
    assert sum(len(ids) for _, ids, _ in found) == cut.tokens <= 2400
    assert [len(ids) for _, ids, _ in found] == np.minimum(lengths, cut.cut).tolist()
    assert cut.cut % 32 == 0
    assert all(n_bytes == len(ids) - 1 for _, ids, n_bytes in found)
    assert Excerpts(whole, tokens=100_000, length=32).tokens == lengths.sum()
    assert Excerpts(whole, tokens=96, length=32).count == 3


def test_markov_models_see_the_rows_that_are_trained_on(text):
    config = base()
    config.data.source, config.data.path, config.data.validation_every = "folder", str(text), 4
    config.train.batch, config.train.length = 4, 32
    whole = corpus(config.data)
    excerpts = Excerpts(whole, tokens=2000, length=32)
    few, many = (markov(batches(config, whole), steps, excerpts, (1, 2)) for steps in (1, 40))
    assert many[1]["bits_per_byte"] < many[0]["bits_per_byte"] < few[0]["bits_per_byte"]
    total = sum(document["nats"] for document in many[1]["documents"]) / np.log(2)
    assert total / sum(document["bytes"] for document in many[1]["documents"]) == pytest.approx(many[1]["bits_per_byte"])


def test_names(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text(OWN)
    assert entries.keys(["all"]).keys() == set(jaxseq.names())
    assert entries.keys(["mamba", str(own)]) == {"mamba": "mamba", "mine": str(own)}
    with pytest.raises(UserError, match="rename"):
        entries.keys([str(own), "mine"])


def test_seconds_between_records():
    curve = [{"tokens": 100, "seconds": 2.0}, {"tokens": 300, "seconds": 4.0}]
    assert [engine.seconds_at(curve, n) for n in (50, 100, 200, 300)] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset=fast"], "choose one of: quick, standard"),
        (["--architectures=transfomer"], "choose one of"),
        (["--architectures="], "--architectures is empty"),
        (["--config.model.width=64"], "config.model.width cannot be set here"),
        (["--config.data.path=/nowhere/text.txt"], "/nowhere/text.txt"),
        (["--config.train.lrr=1"], "did you mean 'lr'"),
        (["--config.train.batch=0"], "train.batch=0 is out of range"),
        (["--seeds=0"], "--seeds=0"),
        (["--seeds=3", "--config.train.seed=1", "--config.data.seed=1"], "runs would be equal"),
    ],
)
def test_bad_input_is_one_line(arguments, said, tmp_path, capsys):
    assert main(["compare", f"--out={tmp_path}", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "results.json").exists()
