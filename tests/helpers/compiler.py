"""Compiler options of the tests: their programs run for microseconds, so optimising them costs more time than it saves.
tests/testing/test_laws_optimised.py compiles one subject of each kind with the usual options."""

import re
from collections import Counter
from importlib.metadata import version

USERS = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}  # XLA's defaults
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
# XLA ends a process whose flags it does not know; it dropped the second between JAX 0.10 and 0.12.
JAX = tuple(map(int, version("jax").split(".")[:2]))
KNOWN = [name for name in QUICK if name != "xla_cpu_use_fusion_emitters" or JAX < (0, 11)]


def flags(given: str) -> str:
    """XLA_FLAGS `given`, plus the quick flags that it does not set. JAX reads them at its first computation."""
    return " ".join([given, *(f"--{name}={str(QUICK[name]).lower()}" for name in KNOWN if name not in given)]).strip()


def devices(count: int) -> str:
    """XLA_FLAGS for `count` CPU devices, with timeouts long enough for a busy machine."""
    patience = " --xla_cpu_collective_call_terminate_timeout_seconds=1200" if JAX >= (0, 10) else ""
    return flags(f"--xla_force_host_platform_device_count={count}{patience}")


def users() -> dict:
    """Compiler options of one jitted function that undo `flags`."""
    return {name: USERS[name] for name in KNOWN}


def compiled(run, caplog) -> Counter:
    """How often `run()` compiles a program of each name."""
    import jax  # after conftest.py has set the environment

    jax.clear_caches()
    caplog.clear()
    with jax.log_compiles():
        run()
    return Counter(re.findall(r"Compiling (?:jit\()?(\w+)", caplog.text))
