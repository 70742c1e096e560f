"""Outcomes of single tests, from a CTRF report or from what pytest printed.

Rule: pure, never raises, and says nothing rather than guess: no test found is an empty tuple. An
expected failure counts as passed and an unexpected pass as failed, as Terminal-Bench counts them.
A test seen twice (passed, then an error at teardown) keeps its worst status. The reward never
depends on any of this.
"""

import json
import re
from collections.abc import Iterable, Iterator

from headrace.types import TestOutcome

MAX_TESTS = 10_000
MAX_NAME_CHARS = 300

_CTRF = {"passed": "passed", "failed": "failed", "skipped": "skipped", "pending": "skipped"}
_WORDS = {
    "PASSED": "passed", "XFAIL": "passed", "FAILED": "failed", "XPASS": "failed",
    "ERROR": "error", "SKIPPED": "skipped",
}  # fmt: skip
_MARKS = {".": "passed", "x": "passed", "F": "failed", "X": "failed", "E": "error", "s": "skipped"}
_WORST = ("skipped", "passed", "failed", "error")

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_SUMMARY = re.compile(r"=+ short test summary info =+")
_RULE = re.compile(r"={3,}.*")
_SUMMARY_LINE = re.compile(r"(PASSED|FAILED|ERROR|XFAIL|XPASS) (\S.*)")
_SKIPPED_LINE = re.compile(r"SKIPPED \[([0-9]{1,5})\] (\S+)")
_VERBOSE = re.compile(
    r" (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)(?: \([^()]*\))?\s*(?:\[ *[0-9]+%\])?$"
)
_DOTS = re.compile(r"(?:(\S+\.py) )?([.FEsxX]+)\s*(\[ *[0-9]+%\])?")
_TOTAL = re.compile(
    r"(?:=+ )?((?:[0-9]+ [a-z]+, )*[0-9]+ [a-z]+) in [0-9.]+s(?: \([0-9:]+\))?(?: =+)?"
)
_COUNTED = re.compile(r"([0-9]{1,6}) (?:passed|failed|errors?|skipped|xfailed|xpassed)\b")


def from_ctrf(data: bytes) -> tuple[TestOutcome, ...]:
    """The tests of a CTRF report; empty when it is none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return ()
    results = document.get("results") if isinstance(document, dict) else None
    tests = results.get("tests") if isinstance(results, dict) else None
    if not isinstance(tests, list):
        return ()
    return _merged(
        (test["name"], _CTRF.get(str(test.get("status")), "error"))
        for test in tests
        if isinstance(test, dict) and isinstance(test.get("name"), str)
    )


def from_pytest(text: str) -> tuple[TestOutcome, ...]:
    """The tests in pytest's output, of all its runs; empty when there is none.

    Of its summary (`-rA`), its verbose lines (`-v`) and its marks (`..F`) the first is taken that
    has as many tests as pytest says it ran, else the longest.
    """
    lines = [_COLOUR.sub("", line).rstrip() for line in text.splitlines()]
    total = sum(_totals(lines))
    found = [_merged(_from_summary(lines)), _merged(_from_verbose(lines)), _merged(_marks(lines))]
    for tests in found:
        if tests and len(tests) == total:
            return tests
    return max(found, key=len)


def _totals(lines: Iterable[str]) -> Iterator[int]:
    for line in lines:
        if total := _TOTAL.fullmatch(line):
            yield from (int(count) for count in _COUNTED.findall(total[1]))


def _from_summary(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    inside = False
    for line in lines:
        if _RULE.fullmatch(line):
            inside = _SUMMARY.fullmatch(line) is not None
        elif inside and (skipped := _SKIPPED_LINE.match(line)):
            for number in range(1, int(skipped[1]) + 1):
                yield f"{skipped[2].rstrip(':')}#{number}", "skipped"
        elif inside and (match := _SUMMARY_LINE.fullmatch(line)):
            name = match[2] if match[1] == "PASSED" else _without_message(match[2])
            yield name, _WORDS[match[1]]


def _without_message(text: str) -> str:
    """The test of `test - message`, where the test's own parameters may hold ` - `."""
    name, _, _ = text.partition(" - ")
    if name.count("[") > name.count("]"):
        end = text.find("] - ")
        return text[: end + 1] if end >= 0 else text
    return name


def _from_verbose(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        match = _VERBOSE.search(line)
        if match and "::" in (name := line[: match.start()]) and not name[0].isspace():
            yield name, _WORDS[match[1]]


def _marks(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    file, number = "", 0
    for line in lines:
        match = _DOTS.fullmatch(line)
        if match is None or not (match[1] or match[3]):
            continue  # a line of dots alone may be anything
        if match[1] and match[1] != file:
            file, number = match[1], 0
        for mark in match[2]:
            number += 1
            yield f"{file}#{number}", _MARKS[mark]


def _merged(tests: Iterable[tuple[str, str]]) -> tuple[TestOutcome, ...]:
    worst: dict[str, str] = {}
    for name, status in tests:
        short = name[:MAX_NAME_CHARS].encode("utf-8", "replace").decode()
        if short not in worst and len(worst) == MAX_TESTS:
            break
        worst[short] = max(worst.get(short, status), status, key=_WORST.index)
    return tuple(TestOutcome(name=name, status=status) for name, status in worst.items())
