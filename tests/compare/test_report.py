"""The HTML report: complete, well-formed, offline, escaped and legible, whatever is missing from the results."""

import copy
import io
import json
import re
from html.parser import HTMLParser
from importlib import resources

import pytest
from helpers import fake_results
from helpers.page import Page
from helpers.places import ROOT
from rich.console import Console

from jaxseq import cli
from jaxseq.cli.report import generated
from jaxseq.compare import figures, plots, report, summary
from jaxseq.compare.verdicts import verdicts

LIMIT = 1_500_000


@pytest.fixture(scope="module")
def three():
    return report.render(fake_results.results())


@pytest.fixture(scope="module")
def twelve():
    return report.render(fake_results.results(fake_results.NAMES[:12], trouble=True))


@pytest.mark.parametrize("which", ["three", "twelve"])
def test_well_formed_offline_and_small(which, request):
    source = request.getfixturevalue(which)
    page = Page(source)
    assert len(source.encode()) < LIMIT
    assert len(page.ids) == len(set(page.ids))
    assert all(ref.startswith("#") and ref[1:] in page.ids for ref in page.refs)
    assert "script" not in page.tags and "link" not in page.tags and "@import" not in source
    assert "http:" not in source and "https:" not in source
    assert source.startswith("<!DOCTYPE html>") and '<html lang="en">' in source and 'name="viewport"' in source


def test_accessible(twelve):
    page = Page(twelve)
    charts = [attrs for tag, attrs in page.attributes if tag == "svg" and attrs.get("class") == "chart"]
    assert len(charts) == 13
    assert all(attrs["role"] == "img" and "-title" in attrs["aria-labelledby"] for attrs in charts)
    others = [attrs for tag, attrs in page.attributes if tag == "svg" and attrs.get("class") != "chart"]
    assert all(attrs["aria-hidden"] == "true" for attrs in others)
    assert page.tags.count("h1") == 1 and page.tags.count("main") == 1
    assert all(attrs["scope"] in ("col", "row") for tag, attrs in page.attributes if tag == "th")
    assert page.tags.count("table") == page.tags.count("caption")
    scrolls = [attrs for _, attrs in page.attributes if attrs.get("class") == "scroll"]
    assert len(scrolls) == page.tags.count("table") and all(attrs["tabindex"] == "0" for attrs in scrolls)


def test_says_the_verdicts_the_numbers_and_what_was_run(three):
    said = " ".join(" ".join(Page(three).text).split())
    for part in (
        "RetNet is ahead of the Transformer by 0.36 bits per byte (95 % interval 0.35 to 0.38, 12 documents, 1 seed).",
        "One seed: each architecture was trained once.",
        "At equal time (30 s of training, when the Transformer finished)",
        "Markov 1", "Markov 2", "Markov 3", "Validation during the run", "Training loss against tokens",
        "Training loss against time",
        "Training speed", "Training memory", "Decoding time per token", "Size of the state", "Reading a prompt",
        "Quality against size of the state", "Quality against training speed", "on the front",
        "150,811", "My fellow Americans, ", "retnet: chunkwise", "twice the Transformer's", "32k", "16 MiB",
        "AMD EPYC 7B13, 2 cores", "jax 0.10.2", "train documents 231", "2025-11-21T21:30:00+00:00", "21 November 2025",
    ):  # fmt: skip
        assert part in said, part
    assert "--preset=quick" in said and "--architectures=transformer,retnet,mamba" in said


@pytest.mark.parametrize("higher, expected", [(False, ["c", "a", "b"]), (True, ["b", "d"])])
def test_the_pareto_front(higher, expected):
    """d is worse than b in quality and larger; e has the cost of a and is worse."""
    points = {"a": (10.0, 2.2), "b": (20.0, 2.0), "c": (5.0, 2.5), "d": (40.0, 2.1), "e": (10.0, 2.3)}
    assert figures.front(points, higher) == expected


def test_equal_points_are_both_on_the_front():
    points = {"a": (10.0, 2.0), "b": (10.0, 2.0), "c": (11.0, 2.0)}
    assert figures.front(points, False) == ["a", "b"]


def test_what_failed_is_said(twelve):
    said = " ".join(" ".join(Page(twelve).text).split())
    assert "Mixtral failed: RESOURCE_EXHAUSTED <out of memory>." in said and "H3 was only partly run." in said
    assert "2.90 at 512" in said, "a measurement at a shorter length says so"


def test_rendering_is_deterministic(three):
    assert report.render(fake_results.results()) == three


def hostile(value):
    """Results with HTML in every string."""
    attack = "</title></style></svg><script>alert(1)</script><img src=x onerror=y>\"'&$x^2$\x00\ud800"
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return value + attack if isinstance(value, str) else value


def test_everything_is_escaped():
    results = fake_results.results()
    results = hostile(results) | {"schema": 1}
    results["architectures"]["<i>x</i> $y$"] = hostile(fake_results.architecture("gru", 3, 250_000, 12)) | {"title": "<b>$z"}
    page = Page(report.render(results))
    assert not {"script", "img", "b", "i"} & set(page.tags)
    assert not any(name.startswith("on") for _, attrs in page.attributes for name in attrs)
    report.render(results).encode()


@pytest.mark.parametrize("count", [0, 1, 25])
def test_any_number_of_architectures(count):
    source = report.render(fake_results.results(fake_results.NAMES[:count], documents_count=3))
    page = Page(source)
    assert len(page.ids) == len(set(page.ids)) and len(source.encode()) < LIMIT


def test_every_part_may_be_missing(monkeypatch):
    monkeypatch.setattr(plots, "chart", lambda name, lines, *rest, **more: f'<svg id="{name}"></svg>')
    whole = fake_results.results()
    for part in list(whole["architectures"]["mamba"]):
        results = copy.deepcopy(whole)
        for entry in results["architectures"].values():
            entry[part] = None
        Page(report.render(results))
    for part in whole:
        Page(report.render({key: value for key, value in whole.items() if key != part}))


def test_no_measurements_at_all_says_so():
    said = " ".join(Page(report.render({"schema": 1, "architectures": {"gru": {"status": "failed: x"}}})).text)
    for part in ("No training was recorded.", "were not measured.", "No samples were drawn.", "Gru failed: x."):
        assert part in said


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_in_light_and_dark():
    css = resources.files("jaxseq.compare").joinpath("report_template.html").read_text(encoding="utf-8")
    for block in re.findall(r":root \{(.*?)\}", css, re.S):
        colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for under in ("page", "card"):
            assert all(contrast(colors[name], colors[under]) >= 4.5 for name in ("ink", "muted", "accent"))
            assert all(contrast(colors[f"s{i}"], colors[under]) >= 3 for i in range(plots.HUES + 1)), "WCAG 1.4.11"
    assert len(re.findall(r":root \{", css)) == 2


def test_no_two_architectures_look_the_same():
    styles = [plots.Style(i) for i in range(60)]
    assert len({(s.color, s.marker) for s in styles}) == 60
    assert len({s.glyph() for s in styles}) == 60


@pytest.mark.parametrize(
    ("low", "high", "base"),
    [(128, 32768, 2), (1e3, 1e6, 10), (900, 1100, 10), (2e-3, 9e-3, 10), (2**10, 2**35, 2), (1.0, 1.3, 2), (5, 5.01, 10)],
)
def test_log_ticks_are_few_and_inside(low, high, base):
    ticks = plots.log_ticks(low, high, base)
    assert 1 <= len(ticks) <= plots.TICKS + 1 and all(low * 0.999 <= tick <= high * 1.001 for tick in ticks)


def test_the_command_writes_the_page_again(tmp_path, capsys, three):
    (tmp_path / "results.json").write_text(json.dumps(fake_results.results()))
    assert cli.main(["report", f"--results={tmp_path}", "--json"]) == 0
    out = tmp_path / "report.html"
    assert json.loads(capsys.readouterr().out) == {"report": str(out), "bytes": len(three.encode())}
    assert out.read_text(encoding="utf-8") == three


def test_the_command_prints_the_table_best_first(tmp_path, capsys):
    results = fake_results.results()
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert cli.main(["report", f"--results={tmp_path}", "--markdown"]) == 0
    first, _, *table = capsys.readouterr().out.splitlines()
    assert first.startswith("One seed")
    head, rule, *lines = [line.strip("| ").split(" | ") for line in table]
    assert head[:5] == ["architecture", "parameters", "bits/byte", "95 % interval", "seeds"] and set(rule) == {"---", "---:"}
    bits = [float(line[2]) for line in lines]
    assert bits == sorted(bits) and len(lines) == len(results["architectures"]) + len(results["markov"])


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "does not exist"), ("{", "not JSON"), ("[]", "no architectures"), ('{"architectures": {}, "schema": 9}', "schema 9")],
)
def test_what_is_no_results_file_is_said_in_one_line(tmp_path, capsys, content, says):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    assert cli.main(["report", f"--results={path}"]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


class Texts(HTMLParser):
    """(left, right, width of the chart) of every text of every chart, with the widths of a phone's font."""

    def __init__(self, source):
        super().__init__()
        self.found, self.width, self.at = [], None, None
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "svg":
            self.width = float(attrs["viewbox"].split()[2])
        if tag == "text":
            moved = re.search(r"translate\(([-\d.]+)", attrs.get("transform", ""))
            anchor = re.search(r"text-anchor: (\w+)", attrs.get("style", ""))
            self.at = float(moved[1] if moved else attrs["x"]), anchor[1] if anchor else "start"

    def handle_data(self, data):
        if self.at and data.strip():
            x, anchor = self.at
            wide = plots.text_width(data.strip()) * 0.95
            left = x - wide * {"start": 0, "middle": 0.5, "end": 1}[anchor]
            self.found.append((data.strip(), left, left + wide, self.width))

    def handle_endtag(self, tag):
        self.at = None if tag == "text" else self.at


@pytest.mark.parametrize("count", [3, 25])
def test_no_label_of_a_chart_is_clipped(count):
    results = fake_results.results(fake_results.NAMES[:count], seeds=2)
    entries = results["architectures"]
    for entry in entries.values():
        for point in entry["prefill"]:
            point["seconds"] *= 1e5  # ticks such as "2 h 47 min"
    entries["a_very_long_name_of_an_architecture_of_ones_own"] = entries.pop("mamba") | {"title": ""}
    texts = Texts(report.render(results)).found
    assert len(texts) > 50 and any(" h " in text for text, *_ in texts)
    for text, left, right, width in texts:
        assert left >= 0 and right <= width, text


def test_the_summary_fits_its_box_and_settings_stand_apart(three):
    page = Page(three)
    summary, settings = (three.index(f'class="{name}"><caption') for name in ("summary", "settings"))
    assert "twice the Transformer's" not in three[summary:settings] and 'class="wide"' not in three[summary:settings]
    assert "twice the Transformer" in three[settings:] and "How each was trained" in page.text


README = ROOT / "README.md"


def test_the_command_fills_generated_blocks(tmp_path, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.json").write_text(json.dumps(fake_results.results(seeds=3)))
    begin = "<!-- generated: jaxseq report --results=docs/a.json --markdown -->"
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{begin}\nold\n<!-- end -->\nbetween\n{begin}<!-- end -->\nafter\n")
    assert cli.main(["report", f"--write={page}"]) == 0
    table = summary.markdown(fake_results.results(seeds=3))
    assert table.startswith("3 seeds of each architecture")
    block = f"{begin}\n{table}\n<!-- end -->\n"
    assert page.read_text(encoding="utf-8") == f"before\n\n{block}between\n{block}after\n"
    page.write_text("none")
    assert cli.main(["report", f"--write={page}"]) == 2 and "no generated block" in capsys.readouterr().err
    assert cli.main(["report"]) == 2 and "--results" in capsys.readouterr().err


def test_the_readme_shows_the_committed_results():
    text = README.read_text(encoding="utf-8")
    current, tables = generated(text, README.parent)
    if not tables:
        pytest.skip("README.md shows no committed results")
    assert text == current, "README.md is out of date; run jaxseq report --write=README.md"


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_terminal_cuts_no_header_and_no_number(width, seeds):
    results = fake_results.results(fake_results.NAMES[:12], trouble=True, seeds=seeds)
    console = Console(width=width, file=io.StringIO(), color_system=None)
    summary.show(results, console)
    said = console.file.getvalue()
    first, *lines = said.splitlines()
    table = [line for line in lines if not line.startswith(("-", "At ", "Decoding", "Training", "columns left out", "…"))]
    assert first.startswith("One seed") if seeds == 1 else "3 seeds of each" in first
    assert all(len(line) <= width and "…" not in line for line in table)
    columns = summary.header(summary.rows(results, verdicts(results)))
    shown = " ".join(" ".join(table).split())
    hidden = next((line for line in lines if line.startswith("columns left out")), "")
    for column in columns:
        assert column in hidden or all(word in shown for word in column.split()), column
    assert "2.2" in shown and (width == 80) == bool(hidden)
