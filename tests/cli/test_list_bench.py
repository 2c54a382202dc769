"""`jaxseq list` and `jaxseq bench`: their output; the README and the table of choices are up to date."""

import json

import jax
import pytest
from helpers.places import ROOT
from helpers.published_sizes import PUBLISHED, allowed

import jaxseq
from jaxseq import cli, forms, registry
from jaxseq.bench import choices, peer_ops
from jaxseq.bench import ops as bench
from jaxseq.cli import list as catalog
from jaxseq.testing import compare

README = ROOT / "README.md"
ATTENTION = bench.OpCall((((4, 8), "float32"), ((2, 8), "float32"), ((2, 8), "float32")), (), ())


def test_list_as_json(capsys):
    assert cli.main(["list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["architectures"]}
    assert tuple(rows) == jaxseq.names()
    for name, row in rows.items():
        model = jaxseq.build(jaxseq.config(name))
        state = jax.eval_shape(lambda model=model: model.init_state(1, 128))
        assert row["state_bytes"]["128"] == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        assert row["parameters"] > 0 and row["title"] and row["mixers"]
        assert all(set(forms) >= set(registry.load("ops", op).FORMS) for op, forms in row["forms"].items())
        assert set(row["sizes"]) == set(getattr(registry.load("configs", name), "SIZES", {}))
    assert rows["mamba"]["mixers"] == {"mamba": ["short_conv", "selective_scan"]}
    assert rows["transformer"]["mixers"] == {"attention": ["attention"], "swiglu": []}
    assert rows["transformer"]["state_bytes"]["32768"] > 200 * rows["transformer"]["state_bytes"]["128"]
    assert rows["mamba"]["state_bytes"]["32768"] == rows["mamba"]["state_bytes"]["128"]
    assert 1.3e9 < rows["retnet"]["sizes"]["1.3b"] < 1.5e9


def test_published_sizes():
    """From shapes alone; from the stored list if its hash is that of the code."""
    rows = {row["name"]: row for row in catalog.table()}
    for name in jaxseq.names():
        sizes = rows[name]["sizes"]
        assert set(sizes) == set(PUBLISHED.get(name, {})), name
        for size, count in sizes.items():
            if (figure := PUBLISHED[name][size]) is not None:
                wanted, tolerance = allowed(figure)
                assert count == pytest.approx(wanted, rel=tolerance), f"{name}:{size}"


def test_sources(capsys):
    assert cli.main(["list", "--sources", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["sources"]
    assert "Llama" in found["hf/llama"] and "RWKV-7" in found["blinkdl/rwkv7"]
    assert cli.main(["list", "--sources"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(found)


def test_list_writes_the_block(tmp_path, capsys):
    file = tmp_path / "page.md"
    file.write_text(f"before\n\n{catalog.BEGIN}\nold\n{catalog.END}\nafter\n")
    assert cli.main(["list", f"--write={file}"]) == 0
    text = file.read_text()
    assert text.startswith("before\n\n") and text.endswith(f"{catalog.END}\nafter\n") and "old" not in text
    table = text.split(catalog.BEGIN)[1].split(catalog.END)[0].strip().splitlines()
    assert len(table) == 2 + len(jaxseq.names()) and len({line.count(" | ") for line in table}) == 1
    file.write_text("no block")
    assert cli.main(["list", f"--write={file}"]) == 2
    assert catalog.BEGIN in capsys.readouterr().err


def test_the_readme_is_true():
    text, rows = README.read_text("utf-8"), catalog.table()  # from the stored list, if its hash is that of the code
    assert [row["name"] for row in rows] == list(jaxseq.names())
    assert json.loads(json.dumps(catalog.describe("retnet"))) in rows
    current = catalog.rewrite(text, catalog.markdown(rows), "README.md")
    current = catalog.rewrite(current, catalog.markdown_sources(), "README.md", catalog.BEGIN_SOURCES)
    assert text == current, "README.md is out of date; run jaxseq list --write=README.md"


@pytest.mark.slow
def test_calls_are_those_of_the_architectures():
    calls = bench.calls()
    assert {"attention", "retention", "selective_scan", "short_conv"} <= set(calls)
    assert calls["selective_scan"].xs == (((256,), "float32"),) * 2 + (((16,), "float32"),) * 2
    args = bench.arguments("selective_scan", calls["selective_scan"], 2, 8)
    assert args.xs[0].shape == (2, 8, 256) and (args.xs[1] > 0).all() and (args.weights["a_DN"] < 0).all()
    large = bench.calls(size="large")
    assert large.keys() <= calls.keys() and {forms.size_class(call.xs[0][0]) for call in large.values()} == {"large"}
    for op, call in (*calls.items(), *large.items()):
        differentiable(op, call)


def differentiable(op, call):
    """Traces the gradients of a benchmark, whose shapes are those of the inputs."""
    function = bench.functions(registry.load("ops", op).FORMS["chunkwise"], dict(call.options))["training"]
    grads = jax.eval_shape(function, bench.arguments(op, call, 2, 8))
    assert [g.shape for g in grads[0]] == [(2, 8, *shape) for shape, _ in call.xs]


@pytest.mark.parametrize("op", registry.names("ops"))
def test_an_op_that_no_architecture_uses_has_a_call(op):
    differentiable(op, bench.example_call(op, "float32"))


def test_bench_prints_and_chooses(capsys):
    words = ["bench", "--ops=token_shift", "--lengths=8,4", "--rounds=1", "--sizes=small"]
    assert cli.main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(r["size"], r["time"], r["form"]) for r in result["records"]] == [
        ("small", t, form) for t in (4, 8) for form in ("recurrent", "parallel", "chunkwise")
    ]
    for record in result["records"]:
        assert min(record[k] for k in ("forward", "training", "floor_forward", "floor_training")) > 0
    assert {rows[-1][0] for rows in result["choices"]["token_shift"].values()} == {8}
    assert result["choices"]["token_shift"].keys() == {"train float32 small", "prefill float32 small"}
    assert result["platform"] == "cpu" and result["device"] and result["jax"] and result["date"]


@pytest.mark.parametrize("name", ["jax.nn", "tokamax"])
@pytest.mark.parametrize("options", [{}, {"window": 5, "scale": 0.3}])
def test_the_attention_of_other_libraries_is_the_same(name, options):
    args = bench.arguments("attention", ATTENTION, 2, 16)
    found = peer_ops.functions("attention", args.xs, {}, options, "float32")
    if name not in found:
        pytest.skip(f"{name} is not installed")
    ours = bench.functions(registry.load("ops", "attention").FORMS["parallel"], options)
    theirs = bench.functions(found[name], options, peer=True)
    for kind in ("forward", "training"):
        wanted, got = (jax.jit(functions[kind])(args) for functions in (ours, theirs))
        assert compare.worst(got, wanted)[0] < 1e-5
    assert not peer_ops.functions("attention", args.xs, {}, {"cap": 5.0}, "float32")
    assert not peer_ops.functions("gla", args.xs, {}, {}, "float32")


def test_peers_are_timed_but_not_chosen(monkeypatch):
    monkeypatch.setitem(bench.TOKENS, "small", 16)
    records = bench.measure("attention", ATTENTION, 8, rounds=1, peers=True)
    theirs = [record for record in records if "peer" in record]
    assert [record["form"] for record in theirs][0] == "jax.nn" and all(record["training"] > 0 for record in theirs)
    assert {form for _, form in choices.choose([r | {"training": 1.0 if "peer" in r else 2.0} for r in records], "training")} <= {
        "recurrent", "parallel", "chunkwise",
    }  # fmt: skip


def test_a_form_is_left_out_for_memory_or_time(monkeypatch):
    monkeypatch.setattr(bench, "MEMORY", -1)
    call = bench.example_call("token_shift", "float32")
    records = bench.measure("token_shift", call, 4, skip=["recurrent"], rounds=1)
    assert [r["skipped"] for r in records] == ["too slow", "too much memory", "too much memory"]
    assert choices.choose(records, "training") == choices.choose(records, "forward") == []


def test_choose_and_merge():
    def record(time, **training):
        of = {"op": "x", "size": "small", "time": time}
        return [{**of, "form": f, "training": ms, "forward": 5 - ms} for f, ms in training.items()]

    records = [*record(64, a=2, b=1), *record(256, a=2, b=1), *record(1024, a=1, b=2)]
    assert choices.choose(records, "training") == [[256, "b"], [1024, "a"]]
    chosen = {"train float32 small": [[256, "b"], [1024, "a"]], "prefill float32 small": [[256, "a"], [1024, "b"]]}
    assert choices.choices(records, "float32", "small") == chosen
    about = {"device": "d", "jax": "1", "date": "2026-01-01", "dtype": "float32"}
    result = {"platform": "cpu", "shapes": {"x": {"small": {"tokens": 1}}}, "records": records, "choices": {"x": chosen}}
    result |= about
    other = {"train bfloat16 small": [[64, "a"]]}
    old = {"measured": {"tpu": {"x": 1}}, "choices": {"tpu": {"x": other}, "cpu": {"y": other, "x": other}}}
    new = choices.merge(old, result)
    assert new["choices"] == {"tpu": {"x": other}, "cpu": {"y": other, "x": other | chosen}}
    assert new["measured"]["tpu"] == {"x": 1} and new["measured"]["cpu"]["x"]["float32 small"]["device"] == "d"
    assert json.loads(choices._compact(json.dumps(new, indent=1))) == new


@pytest.mark.parametrize(("noise", "form"), [(0.0, "parallel"), (0.05, "parallel"), (0.2, "chunkwise")])
def test_a_form_is_chosen_only_beyond_the_noise(noise, form):
    times = {"recurrent": 5.0, "parallel": 0.9, "chunkwise": 1.0}
    records = [{"time": 8, "form": name, "training": ms, "forward": ms} for name, ms in times.items()]
    records[-1]["noise_training"] = noise
    assert choices.choose(records, "training") == [[8, form]] and choices.choose(records, "forward") == [[8, "parallel"]]


def test_auto_takes_the_form_that_was_measured_to_be_fastest():
    table, columns = forms.table(), {"train": 3, "prefill": 2}
    assert {"attention", "retention", "selective_scan", "short_conv", "token_shift"} <= set(table["choices"]["cpu"])
    for op, chosen in table["choices"]["cpu"].items():
        for key, rows in chosen.items():
            purpose, dtype, size = key.split()
            assert key == forms.key(purpose, dtype, size)
            assert [limit for limit, _ in rows] == sorted({limit for limit, _ in rows})
            for limit, form in rows:
                assert forms.automatic(op, limit, "cpu", purpose, dtype, size) == form
                assert forms.find(op, form, "cpu") is registry.load("ops", op).FORMS[form]
            measured, column = table["measured"]["cpu"][op][f"{dtype} {size}"], columns[purpose]
            noise = {row[0]: row[column - 1] for row in measured.get(choices.NOISE, ())}
            for time in {t for t, *_ in measured[choices.FIGURES]}:
                times = {f[1]: f[column] for f in measured[choices.FIGURES] if f[0] == time}
                if "chunkwise" in times:
                    times["chunkwise"] *= 1 - noise.get(time, 0)
                assert forms.automatic(op, time, "cpu", purpose, dtype, size) == min(times, key=times.get)


def test_what_auto_does_without_a_measurement(caplog):
    assert forms.automatic("retention", 1, "tpu", "train") == "recurrent"
    forms.automatic.cache_clear()
    with caplog.at_level("INFO", "jaxseq.forms"):
        assert {forms.automatic("retention", 64, "a platform", "train") for _ in range(2)} == {"chunkwise"}
    assert caplog.messages == ["auto: retention is unmeasured on a platform: chunkwise"]  # once
    known = forms.automatic("retention", 64, "cpu", "train")
    assert known == forms.automatic("retention", 64, "cpu", "train", "bfloat16", "large")
    assert [forms.size_class(shape) for shape in [(4, 64), (257,), ()]] == ["small", "large", "small"]


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--ops=atention"], "attention"), (["--lengths=a"], "64,256"), (["--rounds=0"], "rounds"), (["--sizes=x"], "'x'")],
)
def test_bad_arguments_are_one_line(capsys, words, message):
    assert cli.main(["bench", *words]) == 2
    assert message in capsys.readouterr().err
