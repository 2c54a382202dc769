"""The command as a process: pipes, encodings, python -OO, a missing platform, versions, and every command's help."""

import argparse
import os
import subprocess
import sys

import pytest

import jaxseq
from jaxseq import cli, registry
from jaxseq.cli import _paths, _programs

COMMAND = [sys.executable, "-c", "from jaxseq.cli import entry; entry()"]


def run(*words, **environment):
    process = subprocess.run(
        [*COMMAND, *words], env=os.environ | environment, capture_output=True, timeout=300, stdin=subprocess.DEVNULL
    )
    return process.returncode, process.stdout, process.stderr.decode(errors="replace")


def test_a_reader_that_has_gone_is_no_fault():
    process = subprocess.Popen([*COMMAND, "list", "--sources"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    err = process.stderr.read().decode()
    process.wait(300)
    assert process.returncode == 1 and err == ""


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_stream_that_is_closed_goes_nowhere(closed):
    """Its descriptor is not reused for another file, to which libraries would write their messages."""
    code = (
        "import os; from jaxseq import cli\n"
        f"cli.main = lambda: 0 if os.path.samestat(os.fstat({closed}), os.stat(os.devnull)) else 5\ncli.entry()"
    )
    process = subprocess.run([sys.executable, "-c", code], preexec_fn=lambda: os.close(closed), timeout=300)
    assert process.returncode == 0


def test_an_ascii_terminal_and_python_oo():
    """-OO removes docstrings, and an ASCII-only output gets escapes."""
    status, out, err = run("list", "--sources", PYTHONIOENCODING="ascii", PYTHONOPTIMIZE="2", LC_ALL="C", PYTHONUTF8="0")
    assert status == 0 and err == ""
    assert b"hf/llama" in out and b"Llama" in out and max(out) < 128


def test_a_platform_that_is_not_there_is_one_line():
    status, out, err = run("bench", "--ops=token_shift", "--lengths=4", "--rounds=1", JAX_PLATFORMS="nosuch")
    assert status == 2 and out == b"" and len(err.splitlines()) == 1 and "JAX_PLATFORMS=nosuch" in err


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'cuda'")])
def test_jax_without_a_device_is_one_line(monkeypatch, capsys, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(registry.load("cli", "list"), "run", fail)
    with pytest.raises(type(error)):
        cli.main(["list"])  # with a device, an error in jaxseq shows its traceback
    monkeypatch.setattr("jax.devices", fail)
    assert cli.main(["list"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(registry.load("cli", "list"), "run", interrupted)
    assert cli.main(["list"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == "jaxseq: stopped\n"


def commands() -> dict[str, argparse.ArgumentParser]:
    (choices,) = (a.choices for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    return choices


def test_every_help_is_whole_sentences_of_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    for name, command in commands().items():
        text = command.format_help()
        paragraphs = registry.doc(registry.load("cli", name)).split("\n\n")
        examples = {line for part in paragraphs if part.startswith(" ") for line in part.splitlines()}
        assert all(part.endswith(".") for part in paragraphs if not part.startswith(" ")), name
        assert " ".join(paragraphs[0].split()) in " ".join(text.split()), name
        wide = [line for line in text.splitlines() if len(line) > 80 and line not in examples]
        assert not wide, (name, wide)
        assert all(action.help for action in command._actions), f"{name} has an argument without help"
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    top = capsys.readouterr().out
    assert max(map(len, top.splitlines())) <= 80
    for name in commands():
        summary = registry.doc(registry.load("cli", name)).split("\n\n")[0]
        assert " ".join(summary.split()) in " ".join(top.split()), f"the summary of {name} is cut"


def test_versions(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and out.startswith(f"jaxseq {jaxseq.__version__}, python ") and "jax " in out


def test_home_and_urls_in_every_path_argument(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _paths.resolved("~/runs/x", "--workdir", True) == f"{tmp_path}/runs/x"
    assert _paths.resolved("runs/~x", "--workdir", True) == "runs/~x"
    paths = 0
    for name, command in commands().items():
        for action in command._actions:
            if action.metavar not in _paths.RUNS + _paths.LOCAL:
                assert "file" not in (action.help or "").split()[:3] or action.metavar, f"{name} {action.dest}: is it a path?"
                continue
            paths += 1
            for scheme in ("gs", "s3", "https", "file") if action.metavar in _paths.LOCAL else ("s3", "https", "file"):
                value = f"{scheme}://bucket/run"
                args = argparse.Namespace(**{action.dest: [value] if isinstance(action.default, list) else value})
                with pytest.raises(jaxseq.UserError, match=f"{scheme}://"):
                    _paths.resolve(command, args)
            value = ["~/a"] if isinstance(action.default, list) else "~/a"
            args = argparse.Namespace(**{action.dest: value})
            _paths.resolve(command, args)
            assert str(tmp_path) in str(getattr(args, action.dest))
    assert paths > 10


@pytest.mark.parametrize(
    "word",
    ["--workdir=s3://b/run", "--workdir=gs://bucket", "--config.data.path=gs://b/x", "--config.data.path=s3://b/x",
     "--config.data.cache=gs://b/x", "--config.train.init=s3://b/x", "--config.data.tokenizer=s3://b/x", "--config=s3://b/x"],
)  # fmt: skip
def test_no_folder_is_made_of_a_url(word, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--config=retnet", "--workdir=run", word]
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "://" in err and not list(tmp_path.iterdir())


def test_home_in_the_fields_of_a_config(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    from jaxseq.cli import _config

    args = argparse.Namespace(overrides=["--config.data.path=~/my.txt", "--config.data.field=a~b"])
    assert _config.overrides(args) == {"data.path": f"{tmp_path}/my.txt", "data.field": "a~b"}


def test_where_compiled_programs_are_kept(monkeypatch, tmp_path):
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAXSEQ_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _programs.folder().is_relative_to(tmp_path / "jaxseq" / "programs")
    monkeypatch.setenv("JAXSEQ_CACHE", "0")
    assert _programs.folder() is None
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    assert _programs.folder() == tmp_path / "own"


def test_a_second_process_compiles_nothing(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    code = "import jax, jax.numpy as jnp; from jaxseq.cli import _programs; _programs.use(); jax.jit(jnp.sort)(jnp.ones(7))"
    clean = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "JAXSEQ_CACHE")}
    written = []
    for switch in ("0", "1", "1"):
        more = environment | ({"JAXSEQ_CACHE": "0"} if switch == "0" else {})
        subprocess.run([sys.executable, "-c", code], env=clean | more, check=True, timeout=300)
        written.append(sorted(path.name for path in tmp_path.rglob("*-cache")))
    assert written[0] == [] and any("sort" in name for name in written[1]) and written[1] == written[2]
