"""Long commands exit with the status of the signal that stopped them, wherever it arrives."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from jaxseq import cli
from jaxseq.cli import _interrupt
from jaxseq.cli import train as train_command
from jaxseq.cli._interrupt import STOPPED, stoppable
from jaxseq.compare import engine
from jaxseq.train.checkpoints import steps
from jaxseq.train.stopping import terminated as heeded


def terminated():
    os.kill(os.getpid(), signal.SIGTERM)


def stopped_while_it_trains():
    raise engine.Interrupted(signal.SIGTERM)


def pressed():
    raise KeyboardInterrupt


def inside_a_library():
    """As jax does while it compares pytrees."""
    try:
        terminated()
    except KeyboardInterrupt as error:
        raise ValueError("Exception raised while checking equality") from error


STOPS = [(terminated, 15), (stopped_while_it_trains, 15), (pressed, 2), (inside_a_library, 15)]


@pytest.mark.parametrize(("stop", "number"), STOPS)
def test_the_exit_status_is_the_signals(stop, number, capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, stoppable(Console()):
        stop()
    assert ended.value.code == 128 + number and STOPPED == train_command.STOPPED
    assert "run the same command again to resume" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_that_is_no_stop_is_raised():
    with pytest.raises(ValueError, match="a bug"), stoppable(Console()):
        raise ValueError("a bug")


def test_a_stop_inside_a_library_is_no_bug_of_a_command(monkeypatch, capsys):
    def run(args):
        try:
            pressed()
        except KeyboardInterrupt as error:
            raise ValueError("Exception raised while checking equality") from error

    monkeypatch.setattr(cli.registry.load("cli", "list"), "run", run)
    assert cli.main(["list"]) == 130 and capsys.readouterr().err == "jaxseq: stopped\n"


def test_a_training_that_was_stopped_stops_the_comparison(tmp_path, monkeypatch):
    """Also if a library turns the stop into an error: the architecture has not failed."""
    record = {"step": 1, "stopped": "and saved at step 1", "signal": 15}
    monkeypatch.setattr(engine, "train", lambda *args, **kwargs: record)
    text = tmp_path / "text.txt"
    text.write_text("the state of the union is strong. " * 2000)
    preset = engine.Preset(
        "tiny", parameters=35_500, tokens=512, batch=4, length=32, evaluations=1, evaluation_tokens=1500, rounds=1,
        speed_tokens=32, speed_lengths=(), memory_lengths=(), decode_contexts=(), prefill_lengths=(), sample_tokens=8,
        state_contexts=(128,),
    )  # fmt: skip
    with pytest.raises(engine.Interrupted) as stopped:
        engine.compare(preset, ["gru"], tmp_path / "out", overrides={"data.path": str(text)})
    assert stopped.value.signal == 15
    monkeypatch.setattr(engine, "train", lambda *args, **kwargs: inside_a_library())
    with pytest.raises(SystemExit), stoppable(Console()):
        engine.compare(preset, ["gru"], tmp_path / "out", overrides={"data.path": str(text)})


# A command that hangs in C code (it locks a mutex twice), as compiling does for minutes: Python handles no signal.
DEAF = """
import ctypes
from jaxseq import cli
from jaxseq.cli import _interrupt
_interrupt.GRACE = 0.2
library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
def main():
    print("ready", flush=True)
    while True:
        library.pthread_mutex_lock(mutex)
cli.main = main
"""
INSIDE = "with _interrupt.bounded(lambda: 'stopped, and so on'): main()"


@pytest.mark.parametrize(
    ("number", "run", "line"),
    [(signal.SIGTERM, INSIDE, "stopped, and so on"), (signal.SIGINT, INSIDE, "stopped, and so on"),
     (signal.SIGINT, "cli.entry()", "jaxseq: stopped")],
)  # fmt: skip
def test_a_stop_that_python_does_not_hear_is_made_in_a_bounded_time(number, run, line):
    deaf = f"import signal; signal.signal({int(number)}, lambda *_: None)" + DEAF + run
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and err == f"{line}\n"


# A device that computes forever when the command is stopped.
QUEUED = """
import signal
import jax
from jaxseq import cli

def main():
    forever = jax.jit(lambda x: jax.lax.while_loop(lambda x: x[0, 0] >= 0, lambda x: x @ x / 512, x))
    main.result = forever(jax.numpy.ones((512, 512)))
    print("stopped")
    raise SystemExit(cli.STOPPED + signal.SIGTERM)

cli.main = main
cli.entry()
"""


def test_a_stopped_command_does_not_wait_for_what_the_device_still_computes():
    process = subprocess.run([sys.executable, "-c", QUEUED], stdout=subprocess.PIPE, text=True, timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and process.stdout == "stopped\n"


def test_a_stop_that_is_heard_is_not_made_twice(monkeypatch):
    monkeypatch.setattr(_interrupt, "GRACE", 0.05)
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("the process ends"))
    for number in (signal.SIGTERM, signal.SIGINT):
        with pytest.raises(KeyboardInterrupt), _interrupt.bounded(lambda: ""):
            before = signal.signal(number, signal.default_int_handler)
            try:
                signal.raise_signal(number)
            finally:
                signal.signal(number, before)
    with _interrupt.bounded(lambda: ""), heeded() as asked:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.2)  # a training run has the time it needs
        assert asked() == signal.SIGTERM
    assert signal.set_wakeup_fd(-1) == -1


def test_stopped_while_it_compiles_a_training_says_that_nothing_is_saved(tmp_path):
    code = "from jaxseq.cli import _interrupt, entry; _interrupt.GRACE = 0.3; entry()"
    words = ["train", "--config=transformer", f"--workdir={tmp_path / 'run'}", "--config.model.stack=2*(attention swiglu)"]
    environment = os.environ | {"JAX_LOG_COMPILES": "1", "JAXSEQ_CACHE": "0", "JAX_COMPILATION_CACHE_DIR": ""}
    process = subprocess.Popen([sys.executable, "-c", code, *words], env=environment, stderr=subprocess.PIPE, text=True)
    lines = []
    while not lines or not re.search(r"Compiling .*\bstep\b", lines[-1]):
        lines.append(process.stderr.readline())
        assert lines[-1], "".join(lines)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err[-2000:]
    assert err.splitlines()[-1] == "stopped before its first step, with nothing new to save; run the same command again to resume"
    assert "Traceback" not in err and steps(tmp_path / "run") == []
