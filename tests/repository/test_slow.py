"""Which sources the results of slow tests cover (tests/covers.py)."""

import covers
import pytest
import slow

STRESS, WHEEL = "tests/models/test_stress.py", "tests/repository/test_wheel.py"


@pytest.mark.parametrize(
    "test, about",
    [
        (f"{STRESS}::test_stress[rwkv7-hard-repeated]", "rwkv7"),
        ("tests/ops/test_stress.py::test_stress[gated_delta_rule-long]", "gated_delta_rule"),
        ("tests/models/test_laws.py::test_what_is_left", ""),
        ("tests/train/test_faults.py::test_kill[gru]", ""),  # runs commands, which import everything
    ],
)
def test_subject(test, about):
    assert covers.subject(test) == about


def test_an_architecture_covers_its_own_parts():
    found = covers.sources(STRESS, "retnet")
    needed = ("configs/retnet.py", "jaxseq/mixers/retention.py", "jaxseq/ops/retention.py", "jaxseq/ops/_decay.py")
    needed += ("jaxseq/models/lm.py", "jaxseq/blocks/residual.py", "jaxseq/testing/stress_models.py", STRESS, "tests/conftest.py")
    assert found.issuperset(needed)
    assert found.isdisjoint({"configs/gru.py", "jaxseq/mixers/gru.py", "jaxseq/ops/gru.py", "jaxseq/convert/__init__.py"})


def test_what_has_no_subject_covers_everything():
    assert {"jaxseq/cli/__init__.py", "jaxseq/ops/gru.py", "configs/gru.py", WHEEL} <= covers.sources(WHEEL, "")


@pytest.fixture
def op(tmp_path, monkeypatch):
    """The file of an op that the only test covers. Neither the caches before nor those after this test may be used by others."""
    caches = covers._path, covers._tree, covers._imports, covers._hash, covers._hash_of_file
    for folder in ("configs", "tests/ops", "jaxseq/ops"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "tests/conftest.py").touch()
    (tmp_path / "tests/ops/test_it.py").write_text("from jaxseq.ops import own\n")
    monkeypatch.setattr(covers, "ROOT", tmp_path)

    def hashed(source):
        (tmp_path / "jaxseq/ops/own.py").write_text(source)
        clear()
        return covers.covered("tests/ops/test_it.py", "own")

    def clear():
        for function in caches:
            function.cache_clear()

    yield hashed
    clear()


def test_a_hash_changes_with_code_only(op):
    before = op("def f(x):\n    return x\n")
    assert op('def f(x: int) -> int:\n    """Doc."""\n    # why\n    return x\n') == before
    assert op("def f(x):\n    return 2 * x\n") != before


def test_state_of_results():
    group = {"hash": covers.covered(STRESS, "retnet"), "of": 2, "tests": {"a": "passed", "b": "passed"}}
    assert slow.state(STRESS, "retnet", group) == "up to date"
    assert slow.state(STRESS, "retnet", group | {"of": 3}) == "run in part"
    assert slow.state(STRESS, "retnet", group | {"tests": {"a": "failed", "b": "passed"}}) == "failed"
    assert slow.state(STRESS, "retnet", group | {"hash": "other"}) == "stale"
