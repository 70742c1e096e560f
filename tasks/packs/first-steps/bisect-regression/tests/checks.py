"""Checks the named commit and the object graph, and runs the program of a fresh clone of main."""

import json
import math
import os
import random
import shutil
import statistics

import grading

REPO = "/app/repo"
CLONE = "/tmp/bisect-grading"
TAGGED = "01d2af6988811eda9f14716f25b7096c3b206adf"
CULPRIT = "f96bf6d078d91b105eed75c86738873c52ec6690"
HEAD_BEFORE = "eb0144e6b12569ca9ebf89dce92fc4739120e817"

# Runs tally.main for each list of words on standard input, all in one process.
DRIVER = """
import contextlib, io, json, sys
sys.path.insert(0, sys.argv[1])
import tally
for line in sys.stdin:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        status = tally.main(json.loads(line))
    print(json.dumps([status, out.getvalue().strip()]))
"""


def git(*arguments, repo=REPO):
    return grading.output(["git", "-c", "safe.directory=*", "-C", repo, *arguments]).strip()


def trimmed(values):
    kept = sorted(values)[1:-1] or values
    return sum(kept) / len(kept)


def gap(values):
    ordered = sorted(values)
    return max((b - a for a, b in zip(ordered, ordered[1:], strict=False)), default=0)


def product(values):
    result = 1
    for value in values:
        result *= value
    return result


ORDERING = {
    "median": statistics.median,
    "quartile": lambda v: sorted(v)[(len(v) - 1) // 4],
    "trimmed": trimmed,
    "gap": gap,
}
OTHERS = {
    "sum": sum,
    "mean": lambda v: sum(v) / len(v),
    "count": len,
    "product": product,
    "min": min,
    "max": max,
    "range": lambda v: max(v) - min(v),
    "variance": lambda v: sum((x - sum(v) / len(v)) ** 2 for x in v) / len(v),
    "squares": lambda v: sum(x * x for x in v),
    "distinct": lambda v: len(set(v)),
    "last": lambda v: v[-1],
    "harmonic": lambda v: len(v) / sum(1 / x for x in v),
}


def expect(commands, lists):
    shutil.rmtree(CLONE, ignore_errors=True)
    git("clone", "-q", "--no-local", "-b", "main", REPO, CLONE, repo="/")
    asked = [(name, values) for name in commands for values in lists]
    lines = "".join(json.dumps([name, *map(str, values)]) + "\n" for name, values in asked)
    out = grading.output(["python3", "-c", DRIVER, CLONE], stdin=lines)
    answers = [json.loads(line) for line in out.splitlines()]
    for (name, values), (status, text) in zip(asked, answers, strict=True):
        want = commands[name](values)
        assert status == 0, f"{name} {values}: status {status}"
        close = math.isclose(float(text), want, rel_tol=1e-6, abs_tol=1e-3)
        assert close, f"{name} {values}: expected {want}, got {text}"


def number_lists(seed):
    random_ = random.Random(seed)
    return [
        [random_.choice((-1, 1)) * random_.randint(1, 10 ** random_.randint(1, 4))
         for _ in range(random_.randint(1, 9))]
        for _ in range(12)
    ]


def test_the_culprit_is_named():
    with open("/app/culprit.txt") as file:
        named = file.read().strip()
    assert named == CULPRIT, f"{named!r} is not the first commit with the wrong answer"


def test_the_repair_is_new_commits_on_top():
    assert git("rev-parse", "main^{commit}") != HEAD_BEFORE, "main has no new commit"
    git("merge-base", "--is-ancestor", HEAD_BEFORE, "main")
    messages = git("log", "--format=%B", f"{HEAD_BEFORE}..main")
    assert CULPRIT in messages, "no new message contains the hash of the culprit"
    assert git("rev-parse", "v1.0^{commit}") == TAGGED, "the tag moved"


def test_main_is_checked_out_and_clean():
    assert git("symbolic-ref", "HEAD") == "refs/heads/main"
    assert git("rev-parse", "main^{commit}") != HEAD_BEFORE, "main has no new commit"
    changed = git("status", "--porcelain").splitlines()
    assert [line for line in changed if "__pycache__" not in line] == [], changed
    for name in ("MERGE_HEAD", "REVERT_HEAD", "CHERRY_PICK_HEAD", "BISECT_LOG"):
        assert not os.path.exists(f"{REPO}/.git/{name}"), f"{name} is left: something is unfinished"


def test_ordering_commands_order_by_value():
    expect(ORDERING, [[9, 10, 11], [100, 9, 20, 3], [-2, -10, 5], *number_lists(1)])


def test_the_other_commands_still_work():
    # They work in an untouched repository too: this guards them.
    expect(OTHERS, [[4, 4], *number_lists(2)])


grading.main(globals(), needs="/app/culprit.txt")
