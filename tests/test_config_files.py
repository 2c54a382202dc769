"""Config files with errors: one line with the file, the line and the error, and the other configs are not affected."""

import types

import pytest

import jaxseq
from jaxseq import config_files, configs, registry
from jaxseq.cli import main

START = "from jaxseq.config import base, pick\n\n\ndef get_config(size=''):\n    config = base()\n"
BROKEN = {  # file: end of the message
    "config = (": "broken.py, line 1: SyntaxError: '(' was never closed",
    "x = 1\nimport no_such_module": "broken.py, line 2: ModuleNotFoundError: No module named 'no_such_module'",
    START + "    raise ValueError('one\\ntwo')": "broken.py, line 6: ValueError: one two",
    START + "    config.train.lr = 'fast'": "broken.py, line 6: TypeError: ",
    START + "    config.train.rate": "broken.py, line 6: AttributeError: ",
    START + "    raise RuntimeError": "broken.py, line 6: RuntimeError\n",
    "import json\n" + START + "    json.loads('{')": "broken.py, line 7: JSONDecodeError: ",
    "x = '\\\0'": "broken.py",
    START + "    pick({}, size or 'large', ())": "there is no size 'large'; give none, for the laptop size",
    START + "    config.train.step = 5\n    return config": "config has no 'train.step'; did you mean 'steps'?",
    START + "    config.model.atention = {'heads': 2}\n    return config": "'model.atention'; did you mean 'attention'?",
    START + "    config.trian = {'steps': 2}\n    return config": "config has no 'trian'; did you mean 'train'?",
}


@pytest.mark.parametrize("text", BROKEN)
def test_an_error_in_a_config_file_is_one_line(tmp_path, capsys, text):
    (tmp_path / "broken.py").write_text(text)
    assert main(["train", f"--config={tmp_path / 'broken.py'}", f"--workdir={tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and BROKEN[text] in err
    assert not (tmp_path / "run").exists()


def test_a_config_file_that_is_no_text(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_bytes(b"\xff\xfe\x00")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(jaxseq.UserError, match=r"broken\.py.*: SyntaxError|ValueError"):
        jaxseq.config("broken.py")


def test_a_broken_file_in_the_folder_of_configs(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("config = (")
    monkeypatch.setattr(configs, "__path__", [str(tmp_path)])
    monkeypatch.setattr(registry, "names", lambda package: ("broken",))
    with pytest.raises(jaxseq.UserError, match=r"broken\.py, line 1: SyntaxError"):
        jaxseq.config("broken")


def test_one_bad_config_leaves_the_others(monkeypatch, caplog):
    load, kept = config_files.load, jaxseq.names()
    bad = {"gpt2": lambda: None, "mamba": lambda size: 3, "llama": None, "retnet": lambda size: 1 / 0}

    def broken(name):
        found = load(name)
        return types.SimpleNamespace(get_config=bad[name], __file__=__file__) if name in bad else found

    monkeypatch.setattr(config_files, "load", broken)
    assert set(kept) - set(jaxseq.names()) == set(bad)
    assert len(caplog.messages) == len(bad) and all("\n" not in message for message in caplog.messages)
    for name in ("gpt2", "mamba", "llama"):
        with pytest.raises(jaxseq.UserError, match="get_config"):
            jaxseq.config(name)
