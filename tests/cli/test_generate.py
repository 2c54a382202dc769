"""`jaxseq generate`: streamed text, JSON, and errors of one line."""

import io
import json

import jax
import jax.numpy as jnp
import pytest

import jaxseq
from jaxseq import cli
from jaxseq.train import save_params

RETNET = {"model.stack": "1*(retention mlp)"}


def saved(path, name, settings, init=lambda model: model.init(jax.random.key(0))):
    config = jaxseq.config(name, **{"model.width": 16} | settings)
    save_params(path, config, init(jaxseq.build(config))["params"])
    return path


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("generate") / "run", "retnet", RETNET)


def generate(workdir, *words):
    return cli.main(["generate", f"--workdir={workdir}", "--max_tokens=20", *words])


def test_json_text_and_tokens_agree(workdir, capsys, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("caf\u00e9")
    assert generate(workdir, "--prompt=a", f"--prompt_file={file}", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["prompts"] == ["a", "caf\u00e9"]
    assert [len(t) for t in result["texts"]] and result["tokens_per_second"] > 0 and result["seconds"] > 0
    for text, ids in zip(result["texts"], result["tokens"], strict=True):  # an incomplete character at the end is not printed
        assert text.rstrip("\ufffd") == bytes(ids).decode(errors="replace").rstrip("\ufffd")
    assert generate(workdir, "--prompt=a", "--rows=2") == 0
    assert capsys.readouterr().out == result["texts"][0] + "\n"  # streamed and alone: the same text
    assert generate(workdir, "--prompt=a", f"--prompt_file={file}") == 0
    marked = zip(("--- 'a'", "--- 'caf\u00e9'"), result["texts"], strict=True)
    assert capsys.readouterr().out == "".join(f"{mark}\n{text}\n" for mark, text in marked)


def test_prompts_are_taken_byte_for_byte(workdir, capsys, tmp_path, monkeypatch):
    (tmp_path / "crlf.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\u00e9\r\n".encode()), encoding="ascii"))
    words = [f"--prompt_file={tmp_path / 'crlf.txt'}", "--prompt_file=-", "--prompt=", "--max_tokens=1", "--json"]
    assert generate(workdir, *words) == 0
    assert json.loads(capsys.readouterr().out)["prompts"] == ["", "one\r\ntwo\rthree\n", "\u00e9\r\n"]


def test_a_prompt_that_the_locale_cannot_decode_is_utf8_all_the_same(workdir, capsys):
    assert generate(workdir, "--prompt=\udcc3\udca9", "--max_tokens=1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["prompts"] == ["\u00e9"]


def test_no_rate_when_nothing_ran_after_compilation(workdir, capsys):
    three = ["--prompt=a", "--prompt=b", "--prompt=c", "--json"]
    assert generate(workdir, *three, "--max_tokens=8") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["tokens_per_second"] is None and "tokens/s" not in err
    assert generate(workdir, *three, "--max_tokens=20") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["tokens_per_second"] > 0 and "tokens/s" in err


def test_an_escape_that_the_shell_left_alone_is_hinted_at(workdir, capsys):
    assert generate(workdir, "--prompt=a", "--stop=\\n", "--max_tokens=1") == 0
    assert "--stop=$'\\n'" in capsys.readouterr().err
    assert generate(workdir, "--prompt=a", "--stop=\n", "--max_tokens=1") == 0
    assert "$" not in capsys.readouterr().err


def test_a_draft_model_and_how_many_of_its_proposals_are_accepted(workdir, capsys, tmp_path):
    assert generate(workdir, "--prompt=a", "--json") == 0
    plain = json.loads(capsys.readouterr().out)
    assert "acceptance_rate" not in plain
    assert generate(workdir, "--prompt=a", f"--draft={workdir}", "--draft_tokens=3", "--json") == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["texts"] == plain["texts"]
    assert (result["acceptance_rate"], result["tokens_per_call"]) == (1, 20 / 5)
    assert "100% of 15 proposals accepted, 4.00 tokens per call" in err
    other = saved(tmp_path / "other", "lstm", {"model.stack": "1*(lstm swiglu)"})
    assert generate(workdir, "--prompt=a", "--temperature=0", "--json") == 0
    plain = json.loads(capsys.readouterr().out)
    assert generate(workdir, "--prompt=a", "--temperature=0", f"--draft={other}", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["texts"] == plain["texts"] and result["acceptance_rate"] < 1


def test_a_draft_model_that_does_not_fit(workdir, capsys, tmp_path):
    zeros = lambda model: jax.tree.map(jnp.zeros_like, jax.eval_shape(model.init, jax.random.key(0)))  # noqa: E731
    vocabulary = saved(tmp_path / "vocabulary", "retnet", RETNET | {"model.vocab": 300}, zeros)
    tokenizer = saved(tmp_path / "tokenizer", "retnet", RETNET | {"data.tokenizer": "nucleotide"}, zeros)
    kind = saved(tmp_path / "kind", "bert", {}, zeros)
    for words, message in (
        ([f"--draft={vocabulary}"], "vocabulary of 300"),
        ([f"--draft={tokenizer}"], "nucleotide"),
        ([f"--draft={kind}"], "kind encoder"),
        ([f"--draft={tmp_path}"], "config.json"),
        ([f"--draft={workdir}", "--draft_tokens=0"], "draft_tokens=0"),
    ):
        assert generate(workdir, "--prompt=a", *words) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt=\udce9"], "UTF-8"),
        (["--prompt=a", "--stop=\udce9"], "UTF-8"),
        (["--prompt=a", "--chat", "--system=\udce9"], "UTF-8"),
        ([], "no prompt"),
        (["--prompt_file=nowhere"], "nowhere"),
        (["--prompt=a", "--top_p=2"], "top_p"),
        (["--prompt=a", "--form=quick"], "form"),
    ],
)
def test_errors_are_one_line(workdir, capsys, words, message):
    assert generate(workdir, *words) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_no_such_run(capsys, tmp_path):
    assert generate(tmp_path, "--prompt=a") == 2
    assert "config.json" in capsys.readouterr().err
