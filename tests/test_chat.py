"""Chat templates: equal to transformers' for five kinds (see tests/files/chat), and harmless in all cases."""

import json
import os

import jax
import jax.numpy as jnp
import pytest
from helpers.places import FILES

import jaxseq
from jaxseq import chat, cli, data, generation, train
from jaxseq.errors import UserError

jinja2 = pytest.importorskip("jinja2")
_chat_render = pytest.importorskip("jaxseq._chat_render")
MADE = json.loads((FILES / "chat" / "expected.json").read_text("utf-8"))
USER = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("name", MADE["expected"])
def test_texts_are_those_of_transformers(name):
    template = (FILES / "chat" / f"{name}.jinja").read_text("utf-8")
    made = _chat_render.environment().from_string(template)  # as its process does; a process for each would take long
    for case, wanted in zip(MADE["cases"], MADE["expected"][name], strict=True):
        if isinstance(wanted, str):
            assert made.render(**{"tools": None} | case | MADE["special"]) == wanted
        else:
            with pytest.raises(jinja2.TemplateError, match=f"^{wanted['error']}$"):
                made.render(**{"tools": None} | case | MADE["special"])
    whole, wanted = MADE["cases"][2], MADE["expected"][name][2]
    assert chat.render(template, **whole, **MADE["special"]) == wanted


def test_what_a_template_says_when_it_refuses():
    template = (FILES / "chat" / "llama2.jinja").read_text("utf-8")
    with pytest.raises(UserError, match="cannot be rendered: roles must alternate: user, assistant, user; change the messages"):
        chat.render(template, USER * 2, **MADE["special"])


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "2 seconds or 256 MB"),
        ("{% set ns = namespace(x='x') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "256 MB"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "unsafe|undefined"),
        ("{{ raise_exception.__globals__['json'] }}", "unsafe|undefined"),
        ("{% set x = messages.append(1) %}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% if %}", "Expected an expression"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ messages | nothing }}", "No filter"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "nested|seconds"),
        ("{{ " + "(" * 5000 + " }}", "nested|seconds|parser"),
        ("{{ '\\ud800' }}", "surrogates|UnicodeEncodeError|seconds"),
    ],
)
def test_a_template_is_a_program_that_can_do_nothing(template, error):
    with pytest.raises(UserError, match=rf"^the chat template cannot be rendered: .*({error})"):
        chat.render(template, USER)


def test_the_process_of_a_template_has_no_environment(monkeypatch):
    monkeypatch.setenv("A_SECRET", "hidden")
    seen = []
    real = chat.subprocess.Popen
    monkeypatch.setattr(chat.subprocess, "Popen", lambda *args, **options: seen.append(options["env"]) or real(*args, **options))
    assert chat.render("{{ messages[0].content }}", USER) == "Hi"
    assert "A_SECRET" not in seen[0] and "A_SECRET" in os.environ


def folder(tmp_path, **files):
    (tmp_path / "tokenizer.json").write_bytes((FILES / "tokenizers" / "llama3.json").read_bytes())
    for name, content in files.items():
        path = tmp_path / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return data.JsonTokenizer(tmp_path / "tokenizer.json")


def test_where_the_template_is_found(tmp_path):
    with pytest.raises(UserError, match="there is no chat template beside the tokenizer tokenizer.json"):
        chat.template(folder(tmp_path))
    with pytest.raises(UserError, match="there is no chat template beside the tokenizer byte"):
        chat.template(data.ByteTokenizer())
    assert chat.template(folder(tmp_path, tokenizer_config__json={"chat_template": "one"})) == "one"
    named = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    assert chat.template(folder(tmp_path, tokenizer_config__json={"chat_template": named})) == "three"
    with pytest.raises(UserError, match="has the chat templates tool_use and none named default"):
        chat.template(folder(tmp_path, tokenizer_config__json={"chat_template": named[:1]}))
    assert chat.template(folder(tmp_path, chat_template__jinja="four")) == "four"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match="chat_template.jinja is not UTF-8"):
        chat.template(folder(tmp_path))


def test_special_tokens_of_the_template_are_tokens(tmp_path):
    tokenizer = folder(
        tmp_path,
        chat_template__jinja=(FILES / "chat" / "llama3.jinja").read_text("utf-8"),
        tokenizer_config__json={"bos_token": {"content": "<|begin_of_text|>"}, "eos_token": "<|eot_id|>"},
    )
    ids = chat.prompt(tokenizer, USER)
    assert ids[:2] == [tokenizer.find("<|begin_of_text|>"), tokenizer.find("<|start_header_id|>")]
    assert ids.count(tokenizer.find("<|eot_id|>")) == 2 and ids.count(tokenizer.find("<|end_header_id|>")) == 3
    assert tokenizer.boundary == tokenizer.find("<|eot_id|>")  # the id that ends the answer
    with pytest.raises(UserError, match="gives an empty text for these messages"):
        chat.prompt(folder(tmp_path, chat_template__jinja="{# nothing #}"), USER)


def test_without_jinja2_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(chat.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"chat templates need the package jinja2; pip install 'jaxseq\[chat\]'"):
        chat.render("x", USER)


def test_generate_answers_by_the_template_and_stops_at_every_end(tmp_path, capsys, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    tokenizer = folder(
        source,
        chat_template__jinja="{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}{% endfor %}",
        generation_config__json={"eos_token_id": [330, 335]},
    )
    model = {"model.width": 16, "model.stack": "1*(retention mlp)", "model.vocab": tokenizer.vocab}
    config = jaxseq.config("retnet", **model, **{"data.tokenizer": str(source / "tokenizer.json")})
    params = jaxseq.build(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    train.save_params(tmp_path / "run", config, params)  # copies the files next to the tokenizer

    seen = {}

    def stream(model, params, prompts, *, tokenizer, **options):
        seen.update(prompts=prompts, ends=tokenizer.ends)
        yield generation.NewTokens(0, [1], "a", "stop")

    monkeypatch.setattr(generation, "stream", stream)
    words = ["generate", f"--workdir={tmp_path / 'run'}", "--prompt=Hi", "--json"]
    assert cli.main([*words, "--chat", "--system=Be brief."]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == ["a"]
    start, end = tokenizer.find("<|start_header_id|>"), tokenizer.find("<|end_header_id|>")
    turns = ("system", "Be brief."), ("user", "Hi")
    parts = [[start, *tokenizer.encode(role), end, *tokenizer.encode(text)] for role, text in turns]
    assert seen["prompts"] == [parts[0] + parts[1]] and set(seen["ends"]) == {tokenizer.boundary, 330, 335}
    assert cli.main([*words, "--system=x"]) == 2
    assert "give --chat as well" in capsys.readouterr().err
    os.remove(tmp_path / "run" / "chat_template.jinja")
    assert cli.main([*words, "--chat"]) == 2
    assert "there is no chat template beside the tokenizer" in capsys.readouterr().err
