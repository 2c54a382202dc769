"""Settings before JAX starts: CPU, full precision, fast compilation, and one compilation cache for all runs and workers."""

import gc
import os
import signal

from helpers.cells import pytest_runtest_makereport  # noqa: F401
from helpers.compiler import flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ["XLA_FLAGS"] = flags(os.environ.get("XLA_FLAGS", ""))

import jax
import pytest
import slow

from jaxseq.compat import enable_x64


def pytest_configure(config):
    config.addinivalue_line("markers", "xdist_group(name): tests that share compiled functions, run by one worker")
    config.addinivalue_line("markers", "cell: a test that records one cell of a table that the run prints")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background jobs; tests and their processes need it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    jax.config.update("jax_default_matmul_precision", "highest")
    if hasattr(config, "cache") and config.cache is not None:
        directory = config.cache.mkdir("jax")
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """All tests of a module run on one worker, unless they have another group."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def pytest_runtest_teardown(item, nextitem):
    """Frees compiled programs after the last test of a group: a process with thousands of them reaches vm.max_map_count
    (Linux) and dies."""
    if nextitem is not None and _group(nextitem) != _group(item):
        jax.clear_caches()
        gc.collect()


def _group(item) -> str:
    return item.get_closest_marker("xdist_group").args[0]


@pytest.fixture
def x64():
    """float64 inside the test only."""
    with enable_x64(True):
        yield


def pytest_terminal_summary(terminalreporter):
    """Prints tables of the tests that ran: subjects x laws, ops x hard inputs, models x hard inputs."""
    from helpers.laws import KERNELS

    from jaxseq.ops._example import STRESSES
    from jaxseq.testing import LAWS, laws_table
    from jaxseq.testing.stress_models import CASES

    columns = {column: [f"{column} {case}" for case in CASES] for column in ("hard", "long", "bfloat16")}
    laws = LAWS | {f"{kind} of kernels": names for kind, names in KERNELS.items()}
    kinds = {"law": laws, "stress": {"cases": STRESSES, "all cases": ("long", "bfloat16")}, "stress of models": columns}
    titles = {"law": "laws", "stress": "hard inputs", "stress of models": "hard inputs, whole models"}
    reports: dict[str, dict[str, dict[str, float]]] = {table: {} for table in kinds}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for key, value in getattr(report, "user_properties", []):
                if key in kinds:
                    subject, column, error = value
                    reports[key].setdefault(subject, {})[column] = error
    for table, rows in reports.items():
        if rows:
            terminalreporter.section(titles[table])
            terminalreporter.write_line(laws_table(rows, kinds[table]))
    if terminalreporter.config.option.markexpr == "not slow":
        terminalreporter.write_line(f"slow tests (tests/slow.py): {slow.summary()}")
