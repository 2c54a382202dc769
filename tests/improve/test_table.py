"""`jaxseq improve`: each kind of row once, an interrupted table that goes on, and bad rows."""

import jax
import pytest
from helpers.train_tiny import write_documents

import jaxseq
from jaxseq import compress
from jaxseq.cli import main
from jaxseq.compare import engine, measure
from jaxseq.errors import UserError
from jaxseq.improve import rows, summary, table
from jaxseq.train import NonFiniteError, save_params

BUDGET = rows.BUDGET._replace(
    name="tiny", tokens=1024, batch=4, length=32, evaluations=2, evaluation_tokens=600, rounds=1, decode_contexts=(32,),
    decode_steps=4, state_contexts=(32,),
)  # fmt: skip
KINDS = ("transformer", "transformer+int8", "transformer+distilled", "transformer+lora")
GIVEN = BUDGET._replace(tokens=512, evaluation_tokens=300)
TINY = rows.TablePreset(KINDS, BUDGET, 1, rows.WHOLE, GIVEN)
SMALL = {"model.width": 32, "model.stack": "2*(mingru)", "data.validation_every": 6}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    return write_documents(folder / "first"), write_documents(folder / "second", 20)


@pytest.fixture(scope="module")
def scenario(tmp_path_factory, texts):
    """A table that is interrupted while it times decoding, then completed. Returns the calls and the results."""
    out, calls = tmp_path_factory.mktemp("improve"), []
    patch = pytest.MonkeyPatch()
    patch.setattr(engine.machine, "describe", dict)  # takes seconds
    patch.setattr(measure.energy, "counters", list)  # as on a machine without them
    for module, name in ((engine, "train"), (engine, "evaluate"), (compress, "apply")):
        real = getattr(module, name)
        patch.setattr(module, name, lambda *a, _n=name, _f=real, **k: (calls.append(_n), _f(*a, **k))[1])

    def run(**changes):
        fields = SMALL | {"data.path": str(texts[0])} | changes.pop("overrides", {})
        return table.improve(TINY, out, second=str(texts[1]), overrides=fields, command="jaxseq improve", **changes)

    with pytest.MonkeyPatch.context() as inner:

        def interrupt(*args):
            raise KeyboardInterrupt

        inner.setattr(measure, "decode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run()
    first = list(calls)
    results = run()
    yield {"out": out, "run": run, "first": first, "calls": calls, "results": results}
    patch.undo()


def test_an_interrupted_table_goes_on_and_repeats_nothing(scenario):
    assert sorted(scenario["first"]) == ["apply"] + ["evaluate"] * 6 + ["train"] * 3
    assert scenario["calls"] == scenario["first"]
    again = scenario["run"]()
    assert scenario["calls"] == scenario["first"]
    assert again["architectures"] == scenario["results"]["architectures"]


def test_every_kind_of_row_has_its_figures(scenario):
    entries = scenario["results"]["architectures"]
    assert tuple(entries) == KINDS
    base, int8, distilled, lora = entries.values()
    for entry in entries.values():
        assert entry["status"] == "done"
        assert entry["validation"]["bits_per_byte"] > 0 and entry["disk_bytes"] > 0
        assert entry["decode"][0]["seconds_per_token"] > 0
    assert distilled["parameters"] < base["parameters"] == int8["parameters"] == lora["parameters"]
    assert int8["disk_bytes"] < base["disk_bytes"] and int8["config"]["model"]["weights"]
    assert 0 < distilled["state_bytes"][0]["bytes"] < base["state_bytes"][0]["bytes"]
    assert lora["curve"][-1]["tokens"] == 0.25 * base["curve"][-1]["tokens"]
    assert lora["second"]["bits_per_byte"] != base["second"]["bits_per_byte"]
    assert "second" not in distilled


def test_the_table_compares_each_row_with_its_base(scenario, capsys):
    results = scenario["results"]
    found = results["verdicts"]
    assert [(pair["a"], pair["b"]) for pair in found["pairs"]] == [(name, "transformer") for name in KINDS[1:]]
    shown = summary.rows(results, found)
    assert [row["model"] for row in shown] == list(KINDS)
    assert {row["energy/token at context 32"] for row in shown} == {"not measured"}
    assert shown[1]["trained on"] == "0" and shown[0]["trained on"] == "1.02k"
    assert main(["report", f"--results={scenario['out']}", "--markdown"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("One seed") and text.count("\n| transformer") == len(KINDS)
    page = (scenario["out"] / "report.html").read_text()
    assert "What makes a model better or cheaper?" in page and "int8" in page


def test_fields_that_levers_change(tmp_path, texts):
    """All rows of the quick preset, without training them."""
    fields = SMALL | {"data.path": str(texts[0]), "model.stack": "2*(attention swiglu)"}
    names = [name for name in rows.PRESETS["quick"].rows if name != "retnet"]
    made = table.Table(TINY, names, tmp_path, "", 4, str(texts[1]), 0, 1, fields, "")
    models = {name.partition("+")[2]: config.model for name, config in made.configs.items()}
    assert models["shared"].stack == "2/1*(attention swiglu)"
    assert models["student"].stack == models["distilled"].stack == "1*(attention swiglu)"
    assert models["multi-query"].attention.kv_heads == 1 and models["window"].attention.window == 64
    assert {model.width for model in models.values()} == {32}
    base = str(made.workdir("transformer", 0))
    assert made.config_of("transformer+distilled", 0).train.distill_teacher == base
    lora = made.config_of("transformer+lora", 0)
    assert (lora.train.init, lora.data.path, lora.train.steps) == (base, str(texts[1]), 2)


def test_what_is_made_from_a_row_that_failed_fails_too(tmp_path, texts, monkeypatch):
    def train(*args, **kwargs):
        raise NonFiniteError("not finite at step 3")

    monkeypatch.setattr(engine, "train", train)
    names = ("transformer", "transformer+int8")
    results = table.improve(TINY, tmp_path, rows=names, overrides=SMALL | {"data.path": str(texts[0])})
    assert [results["architectures"][name]["status"] for name in names] == [
        "failed: not finite at step 3", "failed: it is made from transformer, which failed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tokenizer", "kept"), [("byte", "byte"), ("hf://a/b", "hf://a/b"), ("/home/me/run/tokenizer.json", "tokenizer.json")]
)
def test_results_name_no_folder_of_the_machine(tokenizer, kept):
    config = jaxseq.config("transformer", **{"data.tokenizer": tokenizer})
    assert table.Table.plain(table.Table.__new__(table.Table), config)["data"]["tokenizer"] == kept


def test_names_of_rows():
    found = rows.named(["retnet+channels:0.25+nf4", "retnet+distilled", "retnet+student"], {})
    assert list(found) == ["retnet", "retnet+channels:0.25+nf4", "retnet+distilled", "retnet+student"]
    assert found["retnet+channels:0.25+nf4"].lever.argument == "channels:0.25+nf4"
    assert found["retnet+distilled"].scratch == "retnet+student"
    assert len(rows.named(rows.PRESETS["quick"].rows, {})) == 14
    full = rows.named(rows.PRESETS["full"].rows, {})
    assert full["transformer+migrated"].scratch == "transformer+gla" in full
    assert {row.base for row in full.values()} == {"", "transformer", "retnet", "mamba"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset=fast"], "choose one of: quick, full"),
        (["--rows=transfomer"], "there is no base 'transfomer'"),
        (["--rows=transformer+int9"], "there is no step 'int9'"),
        (["--rows=retnet+window"], "the row 'retnet+window' cannot be made"),
        (["--model=/nowhere"], "--model=/nowhere is not the workdir of a language model"),
        (["--second=/nowhere"], "the second text /nowhere does not exist"),
        (["--seeds=0"], "--seeds=0"),
        (["--config.train.lrr=1"], "did you mean 'lr'"),
        (["--config.model.stack=1*(attention swiglu)", "--rows=transformer+student"], "would equal its base"),
    ],
)
def test_bad_input_is_one_line(arguments, said, tmp_path, capsys):
    assert main(["improve", f"--out={tmp_path}", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "results.json").exists()


def test_another_table_in_the_same_folder_is_refused(scenario, texts):
    with pytest.raises(UserError, match="belongs to another comparison"):
        scenario["run"](overrides={"train.lr": 1.0})
    with pytest.raises(UserError, match="another second text"):
        table.improve(
            TINY, scenario["out"], overrides=SMALL | {"data.path": str(texts[0])}, second=str(texts[0]), command="jaxseq improve"
        )


def test_a_given_model_is_compressed_but_not_trained(scenario, tmp_path, texts):
    given = str(scenario["out"] / "runs" / "transformer")
    fields = SMALL | {"data.path": str(texts[0])}
    before = sorted(scenario["calls"])
    results = table.improve(TINY, tmp_path, rows=["model+int8"], model=given, seeds=2, overrides=fields | {"train.steps": 3})
    assert results["budget"]["steps"] == 3
    assert sorted(scenario["calls"]) == sorted([*before, "apply", "evaluate", "evaluate"])
    model, int8 = results["architectures"].values()
    bytes_of = lambda entry: sum(document["bytes"] for document in entry["validation"]["documents"])  # noqa: E731
    assert bytes_of(model) < bytes_of(scenario["results"]["architectures"]["transformer"])  # its own, smaller budget
    assert "scored on 300 tokens" in model["row"]["about"]
    assert int8["disk_bytes"] < model["disk_bytes"] and "repeats" not in int8


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """The workdir of a Transformer of six layers with random weights."""
    fields = {"model.width": 32, "model.stack": "6*(attention swiglu)", "model.vocab": 257, "data.tokenizer": "byte"}
    config = jaxseq.config("transformer", **fields)
    save_params(folder := tmp_path_factory.mktemp("deep"), config, jaxseq.build(config).init(jax.random.key(0))["params"])
    return str(folder)


def test_what_is_trained_starts_from_a_few_layers_of_a_given_model(deep, tmp_path, texts):
    """Its fields, for all levers that train; the layers that it starts from are tested in tests/train/test_depths.py."""
    names = [f"cut+{name}" for name in ("student", "distilled", "shared", "multi-query", "window", "latent", "lora", "migrated")]
    fields = {"data.path": str(texts[0])}
    made = table.Table(TINY, names, tmp_path / "out", deep, 4, str(texts[1]), 0, 3, fields, "")
    assert list(made.rows) == ["model", "cut", *names] and made.seeds_of(made.rows["cut+student"]) == (0,)
    model, cut, student, distilled, shared, queries, window, latent, lora, _ = (made.config_of(name, 0) for name in made.rows)
    assert [config.model.stack for config in (model, cut, student, shared, latent)] == [
        f"{text} swiglu)" for text in ("6*(attention", "4*(attention", "2*(attention", "4/1*(attention", "4*(mla")
    ]
    assert queries.model.attention.kv_heads == 1 and window.model.attention.window == 64 and lora.train.lora_rank == 8
    whole, part = (str(made.workdir(name, 0)) for name in ("model", "cut"))
    assert (cut.train.init, cut.train.distill_teacher, cut.train.init_layers) == (whole, whole, "even")
    assert (student.train.init, student.train.objective, student.train.distill_teacher) == (part, "next_token", None)
    assert (distilled.train.init, distilled.train.distill_teacher) == (part, part)
    assert (lora.train.init, lora.train.init_layers, lora.train.steps) == (part, "", 1)
    assert {row.train.steps for row in (cut, student, distilled, shared)} == {4}


@pytest.mark.slow
def test_all_rows_of_a_given_model(deep, tmp_path, texts):
    preset = TINY._replace(rows=(), own=(*rows.PRESETS["full"].own, *(f"cut+{name}" for name in rows.MIXERS)))
    results = table.improve(preset, tmp_path, model=deep, second=str(texts[1]), overrides={"data.path": str(texts[0])})
    assert {entry["status"] for entry in results["architectures"].values()} == {"done"}


@pytest.mark.slow
def test_every_row_has_a_run_for_each_seed(tmp_path, texts):
    fields = SMALL | {"data.path": str(texts[0])}
    results = table.improve(TINY, tmp_path, second=str(texts[1]), seeds=2, overrides=fields)
    for entry in results["architectures"].values():
        bits = [run["validation"]["bits_per_byte"] for run in (entry, *entry["repeats"])]
        assert len(set(bits)) == 2
    assert {pair["seeds"] for pair in results["verdicts"]["pairs"]} == {2}
    assert results["verdicts"]["seeds"].startswith("2 seeds of each model")


@pytest.mark.slow
@pytest.mark.parametrize("preset", rows.PRESETS)
def test_all_rows_of_a_preset(preset, tmp_path, texts):
    tiny = rows.PRESETS[preset]._replace(budget=BUDGET, seeds=1)
    fields = {"model.width": 32, "data.path": str(texts[0]), "data.validation_every": 6}
    results = table.improve(tiny, tmp_path, second=str(texts[1]), overrides=fields)
    assert {entry["status"] for entry in results["architectures"].values()} == {"done"}
    assert len(summary.rows(results, results["verdicts"])) == len(tiny.rows)
