"""Two runs compared: pairs, differences, chance, and what is not compared."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from headrace.engine.compare import Comparison, Side, compare, left_out
from headrace.engine.comparison_views import chance, markdown, page, render, verdict
from headrace.engine.estimates import pass_at_k
from headrace.engine.evaluate import evaluate_outcomes
from headrace.engine.evaluation_report import LeftOut, Provenance, Report
from headrace.engine.outcomes import Outcome
from headrace.errors import RunFolderError

Results = Mapping[str, str]
"""By task: one letter an attempt, `p` passed, `f` failed, `i` the infrastructure failed."""


def outcomes(run: str, results: Results) -> list[Outcome]:
    return [
        Outcome(
            task=f"digest of {task}",
            policy="v1",
            category=task[0],
            difficulty=None,
            counted=letter != "i",
            passed=letter == "p",
            reward=float(letter == "p"),
            id=f"{run}-{task}-{i}",
            name=task,
            sample=i,
            turns=len(run),
            agent_s=float(i),
        )
        for task, letters in results.items()
        for i, letter in enumerate(letters)
    ]


def side(run: str, results: Results, **changes: Any) -> Side:
    provenance = Provenance(
        run=run, created="2026-11-01T00:00:00Z", headrace="0.1.0", tasks_source="pack",
        tasks=len(results), tasks_digest="d", policy="vllm", policy_version="v1", model=None,
        provider="docker", network="none", compat="correct", attempts=1, seed=0, config_digest="c",
    )  # fmt: skip
    evaluation = evaluate_outcomes(outcomes(run, results), resamples=20)
    report = Report(provenance=provenance, left_out=LeftOut(), evaluation=evaluation)
    plain: dict[str, Any] = {"tasks": {t: f"digest of {t}" for t in results}, "config": {}}
    return Side(report=report, **(plain | changes))


def compared(a: Results, b: Results) -> Comparison:
    return compare(side("one", a), side("two", b), resamples=50)


# --- pairs ----------------------------------------------------------------------------------


def test_a_difference_is_the_second_run_less_the_first_paired_by_task() -> None:
    found = compared({"a": "ff", "b": "pf", "c": "pp"}, {"a": "pp", "b": "pf", "c": "fp"})
    first, second = found.pass_at_k
    assert (first.a, first.b, first.value, first.tasks) == (0.5, 2 / 3, pytest.approx(1 / 6), 3)
    assert (second.name, second.a, second.b) == ("pass@2", 2 / 3, 1.0)
    assert [(t.name, t.difference) for t in found.gained] == [("a", 1.0)]
    assert [(t.name, t.difference) for t in found.lost] == [("c", -0.5)]
    assert found.same == 1


def test_a_task_that_moved_names_an_attempt_of_each_run_to_look_at() -> None:
    found = compared({"a": "pf", "b": "pp"}, {"a": "pp", "b": "pf"})
    (gained,), (lost,) = found.gained, found.lost
    assert (gained.a_episode, gained.b_episode) == ("one-a-1", "two-a-0")
    assert (lost.a_episode, lost.b_episode) == ("one-b-0", "two-b-1")


def test_a_task_flips_where_the_majority_does() -> None:
    found = compared({"a": "pff", "b": "f", "c": "ppp"}, {"a": "fff", "b": "p", "c": "pff"})
    assert [(t.name, t.flipped) for t in (*found.gained, *found.lost)] == [
        ("b", True),
        ("c", True),
        ("a", False),
    ]


def test_what_only_one_run_has_or_counts_is_named_and_left_out() -> None:
    a = side("one", {"a": "p", "b": "p", "only": "p", "gone": "i"})
    b = side("two", {"a": "f", "b": "f", "new": "p", "gone": "p"})
    changed = msgspec.structs.replace(b, tasks=b.tasks | {"b": "other content"})
    found = compare(a, changed, resamples=20)
    assert found.tasks == found.pass_at_k[0].tasks == 1
    assert dict(left_out(found)) == {
        "only in A": ("only",),
        "only in B": ("new",),
        "of another content in A and B": ("b",),
        "without a counted attempt in one run": ("gone",),
    }


def test_pass_at_k_is_over_the_tasks_that_have_k_attempts_in_both() -> None:
    found = compared({"a": "pppp", "b": "pp"}, {"a": "fff", "b": "ppp"})
    assert [(d.name, d.tasks) for d in found.pass_at_k] == [
        ("pass@1", 2),
        ("pass@2", 2),
        ("pass@3", 1),
    ]


def test_categories_and_costs_are_compared_over_the_same_pairs() -> None:
    found = compared({"x1": "f", "x2": "f", "y": "p"}, {"x1": "p", "x2": "f", "y": "p"})
    assert [(d.name, d.value, d.tasks) for d in found.by_category] == [("x", 0.5, 2), ("y", 0.0, 1)]
    assert found.by_difficulty == ()
    assert [d.name for d in found.costs] == ["reward", "turns"]
    assert (found.costs[1].a, found.costs[1].b, found.costs[1].value) == (3.0, 3.0, 0.0)


def test_settings_that_differ_are_listed_and_long_ones_cut() -> None:
    a = side("one", {"a": "p"}, config={"limits": {"max_turns": 20}, "policy": {"run": "x" * 99}})
    b = side("two", {"a": "p"}, config={"limits": {"max_turns": 40}, "policy": {}})
    found = compare(a, b, resamples=20)
    assert [(s.key, s.a, s.b) for s in found.settings] == [
        ("limits.max_turns", "20", "40"),
        ("policy.run", "x" * 77 + "...", "(absent)"),
    ]
    console = Console(width=160)
    with console.capture() as shown:
        console.print(render(found))
    for told in (shown.get(), markdown(found), page(found)):
        assert "max_turns" in told, "who compares must see what else was changed"


# --- chance ---------------------------------------------------------------------------------


def test_eleven_gained_and_two_lost_is_the_exact_test() -> None:
    a = {f"t{i}": "p" if i < 2 else "f" for i in range(20)}
    b = {f"t{i}": "p" if 2 <= i < 13 else "f" for i in range(20)}
    found = compared(a, b)
    assert found.p_method == "exact"
    assert found.p_value == pytest.approx(2 * (1 + 13 + 78) / 2**13)
    assert chance(found) == "0.022"
    assert "not rare by chance" not in verdict(found)


def test_equal_runs_differ_by_chance_alone() -> None:
    found = compared({"a": "p", "b": "f"}, {"a": "p", "b": "f"})
    assert (found.p_value, found.pass_at_k[0].value) == (1.0, 0.0)
    assert "is not rare by chance alone" in verdict(found)


def test_a_very_small_chance_is_not_told_as_zero() -> None:
    found = compared({f"t{i}": "f" for i in range(30)}, {f"t{i}": "p" for i in range(30)})
    assert chance(found) == "less than 0.001"


results = st.dictionaries(
    st.sampled_from(["t1", "t2", "u1", "u2", "u3"]),
    st.text("pfi", min_size=1, max_size=5),
    min_size=1,
)


@given(results, results)
def test_swapping_the_runs_turns_every_difference_round(a: Results, b: Results) -> None:
    try:
        found = compared(a, b)
    except RunFolderError:
        with pytest.raises(RunFolderError):
            compared(b, a)
        return
    back = compare(side("two", b), side("one", a), resamples=50)
    assert back.tasks == found.tasks
    assert back.p_value == pytest.approx(found.p_value)
    assert len(back.gained) == len(found.lost)
    for there, here in zip(found.pass_at_k, back.pass_at_k, strict=True):
        assert here.value == pytest.approx(-there.value)
        assert there.low <= there.value <= there.high
        assert there.value == pytest.approx(there.b - there.a)


@given(results)
def test_a_run_compared_with_its_like_does_not_differ(a: Results) -> None:
    if not any(letter != "i" for letters in a.values() for letter in letters):
        return
    found = compared(a, a)
    assert (found.gained, found.lost, found.p_value) == ((), (), 1.0)
    assert all((d.value, d.low, d.high) == (0.0, 0.0, 0.0) for d in found.pass_at_k)
    assert found.pass_at_k[0].a == pytest.approx(
        sum(pass_at_k(len(s), s.count("p"), 1) for s in counted(a)) / len(counted(a))
    )


def counted(a: Results) -> list[str]:
    return [s for letters in a.values() if (s := letters.replace("i", ""))]


# --- nonsense -------------------------------------------------------------------------------


def test_a_run_is_not_compared_with_itself() -> None:
    with pytest.raises(RunFolderError, match="expected two runs, found run one twice"):
        compare(side("one", {"a": "p"}), side("one", {"a": "p"}))


@pytest.mark.parametrize(
    ("b", "told"),
    [
        (side("two", {"z": "p"}), "none in common"),
        (side("two", {"a": "p"}, tasks={"a": "other"}), "1 tasks have one name in both, but each"),
        (side("two", {"a": "i"}), "none has a counted attempt in both yet"),
    ],
)
def test_nothing_to_compare_is_refused_with_why(b: Side, told: str) -> None:
    with pytest.raises(RunFolderError, match=told):
        compare(side("one", {"a": "p"}), b)


# --- how it looks ---------------------------------------------------------------------------

HOSTILE = {"<script>x</script>|\x1b[31m": "f", "b": "pf"}


def test_names_are_escaped_everywhere() -> None:
    found = compared(HOSTILE, {**dict.fromkeys(HOSTILE, "p"), "c": "p"})
    html, text = page(found), markdown(found)
    console = Console(width=160, no_color=True, highlight=False)
    with console.capture() as shown:
        console.print(render(found))
    for told in (html, text, shown.get()):
        assert "\x1b[31m" not in told
        assert "\\x1b" in told
    assert "<script" not in html
    assert "\\<script\\>x\\</script\\>\\|" in text
    assert "Not compared, only in B: 1 task: c." in html


def test_the_page_asks_nothing_of_anyone() -> None:
    html = page(compared({"a": "pf"}, {"a": "pp"}))
    assert re.findall(r"(?:src|href)=|https?:|@import|url\(", html) == []


def test_many_moved_tasks_are_cut_in_a_terminal_and_whole_in_the_files() -> None:
    many = [f"t{i:02}" for i in range(40)]
    found = compared(dict.fromkeys(many, "f"), dict.fromkeys(many, "p"))
    console = Console(width=160)
    with console.capture() as shown:
        console.print(render(found))
    assert "and 20 more; --json has all" in shown.get()
    assert all(f"| {name} |" in markdown(found) for name in many)


def test_verdicts_read_in_two_ways_are_told() -> None:
    a, b = side("one", {"a": "p"}), side("two", {"a": "p"})
    strict = msgspec.structs.replace(b.report.provenance, compat="strict", tasks_source="other")
    other = msgspec.structs.replace(b.report, provenance=strict)
    found = compare(a, msgspec.structs.replace(b, report=other), resamples=20)
    assert "Verdicts are read correct in A and strict in B." in page(found)
    assert "vllm on other against vllm on pack" in page(found)


def test_a_comparison_survives_json() -> None:
    found = compared({"a": "pf", "b": "f"}, {"a": "pp", "b": "f"})
    assert msgspec.json.decode(msgspec.json.encode(found), type=Comparison) == found
