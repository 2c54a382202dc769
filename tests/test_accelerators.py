"""A GPU or TPU that JAX does not use is reported in one line that says what to install."""

import jax
import pytest

from jaxseq import accelerators

NVIDIA = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}.12.04  Release Build\nGCC version: gcc 12.2.0\n"


def machine(root, *files, driver=None):
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(NVIDIA.format(driver) if driver else "")
    return root


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)


@pytest.mark.parametrize(
    ("files", "driver", "wanted"),
    [
        (["proc/driver/nvidia/version"], 550, "jax[cuda12]"),
        (["proc/driver/nvidia/version"], 580, "jax[cuda13]"),
        (["dev/nvidia0"], None, "jax[cuda12]"),
        (["dev/accel0"], None, "jax[tpu]"),
        (["dev/vfio/0"], None, "jax[tpu]"),
    ],
)
def test_an_unused_accelerator_is_named_with_the_plugin_of_this_jax(tmp_path, files, driver, wanted):
    line = accelerators.unused(machine(tmp_path, *files, driver=driver), "cpu")
    assert f"pip install '{wanted}=={jax.__version__}'" in line and "\n" not in line


def test_nothing_is_said_without_one_or_when_it_is_used_or_when_the_cpu_was_chosen(tmp_path, monkeypatch):
    assert accelerators.unused(tmp_path, "cpu") is None
    machine(tmp_path, "dev/nvidia0")
    assert accelerators.unused(tmp_path, "gpu") is None
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert accelerators.unused(tmp_path, "cpu") is None


@pytest.mark.parametrize("command", ["train", "compare"])
def test_commands_that_train_say_it_before_they_begin(command, monkeypatch, capsys):
    from jaxseq import cli

    monkeypatch.setattr(accelerators, "unused", lambda: "an accelerator is idle")
    words = {"train": ["--config=retnet", "--workdir=/dev/null/x"], "compare": ["--out=/dev/null/x"]}
    assert cli.main([command, *words[command]]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "an accelerator is idle"
