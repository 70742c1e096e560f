"""Rewards and test outcomes, read from what verifiers wrote."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.types import TestOutcome
from headrace.verifiers.outcomes import from_ctrf, from_pytest
from headrace.verifiers.reward import RewardFault, Rewards, read_reward_json, read_reward_txt


def pairs(tests: tuple[TestOutcome, ...]) -> list[tuple[str, str]]:
    return [(test.name, test.status) for test in tests]


# --- rewards --------------------------------------------------------------------------------

TXT: list[tuple[bytes, float | str]] = [
    (b"1", 1.0),
    (b"0\n", 0.0),
    (b" 0.73 \r\n", 0.73),
    (b"\xef\xbb\xbf1\r\n", 1.0),
    (b"1e-2", 0.01),
    (b"7", 7.0),
    (b"-1", -1.0),
    (b"", "reward_empty"),
    (b" \r\n\n", "reward_empty"),
    (b"passed", "reward_unparsable"),
    (b"1 1", "reward_unparsable"),
    (b"1,0", "reward_unparsable"),
    (b"\x00\x01\xff\xfe", "reward_unparsable"),
    (b"1\x00", "reward_unparsable"),
    (b"nan", "reward_not_finite"),
    (b"-inf", "reward_not_finite"),
    (b"1e999", "reward_not_finite"),
]


@pytest.mark.parametrize(("data", "expected"), TXT)
def test_reward_txt_is_one_finite_number(data: bytes, expected: float | str) -> None:
    found = read_reward_txt(data)
    if isinstance(found, RewardFault):
        assert found.kind == expected
    else:
        assert found.values == {"reward": expected}


JSON: list[tuple[bytes, dict[str, float] | str]] = [
    (b'{"reward": 1}', {"reward": 1.0}),
    (b'\xef\xbb\xbf{"reward": 0.5}\r\n', {"reward": 0.5}),
    (b'{"a": true, "b": false}', {"a": 1.0, "b": 0.0}),
    (b"", "reward_empty"),
    (b"  ", "reward_empty"),
    (b"{}", "reward_missing"),
    (b"1", "reward_unparsable"),
    (b"[1]", "reward_unparsable"),
    (b"null", "reward_unparsable"),
    (b'{"reward": "1"}', "reward_unparsable"),
    (b'{"reward": 1, "status": "ok"}', "reward_unparsable"),
    (b'{"reward": null}', "reward_unparsable"),
    (b'{"reward": {"a": 1}}', "reward_unparsable"),
    (b'{"reward": 1', "reward_unparsable"),
    (b"\xff\xfe\x00", "reward_unparsable"),
    (b"[" * 100_000, "reward_unparsable"),
    (b'{"a": ' + b"9" * 5000 + b"}", "reward_unparsable"),
    (b'{"reward": NaN}', "reward_not_finite"),
    (b'{"reward": -Infinity}', "reward_not_finite"),
    (b'{"reward": ' + b"9" * 400 + b"}", "reward_not_finite"),
]


@pytest.mark.parametrize(("data", "expected"), JSON)
def test_reward_json_is_an_object_of_finite_numbers(
    data: bytes, expected: dict[str, float] | str
) -> None:
    found = read_reward_json(data)
    if isinstance(found, RewardFault):
        assert found.kind == expected
        assert len(str(found)) < 400
    else:
        assert found.values == expected


@pytest.mark.parametrize(
    ("values", "reward"),
    [
        ({"reward": 0.25, "style": 1.0}, 0.25),
        ({"score": 0.5}, 0.5),
        ({"a": 1.0, "b": 0.0}, 0.5),
        ({"reward": 3.0}, 1.0),
        ({"reward": -2.0}, 0.0),
    ],
)
def test_the_reward_is_the_key_reward_else_the_only_one_else_the_mean(
    values: dict[str, float], reward: float
) -> None:
    assert Rewards(values=values).reward == reward


@given(st.binary() | st.text().map(str.encode))
def test_no_bytes_make_the_reward_readers_raise(data: bytes) -> None:
    for reader in (read_reward_json, read_reward_txt):
        found = reader(data)
        if isinstance(found, Rewards):
            assert 0.0 <= found.reward <= 1.0
        else:
            str(found).encode()


# --- CTRF -----------------------------------------------------------------------------------


def test_a_ctrf_report_gives_its_tests() -> None:
    statuses = {"a": "passed", "b": "failed", "c": "pending", "d": "skipped", "e": "other"}
    tests = [{"name": name, "status": status} for name, status in statuses.items()]
    report = json.dumps({"results": {"tool": {}, "tests": [*tests, {"status": "passed"}, 3]}})
    assert pairs(from_ctrf(report.encode())) == [
        ("a", "passed"), ("b", "failed"), ("c", "skipped"), ("d", "skipped"), ("e", "error")
    ]  # fmt: skip


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"results": 1}', b"\xff", b"[" * 100_000])
def test_what_is_no_ctrf_report_gives_nothing(data: bytes) -> None:
    assert from_ctrf(data) == ()


# --- pytest ---------------------------------------------------------------------------------

ALL = """\
============================= test session starts ==============================
collected 6 items

../tests/test_outputs.py .Fs.xE                                          [100%]

=================================== FAILURES ===================================
FAILED not in the summary
=========================== short test summary info ============================
PASSED ../tests/test_outputs.py::test_a
PASSED ../tests/test_outputs.py::test_b[x - y]
SKIPPED [1] ../tests/test_outputs.py:12: not here
XFAIL ../tests/test_outputs.py::test_x - reason
ERROR ../tests/test_outputs.py::test_e - OSError: no
FAILED ../tests/test_outputs.py::test_f[a - b] - AssertionError: assert 1 - 1
==== 1 failed, 2 passed, 1 skipped, 1 xfailed, 1 error in 0.05s ====
"""


def test_the_summary_of_all_outcomes_is_read() -> None:
    assert pairs(from_pytest(ALL)) == [
        ("../tests/test_outputs.py::test_a", "passed"),
        ("../tests/test_outputs.py::test_b[x - y]", "passed"),
        ("../tests/test_outputs.py:12#1", "skipped"),
        ("../tests/test_outputs.py::test_x", "passed"),
        ("../tests/test_outputs.py::test_e", "error"),
        ("../tests/test_outputs.py::test_f[a - b]", "failed"),
    ]


VERBOSE = """\
t/test_a.py::test_one PASSED                                             [ 33%]
t/test_a.py::test_two[a b] \x1b[31mFAILED\x1b[0m                         [ 66%]
t/test_a.py::test_three SKIPPED (no tool)                                [100%]
=========================== short test summary info ============================
FAILED t/test_a.py::test_two[a b] - assert False
=================== 1 failed, 1 passed, 1 skipped in 1.00s (0:00:01) ===================
"""


def test_verbose_lines_are_read_when_the_summary_has_failures_only() -> None:
    assert pairs(from_pytest(VERBOSE)) == [
        ("t/test_a.py::test_one", "passed"),
        ("t/test_a.py::test_two[a b]", "failed"),
        ("t/test_a.py::test_three", "skipped"),
    ]


MARKS = """\
t/test_a.py .F                                                           [ 66%]
t/test_b.py s                                                            [100%]
=========================== short test summary info ============================
FAILED t/test_a.py::test_two - assert False
========================= 1 failed, 1 passed, 1 skipped in 0.10s =========================
"""


def test_marks_are_counted_when_there_is_nothing_better() -> None:
    assert pairs(from_pytest(MARKS)) == [
        ("t/test_a.py#1", "passed"),
        ("t/test_a.py#2", "failed"),
        ("t/test_b.py#1", "skipped"),
    ]


def test_quiet_marks_are_counted() -> None:
    assert [s for _, s in pairs(from_pytest("..F  [100%]\n1 failed, 2 passed in 0.01s\n"))] == [
        "passed", "passed", "failed"
    ]  # fmt: skip


def test_two_runs_of_pytest_add_up() -> None:
    summary = "=== short test summary info ===\nPASSED {0}::t\n=== 1 passed in 0.01s ===\n"
    found = from_pytest(summary.format("a.py") + summary.format("b.py"))
    assert pairs(found) == [("a.py::t", "passed"), ("b.py::t", "passed")]


def test_a_test_that_passed_and_then_broke_at_teardown_is_an_error() -> None:
    text = "=== short test summary info ===\nPASSED a.py::t\nERROR a.py::t - boom\n=== end ===\n"
    assert pairs(from_pytest(text)) == [("a.py::t", "error")]


@pytest.mark.parametrize("text", ["", "PASSED a::b\n", "....\n", "== 3 passed in 1s ==\n", "ok\n"])
def test_what_is_no_pytest_output_gives_nothing(text: str) -> None:
    assert from_pytest(text) == ()


@given(st.text() | st.lists(st.sampled_from(["=", " ", "::", ".", "PASSED", "\n", "F", "a.py",
    "short test summary info", "[1]", "SKIPPED ", "%]", "["])).map("".join))  # fmt: skip
def test_no_output_makes_the_reader_raise(text: str) -> None:
    for test in from_pytest(text):
        assert test.status in ("passed", "failed", "skipped", "error")


def test_a_megabyte_of_anything_is_read_at_once() -> None:
    for piece in ("::", " PASSED", "a.py .", "x::y PASSED (", "= ", "1 passed, ", "[ 1%]"):
        from_pytest(piece * ((1 << 20) // len(piece)))  # the test's deadline is the bound
