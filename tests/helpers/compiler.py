"""How the tests compile: their programs run for microseconds, so that optimising them costs more than it saves.

One test of each kind of thing is compiled as users' programs are (tests/testing/test_laws_optimised.py).
"""

import re
from collections import Counter
from importlib.metadata import version

USERS = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}  # XLA's defaults
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
# XLA ends a process whose flags it does not know; it dropped the second between JAX 0.10 and 0.12.
JAX = tuple(map(int, version("jax").split(".")[:2]))
KNOWN = [name for name in QUICK if name != "xla_cpu_use_fusion_emitters" or JAX < (0, 11)]


def flags(given: str) -> str:
    """XLA_FLAGS with the quick ones, but for those that `given` sets itself. JAX reads them when it first computes."""
    return " ".join([given, *(f"--{name}={str(QUICK[name]).lower()}" for name in KNOWN if name not in given)]).strip()


def devices(count: int) -> str:
    """XLA_FLAGS for so many CPU devices, which wait for one another for as long as a busy machine may let them wait."""
    patience = " --xla_cpu_collective_call_terminate_timeout_seconds=1200" if JAX >= (0, 10) else ""
    return flags(f"--xla_force_host_platform_device_count={count}{patience}")


def users() -> dict:
    """Compiler options of one jitted function that undo `flags`."""
    return {name: USERS[name] for name in KNOWN}


def compiled(run, caplog) -> Counter:
    """How often run() compiles a program of each name."""
    import jax  # after conftest.py has set its environment

    jax.clear_caches()
    caplog.clear()
    with jax.log_compiles():
        run()
    return Counter(re.findall(r"Compiling (?:jit\()?(\w+)", caplog.text))
