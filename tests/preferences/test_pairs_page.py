"""How a report of pairs looks: the page, its plots, Markdown and the terminal."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests.preferences.tallies import made, nothing, run_named, side, small, tally

from headrace.engine import evaluation_page
from headrace.errors import RunFolderError
from headrace.preferences import pairs_plots
from headrace.preferences.histogram import Histogram, histogram
from headrace.preferences.pairs_files import write_pairs_report
from headrace.preferences.pairs_markdown import markdown
from headrace.preferences.pairs_page import difference, flat, page
from headrace.preferences.pairs_plots import bars, cloud, short
from headrace.preferences.pairs_report import PairsReport, pairs_report
from headrace.preferences.pairs_tables import render_pairs
from headrace.preferences.tally import Outcomes, PairsTally

HOSTILE = "evil/<script>alert(1)</script>|`x`\x1b[31m\u202e@all"


def shown(report: PairsReport, width: int = 120) -> str:
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as text:
        console.print(render_pairs(report))
    return text.get()


def every_form(report: PairsReport) -> list[str]:
    return [page(report), markdown(report), shown(report)]


def one_pair() -> PairsTally:
    return tally(side((3,), (100,), 1.0), side((3,), (100,), 0.5))


def without_margin() -> PairsTally:
    equal = side((3,) * 5, (100,) * 5, 1.0)
    return tally(equal, equal, outcomes=Outcomes(no_loss=5))


def many_pairs() -> PairsTally:
    n = 20_000
    chosen = side(tuple(i % 40 for i in range(n)), tuple(i % 997 for i in range(n)), 1.0)
    rejected = side(tuple(i % 37 for i in range(n)), tuple(i % 1009 for i in range(n)), 0.0)
    return tally(chosen, rejected, pairs_by_rule={"margin": 5 * n})


def silent() -> PairsTally:
    return tally(side((3, 4), (0, 0), 1.0), side((5, 4), (0, 0), 0.0))


CASES: dict[str, Callable[[], PairsTally]] = {
    "small": small, "one pair": one_pair, "no margin": without_margin, "many": many_pairs,
    "no tokens": silent, "no pair": nothing,
    "no task": lambda: nothing(outcomes=Outcomes(), pairs_by_rule={}, left_out_by_rule={}),
    "no run": lambda: nothing(made=made(runs=(), options={}, rows={})),
}  # fmt: skip


class Tags(HTMLParser):
    """Every tag is closed in order, and the numbers of the plots are numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._check(tag, attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._check(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _check(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"):
                assert re.fullmatch(r"-?[\d.]+%?", value or ""), (tag, name, value)


@pytest.mark.parametrize("name", CASES)
def test_every_form_can_show_it(name: str) -> None:
    report = pairs_report(CASES[name]())
    html, text, table = every_form(report)
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    for told in (html, text, table):
        assert "preference pair" in told
        assert not re.search(r"\bnan\b|\bNone\b|\binf\b", told)


@pytest.mark.parametrize("name", CASES)
def test_the_page_asks_nothing_of_anyone_and_runs_nothing(name: str) -> None:
    html = page(pairs_report(CASES[name]()))
    assert re.findall(r"(?:src|href)=|https?:|@import|url\(|<script| on\w+=", html) == []
    assert "default-src 'none'" in html


def test_every_part_is_in_every_form() -> None:
    told = {"near-miss": {"no_near_miss": 1}, "margin": {"tie": 2}}
    report = pairs_report(
        msgspec.structs.replace(
            small(),
            outcomes=Outcomes(no_win=31, mixed=4, no_loss=22),
            pairs_by_rule={"margin": 4, "near-miss": 0},
            left_out_by_rule=told,
        )
    )
    for form in every_form(report):
        for part in ("no win", "31", "22", "sampled tokens", "near-miss", "equal scores", "66.7 %"):
            assert part in form
    for form in every_form(report)[:2]:
        assert "headrace pairs runs/one" in form


def test_notices_come_before_any_number() -> None:
    report = pairs_report(msgspec.structs.replace(small(), made=made(damaged=("torn",))))
    for form in every_form(report):
        assert form.index("in no pair: torn") < form.index("mixed")


def _hostile() -> PairsReport:
    run = run_named(HOSTILE, HOSTILE, policy=HOSTILE, model=HOSTILE, created=HOSTILE)
    return pairs_report(
        msgspec.structs.replace(
            small(),
            made=made(
                command=HOSTILE, licence=HOSTILE, damaged=(HOSTILE,), runs=(run,), format=HOSTILE,
                options={HOSTILE: [HOSTILE]}, left_out={HOSTILE: 1}, rows={HOSTILE: 1},
            ),
            pairs_by_rule={HOSTILE: 4},
            left_out_by_rule={HOSTILE: {HOSTILE: 1}},
        )
    )  # fmt: skip


def test_a_hostile_name_is_text_everywhere() -> None:
    report = _hostile()
    for told in every_form(report):
        assert "\x1b" not in told and "\u202e" not in told
    html, text, _ = every_form(report)
    assert "<script" not in html
    assert "evil/&lt;script&gt;" in html
    assert "@all" not in text and "<script" not in text.replace("\\<script", "")


def test_a_narrow_terminal_cuts_no_number() -> None:
    told = shown(pairs_report(small()), width=80)
    assert all(len(line) <= 80 for line in told.splitlines())
    assert "66.7 % (20.8 to 93.9)" in told


def test_a_row_of_a_markdown_table_is_one_line() -> None:
    for line in markdown(_hostile()).splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


@pytest.mark.parametrize(
    ("value", "told"), [(None, ""), (0, "0"), (2.5, "+2.5"), (-1200, "\N{MINUS SIGN}1,200")]
)
def test_a_difference_has_its_sign(value: float | None, told: str) -> None:
    assert difference(value) == told


def test_options_are_told_to_the_last_value() -> None:
    options: dict[str, Any] = {
        "rules": [{"name": "a", "cap": None}, {"ties": True}], "seeds": [1, 2], "none": [], "x": 0.5
    }  # fmt: skip
    assert list(flat(options)) == [
        ("rules.0.name", "a"), ("rules.0.cap", "none"), ("rules.1.ties", "yes"),
        ("seeds", "1, 2"), ("none", "none"), ("x", "0.5"),
    ]  # fmt: skip


# --- plots ----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**5), min_size=1), st.lists(st.integers(0, 10**5), max_size=50))
def test_bars_lie_in_their_frame_and_none_is_lost(a: list[int], b: list[int]) -> None:
    found = histogram({"chosen": a, "rejected": b}, whole=True)
    plot = bars(found)
    assert plot is not None
    drawn = sum(len(slot.bars) for slot in plot.slots)
    assert drawn == sum(n > 0 for counts in found.counts.values() for n in counts)
    for bar in (bar for slot in plot.slots for bar in slot.bars):
        assert plot.left <= bar.x and bar.x + bar.width <= plot.right + 0.1
        assert pairs_plots.TOP - 2 <= bar.y and bar.height > 0 and bar.width > 0
    xs = [tick.at for tick in plot.x_ticks]
    assert xs == sorted(xs) and len(xs) <= pairs_plots.LABELS + 1
    assert plot.y_ticks[0].text == "0" and len(plot.y_ticks) >= 2


def test_one_pair_among_very_many_is_still_a_line() -> None:
    plot = bars(histogram({"pairs": [0] * 100_000 + [9]}, whole=True))
    assert plot is not None
    assert plot.slots[-1].bars[0].height == pairs_plots.LEAST_BAR


def test_no_number_is_no_plot() -> None:
    assert bars(Histogram(counts={"pairs": ()})) is None
    assert cloud(()) is None


def test_bins_say_what_they_hold() -> None:
    far = bars(histogram({"pairs": [*range(100)] * 10 + [50_000]}, whole=True))
    each = bars(histogram({"pairs": [3, 4]}, whole=True))
    rates = bars(histogram({"pairs": [0.5, 1.0]}, unit=True))
    assert far is not None and each is not None and rates is not None
    assert far.slots[0].text == "0 to 4: pairs 50"
    assert far.slots[-1].text == "100 to 50,000: pairs 1"
    assert far.x_ticks[-1].text == "≥ 100"
    assert [slot.text for slot in each.slots] == ["3: pairs 1", "4: pairs 1"]
    assert rates.slots[-1].text == "0.95 to 1: pairs 1"
    assert [tick.text for tick in rates.x_ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1))
def test_points_lie_in_their_frame_on_the_right_side_of_the_line(
    points: list[tuple[int, int]],
) -> None:
    plot = cloud(points)
    assert plot is not None and plot.ticks
    for (one, second), (x, y) in zip(points, plot.points, strict=True):
        assert plot.left <= x <= plot.right and plot.top <= y <= plot.bottom
        across = (x - plot.left) / (plot.right - plot.left)
        up = (plot.bottom - y) / (plot.bottom - plot.top)
        if one == second:
            assert abs(across - up) < 0.01
        else:
            assert (up - across > -0.001) == (one > second) or abs(up - across) < 0.001


def test_sizes_far_apart_are_on_a_logarithmic_scale() -> None:
    far, near = cloud([(10, 10_000), (300, 20)]), cloud([(900, 1000), (0, 5)])
    assert far is not None and near is not None
    assert (far.logarithmic, near.logarithmic) == (True, False)
    assert [text for _, _, text in far.ticks] == [
        "10", "20", "50", "100", "200", "500", "1k", "2k", "5k", "10k"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "told"), [(0, "0"), (0.15, "0.15"), (999, "999"), (1500, "1.5k"), (2e6, "2M")]
)
def test_numbers_of_an_axis_are_short(value: float, told: str) -> None:
    assert short(value) == told


# --- files ----------------------------------------------------------------------------------


def test_three_files_are_written_and_written_again(tmp_path: Path) -> None:
    report = pairs_report(small())
    for _ in range(2):
        at = write_pairs_report(report, tmp_path / "pairs")
    assert at == tmp_path / "pairs" / "report" / "index.html"
    names = {"index.html", "pairs-report.json", "report.md"}
    assert {p.name for p in at.parent.iterdir()} == names
    assert at.read_text() == page(report)
    assert json.loads((at.parent / "pairs-report.json").read_bytes())["pairs"] == 4


def test_a_place_that_cannot_be_made_is_the_users(tmp_path: Path) -> None:
    (tmp_path / "pairs").write_text("a file")
    with pytest.raises(RunFolderError, match="cannot be made"):
        write_pairs_report(pairs_report(small()), tmp_path / "pairs")


def test_templates_of_another_part_extend_those_of_the_engine() -> None:
    ours = evaluation_page.template("pairs.html.j2", package="headrace.preferences")
    assert ours.name == "pairs.html.j2"
    theirs = evaluation_page.template("evaluation.html.j2", package="headrace.preferences")
    assert theirs.name == "evaluation.html.j2"
