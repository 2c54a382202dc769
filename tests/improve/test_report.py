"""The page of `jaxseq improve`: well-formed, and compressed models on the same Pareto front as the others."""

import json
import re

import pytest
from helpers.fake_table import entry, measured
from helpers.page import Page

from jaxseq.cli import main
from jaxseq.improve import report, summary
from jaxseq.improve.verdicts import verdicts


@pytest.fixture
def results():
    architectures = {
        "transformer": entry(0.0, **measured(3000, 2e-3, 4000, 0.5)),
        "transformer+int8": entry(0.001, "transformer", making_seconds=1.0, making_tokens=0, **measured(900, 2e-3, 4000, 0.4)),
        "transformer+wanda:0.5": entry(0.2, "transformer", making_seconds=2.0, **measured(1800, 2e-3, 4000)),
        "retnet": entry(0.05, **measured(3100, 1e-3, 500, 0.6)),
    }
    return {"schema": 1, "kind": "improve", "architectures": architectures, "data": {"source": "sotu"}}


def on_front(page: str, title: str) -> list[str]:
    """The models on the Pareto front of a chart, from its description for screen readers."""
    (found,) = re.findall(rf"{title}: [^<]*on the Pareto front: ([^<.]*)", page)
    return found.split(", ")


def test_compressed_models_are_on_the_same_front(results):
    page = report.render(results)
    assert on_front(page, "Quality against size on disk") == ["transformer+int8", "transformer"]
    assert on_front(page, "Quality against size of the state") == ["retnet", "transformer"]
    assert on_front(page, "Quality against decoding time per token") == ["retnet", "transformer"]
    assert on_front(page, "Quality against energy per decoded token") == ["transformer+int8", "transformer"]
    rows = summary.rows(results, verdicts(results))
    assert [row["energy/token at context 2048"] for row in rows] == ["500 mJ", "400 mJ", "not measured", "600 mJ"]


def test_a_generated_block_of_a_markdown_file(results, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- generated: jaxseq report --results=results.json --markdown -->\nreplaced\n<!-- end -->\nafter\n"
    )
    assert main(["report", f"--write={page}"]) == 0
    text = page.read_text()
    assert (
        "| transformer+int8 |" in text
        and "One seed" in text
        and "replaced" not in text
        and text.endswith("<!-- end -->\nafter\n")
    )


def test_the_page_is_well_formed_and_escaped(results):
    results["architectures"]["transformer+int4"] = {"status": "failed: <i>no</i>", "row": {"base": "transformer", "about": "x"}}
    source = report.render(results)
    page = Page(source)
    assert len(page.ids) == len(set(page.ids))
    assert all(ref.startswith("#") and ref[1:] in page.ids for ref in page.refs)
    assert "script" not in page.tags and "<b>row" not in source and "<i>no" not in source
    assert "None" not in "".join(page.text) and "failed" in "".join(page.text)


def test_parts_may_be_missing(results):
    for name in results["architectures"]:
        results["architectures"][name] = {"status": "partial"}
    Page(report.render(results))
    Page(report.render({"schema": 1, "kind": "improve", "architectures": {}}))
    assert summary.markdown(results).count("partial") == 4
