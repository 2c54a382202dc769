"""The progress display of a comparison: one percentage per bar, and a pulsing bar while the total is unknown."""

import io
import re

from rich.console import Console

from jaxseq.compare.progress import Display


def rendered(display, width):
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(display.live)
    return console.file.getvalue().splitlines()


def test_two_bars_fit_80_columns_and_say_each_percentage_once():
    console = Console(width=80, file=io.StringIO(), force_terminal=True)
    with Display(console) as display:
        display.plan(10)
        display.begin("stripedhyena: seed 1: training", 5)
        display.update(0.5, "loss 12.35, 20.5k tokens/s")
        whole, part = rendered(display, 80)[:2]
        assert whole.count("%") == part.count("%") == 1 and "25%" in whole and "50%" in part
        assert "left" in whole and "stripedhyena: seed 1: training" in part and "…" not in whole
        assert len(whole) <= 80 and len(part) <= 80
        display.end()
        display.begin("training speed at length 4096", 5)
        assert display.live.tasks[-1].total is None, "a bar without a total moves by itself"
        assert len(display.live.tasks) == 2


def test_plain_lines_say_the_share_of_the_whole():
    console = Console(width=80, file=io.StringIO())
    with Display(console) as display:
        display.plan(10)
        display.begin("a: training", 5)
        display.update(1.0)
        display.end()
        display.more(10)
        display.begin("b: training", 15)
    said = console.file.getvalue().splitlines()
    assert said[0] == "a: training …" and re.fullmatch(r"b: training …  \(25%, about .* left\)", said[1])
