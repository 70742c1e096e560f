"""What the output of `run-tests.sh` says, for each parser of Terminal-Bench 1.0, read in two ways.

Rule: pure, and never raises. `strict` gives the official harness's verdict to the letter, its
mistakes included. `correct` differs from it in this only:

* no test, no solution: a summary that lists no test, or only skipped ones, is a problem (officially
  nothing failed, so it is solved);
* `pytest`: a test is its file and name, and its worst status counts (officially a test of the same
  name in a later file hides a failure); lines after the end of a summary are no tests; the message
  is cut from the name of an error, and not from a name that holds ` - `;
* `swelancer`: a failure that is reported counts, whatever else is;
* `swelancer`, `mlebench`: output without a report is a problem, not a failed test.

As officially, an expected failure and a skipped test pass, an unexpected pass fails. Colours and
other escape sequences are taken off first, for the official harness reads a terminal's screen. The
rest of that screen is not repeated: no lines wrapped at 160 columns, no scrollback that ends after
2,000 lines.
"""

import re
from collections.abc import Iterable, Iterator

from headrace.types import Record, TestOutcome
from headrace.verifiers.outcomes import MAX_NAME_CHARS, MAX_TESTS

STRICT, CORRECT = "strict", "correct"
_PASS, _FAIL = "passed", "failed"
_STRICT_WORDS = {
    "PASSED": _PASS, "XFAIL": _PASS, "SKIPPED": _PASS,
    "FAILED": _FAIL, "XPASS": _FAIL, "ERROR": _FAIL,
}  # fmt: skip
_WORDS = {**_STRICT_WORDS, "SKIPPED": "skipped", "ERROR": "error"}
_WORST = ("skipped", _PASS, _FAIL, "error")
_MARKED = {"swebench": "SWEBench", "sweperf": "SWE-Perf", "mlebench": "MLEBench"}
_PASSED_BLOCK = {"swebench": "PASSED", "sweperf": "PASSED", "mlebench": "ALL TESTS PASSED"}

_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*\x1b\\|[ -/]*[0-~])"
)
_TITLE = re.compile("short test summary info", re.IGNORECASE)
_END = re.compile(r"=+ .* =+|=+|(?:[0-9]+ [a-z]+, )*[0-9]+ [a-z]+ in [0-9.]+s(?: \([0-9:]+\))?")
_LINE = re.compile(r"(PASSED|FAILED|ERROR|XFAIL|XPASS|SKIPPED):?\s+(\S.*)")
_SKIPPED = re.compile(r"\[[0-9]{1,5}\] (.*?:[0-9]+)(?::.*)?")


class Reading(Record, frozen=True, kw_only=True):
    """What the tests say."""

    solved: bool
    tests: tuple[TestOutcome, ...] = ()
    problem: str = ""
    """Why there is no verdict, such as `parse_error: ...`; then it is not solved."""


def read(parser: str, output: str, *, compat: str) -> Reading:
    """The verdict of `output` by one of `PARSERS`."""
    text = _ESCAPES.sub("", output)
    strict = compat == STRICT
    if parser == "pytest":
        return _strict_pytest(text) if strict else _pytest(text)
    if parser == "swelancer":
        return _swelancer(text, strict=strict)
    return _marked(parser, text, strict=strict)


def difference(strict: Reading, correct: Reading) -> str:
    """Why the two readings of one output differ in whether it is solved."""
    if correct.problem:
        return f"{correct.problem}; officially nothing has failed"
    failed = [test.name for test in (correct if strict.solved else strict).tests
              if test.status in (_FAIL, "error")]  # fmt: skip
    first = failed[0] if failed else "a test"
    if strict.solved:
        return f"failure_hidden: {first} failed; officially another line hides it"
    return f"no_test_failed: {first} is no test of a summary; officially it is one that failed"


# --- pytest ---------------------------------------------------------------------------------


def _after_title(text: str, start: int = 0) -> int | None:
    """Where the text after the next summary's title line begins: `=+ \\s* title \\s* =+`.

    By hand, for the expression takes time in the square of a long row of `=`.
    """
    for title in _TITLE.finditer(text, start):
        before = title.start()
        while before > start and text[before - 1].isspace():
            before -= 1
        after = title.end()
        while after < len(text) and text[after].isspace():
            after += 1
        if before > start and text[before - 1] == "=" and text[after : after + 1] == "=":
            while text[after : after + 1] == "=":
                after += 1
            return after
    return None


def _no_title() -> Reading:
    return Reading(
        solved=False, problem='parse_error: expected "short test summary info" (pytest -rA), '
        "found none"
    )  # fmt: skip


def _strict_pytest(text: str) -> Reading:
    """Every line after the first title; the text after the first `::` is the test's name."""
    start = _after_title(text)
    if start is None:
        return _no_title()
    found: dict[str, str] = {}
    for line in text[start:].splitlines():
        if line.startswith("FAILED"):
            line = line.rpartition(" - ")[0] or line
        parts = line.split(maxsplit=1)
        word = parts[0].strip().strip(":") if len(parts) > 1 else ""
        name = parts[1].strip().split("::", maxsplit=1)[-1] if word in _STRICT_WORDS else ""
        if name:
            found[name] = _STRICT_WORDS[word]
    return Reading(
        solved=all(status == _PASS for status in found.values()), tests=_outcomes(found.items())
    )


def _pytest(text: str) -> Reading:
    """The lines of every summary; the worst status of a test counts."""
    start = _after_title(text)
    if start is None:
        return _no_title()
    worst: dict[str, str] = {}
    for name, status in _summaries(text, start):
        worst[name] = max(worst.get(name, status), status, key=_WORST.index)
    tests = _outcomes(worst.items())
    if not worst:
        return Reading(solved=False, problem="no_tests: the summary lists no test")
    statuses = set(worst.values())
    if statuses == {"skipped"}:
        return Reading(
            solved=False, tests=tests, problem=f"no_tests: all {len(worst)} tests were skipped"
        )
    return Reading(solved=statuses <= {_PASS, "skipped"}, tests=tests)


def _summaries(text: str, start: int | None) -> Iterator[tuple[str, str]]:
    while start is not None:
        following = _after_title(text, start)
        yield from _summary(text[start:following].splitlines())
        start = following


def _summary(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        if _END.fullmatch(line.rstrip()):
            return
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            continue
        word, rest = match[1], match[2]
        skipped = _SKIPPED.fullmatch(rest) if word == "SKIPPED" else None
        if skipped is not None:
            yield skipped[1], "skipped"  # a place, which may stand for several tests
        else:
            yield (rest if word == "PASSED" else _without_message(rest)), _WORDS[word]


def _without_message(text: str) -> str:
    """The test of `test - message`, where the test's own parameters may hold ` - `."""
    name, _, _ = text.partition(" - ")
    if name.count("[") > name.count("]"):
        end = text.find("] - ")
        return text[: end + 1] if end >= 0 else text
    return name


# --- one verdict for the whole ----------------------------------------------------------------


def _marked(parser: str, text: str, *, strict: bool) -> Reading:
    """The text between the first mark of the start and the last of the end."""
    begins, ends = (f"{_MARKED[parser]} results {word} here" for word in ("starts", "ends"))
    absent = begins not in text or ends not in text
    lenient = parser == "mlebench"  # officially it takes the whole output then
    if absent and not lenient:
        return Reading(solved=False, problem=_absent(begins, ends))
    block = text.split(begins, 1)[-1].rsplit(ends, 1)[0].strip()
    solved = block == _PASSED_BLOCK[parser]
    if absent and not solved and not strict:
        return Reading(solved=False, problem=_absent(begins, ends))
    return _one("tests", solved)


def _absent(begins: str, ends: str) -> str:
    return f'parse_error: expected "{begins}" and "{ends}", found not both'


def _swelancer(text: str, *, strict: bool) -> Reading:
    folded = text.lower()
    success, failure = "swe lancer success" in folded, "swe lancer failure" in folded
    completed = "user_tool" in folded and "completed" in folded
    if strict:
        return _one("swelancer_task", success or (completed and not failure))
    if not (success or failure or completed):
        detail = 'expected "SWE Lancer success" or "SWE Lancer failure", found neither'
        return Reading(solved=False, problem=f"parse_error: {detail}")
    return _one("swelancer_task", not failure)


def _one(name: str, solved: bool) -> Reading:
    status = _PASS if solved else _FAIL
    return Reading(solved=solved, tests=(TestOutcome(name=name, status=status),))


def _outcomes(found: Iterable[tuple[str, str]]) -> tuple[TestOutcome, ...]:
    """Bounded in number and length; the verdict is decided before."""
    kept: list[TestOutcome] = []
    for name, status in found:
        if len(kept) == MAX_TESTS:
            break
        short = name[:MAX_NAME_CHARS].encode("utf-8", "replace").decode()
        kept.append(TestOutcome(name=short, status=status))
    return tuple(kept)
