"""The five parsers of Terminal-Bench 1.0: the official answers, and where we answer otherwise."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.tasks.terminal_bench_1_fields import PARSERS
from headrace.verifiers.parsers import CORRECT, STRICT, Reading, difference, read

GOLDEN = Path(__file__).parent / "data" / "terminal-bench-1-parsers.json"
"""Inputs made at random, and what terminal-bench 0.2.18 answered: null, where its parser raised."""
TITLE = "=========================== short test summary info ============================"
END = "=================== 1 failed, 2 passed in 0.12s ===================="


def summary(*lines: str, end: str = END) -> str:
    return "\n".join(["collected 3 items", TITLE, *lines, end, ""])


def strict(output: str, parser: str = "pytest") -> Reading:
    return read(parser, output, compat=STRICT)


def correct(output: str, parser: str = "pytest") -> Reading:
    return read(parser, output, compat=CORRECT)


def statuses(reading: Reading) -> dict[str, str]:
    return {test.name: test.status for test in reading.tests}


def golden() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(GOLDEN.read_text())
    return cases


@pytest.mark.parametrize("parser", PARSERS)
def test_strict_gives_the_official_answers(parser: str) -> None:
    cases = [case for case in golden() if case["parser"] == parser]
    assert len(cases) >= 50
    for case in cases:
        reading = strict(case["output"], parser)
        found = [reading.solved, [[test.name, test.status] for test in reading.tests]]
        assert (None if reading.problem else found) == case["official"], case["output"]


def test_the_golden_cases_have_every_outcome_of_every_parser() -> None:
    outcomes = {(c["parser"], c["official"] and c["official"][0]) for c in golden()}
    raising = {"pytest", "swebench", "sweperf"}
    assert outcomes == {(p, solved) for p in PARSERS for solved in (True, False)} | {
        (p, None) for p in raising
    }


# --- pytest ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "status", "solved"),
    [
        ("PASSED", "passed", True), ("XFAIL", "passed", True), ("SKIPPED", "skipped", True),
        ("FAILED", "failed", False), ("XPASS", "failed", False), ("ERROR", "error", False),
    ],
)  # fmt: skip
def test_each_word_of_pytest_has_its_verdict(word: str, status: str, solved: bool) -> None:
    output = summary("PASSED tests/test_a.py::test_first", f"{word} tests/test_a.py::test_x")
    assert correct(output).solved is strict(output).solved is solved
    assert statuses(correct(output))["tests/test_a.py::test_x"] == status
    assert statuses(strict(output))["test_x"] == ("passed" if solved else "failed")


@pytest.mark.parametrize("output", ["", "3 passed in 0.1s\n", "short test summary info\nPASSED x"])
def test_output_without_a_summary_is_a_parse_error(output: str) -> None:
    for reading in (strict(output), correct(output)):
        assert not reading.solved
        assert reading.problem.startswith('parse_error: expected "short test summary info"')


def test_an_empty_summary_is_solved_officially_and_no_test_to_us() -> None:
    output = summary("something else")
    assert (strict(output).solved, strict(output).problem) == (True, "")
    assert (correct(output).solved, correct(output).tests) == (False, ())
    assert correct(output).problem == "no_tests: the summary lists no test"


def test_tests_that_were_all_skipped_prove_nothing() -> None:
    output = summary("SKIPPED [2] tests/test_a.py:12: no display", "SKIPPED tests/t.py::b - why")
    assert strict(output).solved
    assert not correct(output).solved
    assert correct(output).problem == "no_tests: all 2 tests were skipped"
    assert statuses(correct(output)) == {
        "tests/test_a.py:12": "skipped", "tests/t.py::b": "skipped",
    }  # fmt: skip


def test_a_later_test_of_the_same_name_hides_a_failure_officially_only() -> None:
    output = summary("FAILED tests/test_a.py::test_x - assert 0", "PASSED tests/test_b.py::test_x")
    assert statuses(strict(output)) == {"test_x": "passed"}
    assert statuses(correct(output)) == {
        "tests/test_a.py::test_x": "failed", "tests/test_b.py::test_x": "passed",
    }  # fmt: skip
    assert (strict(output).solved, correct(output).solved) == (True, False)
    assert difference(strict(output), correct(output)) == (
        "failure_hidden: tests/test_a.py::test_x failed; officially another line hides it"
    )


def test_the_worst_status_of_a_test_seen_twice_counts() -> None:
    output = summary("PASSED t.py::a", "ERROR t.py::a - teardown", "PASSED t.py::a")
    assert statuses(correct(output)) == {"t.py::a": "error"}
    assert not correct(output).solved


def test_a_second_run_of_pytest_counts_too() -> None:
    first = summary("PASSED tests/test_a.py::test_x")
    for second in ("FAILED tests/test_b.py::test_y - no", "ERROR tests/test_b.py"):
        assert not correct(first + summary(second)).solved
        assert not correct(summary(second) + first).solved
    assert correct(first + summary("PASSED tests/test_b.py::test_y")).solved


def test_what_follows_the_end_of_a_summary_is_no_test() -> None:
    for end in (END, "2 passed in 0.10s", "2 passed, 1 warning in 61.00s (0:01:01)"):
        output = summary("PASSED t.py::a", end=end) + "ERROR: cache could not be cleaned\n"
        assert not strict(output).solved
        assert correct(output).solved
        assert difference(strict(output), correct(output)).startswith("no_test_failed: cache could")
    assert not correct(summary("nothing") + "PASSED t.py::forged\n").solved


def test_a_summary_that_breaks_off_is_read_to_where_it_goes() -> None:
    assert not correct(f"{TITLE}\nPASSED t.py::a\nFAILED t.py::b").solved


@pytest.mark.parametrize(
    ("line", "official", "ours"),
    [
        ("FAILED t.py::a - assert 1 - 1", "a - assert 1", "t.py::a"),
        ("FAILED t.py::a[x - y] - no", "a[x - y]", "t.py::a[x - y]"),
        ("FAILED t.py::a[x - y]", "a[x", "t.py::a[x - y]"),
        ("ERROR t.py::a - RuntimeError", "a - RuntimeError", "t.py::a"),
        ("ERROR: t.py::a", "a", "t.py::a"),
        ("FAILED t.py::K::a - no", "K::a", "t.py::K::a"),
    ],
)
def test_messages_are_cut_from_names(line: str, official: str, ours: str) -> None:
    assert list(statuses(strict(summary(line)))) == [official]
    assert list(statuses(correct(summary(line)))) == [ours]


def test_colours_are_no_part_of_the_output() -> None:
    output = summary(
        "\x1b[32mPASSED\x1b[0m t.py::\x1b[1ma\x1b[0m", "\x1b]0;title\x07PASSED t.py::b"
    )
    output = output.replace(TITLE, f"\x1b[36m\x1b[1m{TITLE}\x1b[0m")
    assert statuses(strict(output)) == {"a": "passed", "b": "passed"}
    assert statuses(correct(output)) == {"t.py::a": "passed", "t.py::b": "passed"}


# --- the others -----------------------------------------------------------------------------

MARKS = {"swebench": "SWEBench", "sweperf": "SWE-Perf", "mlebench": "MLEBench"}


def block(parser: str, text: str) -> str:
    return f"x\n{MARKS[parser]} results starts here\n{text}\n{MARKS[parser]} results ends here\ny\n"


@pytest.mark.parametrize("parser", MARKS)
def test_a_marked_block_must_say_exactly_that_all_passed(parser: str) -> None:
    good = "ALL TESTS PASSED" if parser == "mlebench" else "PASSED"
    for way in (strict, correct):
        assert way(block(parser, good), parser).solved
        assert way(block(parser, f"\n  {good} \n"), parser).solved
        for bad in ("FAILED", "", f"{good}\nFAILED", f"{good}!", good.lower()):
            assert not way(block(parser, bad), parser).solved
            assert statuses(way(block(parser, bad), parser)) == {"tests": "failed"}
        assert not way(block(parser, good) + block(parser, "FAILED"), parser).solved


@pytest.mark.parametrize("parser", MARKS)
def test_marks_that_are_missing_are_a_problem(parser: str) -> None:
    half = f"{MARKS[parser]} results starts here\nPASSED\n"
    for output in ("", "PASSED", half):
        assert correct(output, parser).problem.startswith("parse_error: expected")
        if parser == "mlebench":  # officially a test that failed
            assert statuses(strict(output, parser)) == {"tests": "failed"}
        else:
            assert strict(output, parser) == correct(output, parser)


def test_a_reported_failure_of_swelancer_counts_whatever_else_is_reported() -> None:
    both = "SWE Lancer FAILURE\nuser_tool completed\nSWE Lancer SUCCESS\n"
    assert (strict(both, "swelancer").solved, correct(both, "swelancer").solved) == (True, False)
    assert "failure_hidden: swelancer_task" in difference(
        strict(both, "swelancer"), correct(both, "swelancer")
    )
    for way in (strict, correct):
        assert way("... swe lancer success", "swelancer").solved
        assert way("user_tool has Completed", "swelancer").solved
        assert not way("user_tool completed; SWE Lancer failure", "swelancer").solved
    assert statuses(strict("", "swelancer")) == {"swelancer_task": "failed"}
    assert correct("", "swelancer").problem.startswith("parse_error: expected")


# --- any output -----------------------------------------------------------------------------

WORDS = ["PASSED", "FAILED", "ERROR", " - ", "::", TITLE, END, "=", "\n", "\r", "\x1b[", "\x1b]",
         "t.py", "[", "]", "SWE Lancer success", "SWEBench results starts here"]  # fmt: skip


@given(
    st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=30), st.sampled_from(PARSERS)
)
def test_no_output_breaks_a_parser(words: list[str], parser: str) -> None:
    for way in (strict, correct):
        reading = way("".join(words), parser)
        assert not (reading.solved and reading.problem)
    if correct("".join(words), parser).solved and parser != "pytest":
        assert strict("".join(words), parser).solved


@pytest.mark.parametrize(
    "output",
    [
        "=" * 4_000_000,
        TITLE + "\n" + "=" * 4_000_000,
        TITLE + "\n" + " " * 4_000_000,
        f"{TITLE}\nFAILED " + "a - " * 1_000_000,
        f"{TITLE}\n" + "SKIPPED [99999] t.py:1: x\n" * 100_000,
        f"{TITLE}\n" * 40_000,
        "\x1b[" * 2_000_000,
        f"{TITLE}\n" + "".join(f"PASSED t.py::test_{n}\n" for n in range(150_000)),
    ],
    ids=["rule", "long end", "blanks", "dashes", "skips", "titles", "escapes", "tests"],
)
def test_megabytes_of_output_are_read_in_seconds(output: str) -> None:
    begun = time.process_time()
    for way in (strict, correct):
        assert len(way(output).tests) <= 10_000
    assert time.process_time() - begun < 10


# --- what pytest really prints ----------------------------------------------------------------

FIRST = """
import pytest

def test_same(): assert [1, 2] == [1, 3], "one - two"
def test_good(): print("PASSED test_outputs.py::printed_by_a_test")
@pytest.mark.parametrize("x", ["a - b", "c"])
def test_with(x): assert x == "c"
@pytest.mark.skip(reason="not - here")
def test_skipped(): pass
@pytest.mark.xfail
def test_expected(): assert False
@pytest.mark.xfail
def test_unexpected(): pass
@pytest.fixture
def broken(): raise RuntimeError("set-up - failed")
def test_set_up(broken): pass
class TestThem:
    def test_in_a_class(self): pass
"""
SECOND = "def test_same(): pass\n"


def printed_by_pytest(folder: Path, *options: str) -> str:
    (folder / "test_first.py").write_text(FIRST)
    (folder / "test_second.py").write_text(SECOND)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *options],
        cwd=folder,
        capture_output=True,
        timeout=50,
        check=False,
        env={**os.environ, "COLUMNS": "160", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert ran.returncode == 1, ran.stderr
    return ran.stdout.decode()


@pytest.mark.parametrize("options", [(), ("-vv",), ("--color=yes", "-q")])
def test_the_output_of_pytest_itself_is_read_whole(tmp_path: Path, options: tuple[str]) -> None:
    output = printed_by_pytest(tmp_path, *options)
    assert statuses(correct(output)) == {
        "test_first.py::test_same": "failed",
        "test_first.py::test_good": "passed",
        "test_first.py::test_with[a - b]": "failed",
        "test_first.py::test_with[c]": "passed",
        "test_first.py:8": "skipped",
        "test_first.py::test_expected": "passed",
        "test_first.py::test_unexpected": "failed",
        "test_first.py::test_set_up": "error",
        "test_first.py::TestThem::test_in_a_class": "passed",
        "test_second.py::test_same": "passed",
    }
    official = statuses(strict(output))
    assert official["test_expected"] == official["TestThem::test_in_a_class"] == "passed"
    assert official["test_unexpected"] == "failed"
    assert "printed_by_a_test" not in str(official)
