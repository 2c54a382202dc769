"""A workdir holds its tokenizer: imports, fine-tuning, moved folders, exports."""

import json
import os
import shutil
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.convert import oracle
from helpers.places import FILES
from safetensors.numpy import save_file

import jaxseq
from jaxseq import cli, data, train
from jaxseq.config import from_dict, to_dict
from jaxseq.convert import _tokenizer
from jaxseq.errors import UserError
from jaxseq.train import tokenizers

HERE = FILES / "tokenizers"
PROMPT = ("--prompt=The people", "--max_tokens=3", "--temperature=0", "--json")


def published(folder, tokenizer="llama2", **more):
    """A tiny Llama with enough rows for the tokenizer."""
    folder.mkdir(parents=True)
    parts = oracle("llama")
    rows = 480
    grown = {name: np.tile(x, (rows // len(x) + 1, 1))[:rows] if len(x) == parts["config"]["vocab_size"] else x
             for name, x in parts["param"].items()}  # fmt: skip
    config = parts["config"] | {"vocab_size": rows, "max_position_embeddings": 96} | more
    (folder / "config.json").write_text(json.dumps(config))
    save_file(grown, folder / "model.safetensors")
    if tokenizer:
        shutil.copy(HERE / f"{tokenizer}.json", folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """An import with a tokenizer, a template and a generation config next to the weights."""
    root = tmp_path_factory.mktemp("published")
    folder = published(root / "source", bos_token_id=1, eos_token_id=[2, 7])
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": "{{ messages }}"}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert cli.main(["import", str(folder), str(root / "run")]) == 0
    return root / "run"


def said(capsys, *words, status=0):
    assert cli.main(list(words)) == status
    out, err = capsys.readouterr()
    if status:
        assert err.count("\n") == 1, err
        return err
    return json.loads(out)


def test_an_import_takes_the_tokenizer_and_what_lies_beside_it(workdir, capsys):
    names = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"}
    assert names <= {path.name for path in workdir.iterdir()}
    tokenizer = data.tokenizer(train.load(workdir)[2].data)
    assert tokenizer.ends == (2, 7) and tokenizer.prompt("") == [1]
    ids = np.asarray(said(capsys, "generate", f"--workdir={workdir}", *PROMPT)["tokens"][0])
    model, params, _ = train.load(workdir)
    assert jaxseq.generate(model, params, [tokenizer.prompt("The people")], max_tokens=3, temperature=0) == [ids.tolist()]


def test_a_moved_workdir_used_from_another_folder(workdir, tmp_path, capsys, monkeypatch):
    wanted = said(capsys, "generate", f"--workdir={workdir}", *PROMPT)["texts"]
    shutil.copytree(workdir, tmp_path / "elsewhere" / "run")
    stored = json.loads((tmp_path / "elsewhere" / "run" / "config.json").read_text())["data"]["tokenizer"]
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("run", "./run/"):
        assert said(capsys, "generate", f"--workdir={name}", *PROMPT)["texts"] == wanted
    config = train.load("run")[2]
    assert config.data.tokenizer == str(tmp_path / "elsewhere" / "run" / "tokenizer.json") != stored
    assert jaxseq.config("run").data.tokenizer == config.data.tokenizer  # as a config too
    assert jaxseq.config("run", **{"data.tokenizer": "byte"}).data.tokenizer == "byte"
    assert jaxseq.load("run")[2].ends == (2, 7)


def test_an_import_without_a_tokenizer_is_refused_until_one_is_named(tmp_path, capsys):
    folder, run = published(tmp_path / "source", tokenizer=None), tmp_path / "run"
    assert cli.main(["import", str(folder), str(run)]) == 0
    assert "has no tokenizer" in capsys.readouterr().err
    config = train.load(run)[2]
    for words in (["generate", f"--workdir={run}", *PROMPT], ["eval", f"--workdir={run}"]):
        assert "imported without a tokenizer" in said(capsys, *words, status=2)
    with pytest.raises(UserError, match="imported without a tokenizer"):
        train.train(tuned(config, run), tmp_path / "tuned")
    named = said(capsys, "generate", f"--workdir={run}", f"--tokenizer={HERE / 'llama2.json'}", *PROMPT)
    assert len(named["tokens"][0]) == 3
    assert said(capsys, "import", str(folder), str(tmp_path / "bytes"), "--tokenizer=bytes", "--json")["tokenizer"] == "byte"
    with_it = said(capsys, "import", str(folder), str(tmp_path / "named"), f"--tokenizer={HERE / 'llama2.json'}", "--json")
    assert with_it["tokenizer"] == str(tmp_path / "named" / "tokenizer.json")
    assert said(capsys, "generate", f"--workdir={tmp_path / 'named'}", *PROMPT)["texts"] == named["texts"]


def test_a_tokenizer_that_does_not_fit_is_refused_at_import(tmp_path, capsys):
    folder = published(tmp_path / "source", tokenizer=None)
    words = "".join(f'"w{i}": {i}, ' for i in range(500))
    model = f'{{"type": "WordLevel", "vocab": {{{words}"x": 500}}, "unk_token": "x"}}'
    nothing = '"added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null'
    (folder / "tokenizer.json").write_text(
        f'{{"version": "1.0", "truncation": null, "padding": null, {nothing}, "model": {model}}}'
    )
    assert "ids up to 500 and the model has rows for 480" in said(capsys, "import", str(folder), str(tmp_path / "run"), status=2)
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json is not a tokenizers JSON file" in said(capsys, "import", str(folder), str(tmp_path / "run"), status=2)
    assert not (tmp_path / "run").exists()


def tuned(config, source, **data_fields):
    """A tiny run that starts from a workdir."""
    fields = {"train.init": str(source), "train.steps": 1, "train.batch": 2, "train.length": 8, "train.warmup": 1,
              "eval.documents": 1, "eval.batch": 1, "eval.length": 8, "data.tokenizer": "auto"} | data_fields  # fmt: skip
    return from_dict(to_dict(config), **fields)


def test_fine_tuning_takes_the_tokenizer_of_what_it_starts_from(workdir, tmp_path, monkeypatch):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": f"the people {i} have the power"}) + "\n" for i in range(40)))
    monkeypatch.chdir(tmp_path)
    config = tuned(train.load(workdir)[2], workdir, **{"data.path": "corpus.jsonl"})
    train.train(config, tmp_path / "tuned")
    stored = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert stored["data"]["path"] == str(path)
    assert data.tokenizer(train.load(tmp_path / "tuned")[2].data).ends == (2, 7)
    assert (tmp_path / "tuned" / "tokenizer.json").read_bytes() == (workdir / "tokenizer.json").read_bytes()
    for name in ("byte", str(HERE / "gpt2.json")):
        other = tuned(train.load(workdir)[2], workdir, **{"data.path": str(path), "data.tokenizer": name})
        with pytest.raises(UserError, match="is not the tokenizer of train.init=.*leave data.tokenizer out"):
            train.train(other, tmp_path / "other")
        assert not (tmp_path / "other").exists()
    shutil.move(tmp_path / "tuned", tmp_path / "moved")  # it resumes from its new path, also from another folder
    monkeypatch.chdir("/")
    config = tuned(train.load(tmp_path / "moved")[2], workdir, **{"data.path": str(path), "train.steps": 2})
    assert train.train(config, tmp_path / "moved")["step"] == 2


def test_a_trained_workdir_holds_its_tokenizer(tmp_path):
    (tmp_path / "bpe.json").write_bytes((HERE / "gpt2.json").read_bytes())
    (tmp_path / "run").mkdir()
    given = jaxseq.config("retnet", **{"data.tokenizer": str(tmp_path / "bpe.json")})
    kept = tokenizers.kept(given, tmp_path / "run")
    assert kept.data.tokenizer == str(tmp_path / "run" / "tokenizer.json") and tokenizers.kept(kept, tmp_path / "run") == kept
    (tmp_path / "bpe.json").write_bytes((HERE / "llama3.json").read_bytes())
    with pytest.raises(UserError, match="has another tokenizer than"):
        tokenizers.kept(given, tmp_path / "run")


def test_export_writes_what_other_libraries_ask_for(workdir, tmp_path, capsys):
    old = os.umask(0o077)
    try:
        said(capsys, "export", str(workdir), str(tmp_path / "out"), "--json")
    finally:
        os.umask(old)
    files = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
            "chat_template.jinja"} <= set(files)  # fmt: skip
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o644}
    config = json.loads(files["config.json"].read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["max_position_embeddings"]) == (1, [2, 7], 96)
    assert json.loads(files["generation_config.json"].read_text())["eos_token_id"] == [2, 7]
    assert files["tokenizer.json"].read_bytes() == (HERE / "llama2.json").read_bytes()
    again = tmp_path / "again"
    assert cli.main(["import", str(tmp_path / "out"), str(again)]) == 0
    assert data.tokenizer(train.load(again)[2].data).ends == (2, 7)


def test_export_of_a_model_of_bytes_writes_a_tokenizer_of_bytes(tmp_path, capsys):
    config = jaxseq.config("llama", **{"model.width": 16, "model.stack": "1*(attention swiglu)", "model.vocab": 257})
    params = jaxseq.build(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    train.save_params(tmp_path / "run", config, params)
    said(capsys, "export", str(tmp_path / "run"), str(tmp_path / "out"), "--source=hf/llama", "--json")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (256, 256)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"
    tokenizer = data.JsonTokenizer(tmp_path / "out" / "tokenizer.json")
    assert tokenizer.prompt("é") == data.ByteTokenizer().prompt("é")
    other = (tmp_path / "out").rename(tmp_path / "caf\udce9")  # a path that is not UTF-8
    before = (other / "tokenizer_config.json").read_bytes()
    (other / "tokenizer_config.json").unlink()
    assert _tokenizer.export(other, train.load(tmp_path / "run")[2], tmp_path / "run")
    assert (other / "tokenizer_config.json").read_bytes() == before
