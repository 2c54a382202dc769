"""Commands that take long end with the status of the signal that stopped them, wherever it arrived."""

import os
import signal

import pytest
from rich.console import Console

from jaxseq.cli import train as train_command
from jaxseq.cli._interrupt import STOPPED, stoppable
from jaxseq.compare import engine


def terminated():
    os.kill(os.getpid(), signal.SIGTERM)


def stopped_while_it_trains():
    raise engine.Interrupted(signal.SIGTERM)


def pressed():
    raise KeyboardInterrupt


@pytest.mark.parametrize(("stop", "number"), [(terminated, 15), (stopped_while_it_trains, 15), (pressed, 2)])
def test_the_exit_status_is_the_signals(stop, number, capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, stoppable(Console()):
        stop()
    assert ended.value.code == 128 + number and STOPPED == train_command.STOPPED
    assert "run the same command again to go on" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_training_that_was_stopped_stops_the_comparison(tmp_path, monkeypatch):
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
