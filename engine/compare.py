"""Two runs over the same tasks: the paired difference, what moved it, and what it cost. Pure.

Rules: tasks are paired by name and must have one digest; those that only one run has, or that have
no counted attempt in one of them, are named and left out of every number. A difference is run B
less run A. Every task weighs the same.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from headrace.configs import load
from headrace.engine.estimates import RESAMPLES, bootstrap, mean, pass_at_k, sign_flip
from headrace.engine.evaluate import TaskResult
from headrace.engine.evaluation_report import Provenance, Report, notices
from headrace.errors import RunFolderError
from headrace.types import Record

COMPARISON_SCHEMA = 1


class Difference(Record, frozen=True, kw_only=True):
    """A mean over tasks in both runs, and B less A with its 95 % interval over tasks."""

    name: str
    a: float
    b: float
    value: float
    low: float
    high: float
    tasks: int


class TaskPair(Record, frozen=True, kw_only=True):
    """One task in both runs."""

    name: str
    category: str | None
    difficulty: str | None
    a_passed: int
    a_attempts: int
    b_passed: int
    b_attempts: int
    difference: float
    """Of its pass@1."""
    flipped: bool
    """More than half of the counted attempts pass in one run, and not in the other."""
    a_episode: str
    """An attempt to look at, such as one that failed where B passed."""
    b_episode: str


class Setting(Record, frozen=True, kw_only=True):
    """A key of the configuration in which the runs differ."""

    key: str
    a: str
    b: str


class Comparison(Record, frozen=True, kw_only=True):
    """`headrace compare --json`."""

    schema: int = COMPARISON_SCHEMA
    a: Provenance
    b: Provenance
    settings: tuple[Setting, ...]
    tasks: int
    """Compared: in both runs, with one content, and counted in both."""
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    changed: tuple[str, ...]
    """Same name, another content: not compared."""
    uncounted: tuple[str, ...]
    """Without a counted attempt in one of the runs: not compared."""
    pass_at_k: tuple[Difference, ...]
    """For every k that a task has attempts for in both runs."""
    p_value: float
    """Of the difference in pass@1: how often chance alone gives one as large."""
    p_method: str
    """`exact` over all signs, or `drawn`."""
    gained: tuple[TaskPair, ...]
    """Tasks that B passes more often, the largest difference first."""
    lost: tuple[TaskPair, ...]
    same: int
    costs: tuple[Difference, ...]
    by_category: tuple[Difference, ...]
    by_difficulty: tuple[Difference, ...]
    notices_a: tuple[str, ...]
    """What run A's own report says first."""
    notices_b: tuple[str, ...]


class Side(Record, frozen=True, kw_only=True):
    """A run as a comparison takes it."""

    report: Report
    tasks: dict[str, str]
    """Digests by name, refused ones included."""
    config: dict[str, Any]


Pair = tuple[TaskResult, TaskResult]


def compare(a: Side, b: Side, *, seed: int = 0, resamples: int = RESAMPLES) -> Comparison:
    """Pair the runs by task. Raises `RunFolderError` where there is nothing to compare."""
    pa, pb = a.report.provenance, b.report.provenance
    if pa.run == pb.run:
        raise RunFolderError(f"expected two runs, found run {pa.run} twice; give another folder")
    both = sorted(a.tasks.keys() & b.tasks.keys())
    same = [name for name in both if a.tasks[name] == b.tasks[name]]
    pairs, uncounted = _pairs(a.report, b.report, {a.tasks[name]: name for name in same})
    if not pairs:
        raise RunFolderError(_nothing(a, b, both, same))

    def differences(kind: Callable[[TaskResult], str | None]) -> tuple[Difference, ...]:
        parts: dict[str, list[Pair]] = {}
        for pair in pairs:
            if (name := kind(pair[0])) is not None:
                parts.setdefault(name, []).append(pair)
        return tuple(_passes(n, 1, parts[n], seed, resamples) for n in sorted(parts))

    moved = sorted((_task(*p) for p in pairs), key=lambda t: (-abs(t.difference), t.name))
    first = [y.passed / y.attempts - x.passed / x.attempts for x, y in pairs]
    p_value, p_method = sign_flip(first, seed=seed)
    return Comparison(
        a=pa,
        b=pb,
        settings=tuple(_settings(a.config, b.config)),
        tasks=len(pairs),
        only_a=tuple(sorted(a.tasks.keys() - b.tasks.keys())),
        only_b=tuple(sorted(b.tasks.keys() - a.tasks.keys())),
        changed=tuple(name for name in both if a.tasks[name] != b.tasks[name]),
        uncounted=uncounted,
        pass_at_k=tuple(_every_k(pairs, seed, resamples)),
        p_value=p_value,
        p_method=p_method,
        gained=tuple(t for t in moved if t.difference > 0),
        lost=tuple(t for t in moved if t.difference < 0),
        same=sum(t.difference == 0 for t in moved),
        costs=tuple(_costs(pairs, seed, resamples)),
        by_category=differences(lambda t: t.category),
        by_difficulty=differences(lambda t: t.difficulty),
        notices_a=tuple(notices(a.report)),
        notices_b=tuple(notices(b.report)),
    )


def left_out(found: Comparison) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Which tasks are not compared, by why."""
    named = {
        "only in A": found.only_a,
        "only in B": found.only_b,
        "of another content in A and B": found.changed,
        "without a counted attempt in one run": found.uncounted,
    }
    return ((why, names) for why, names in named.items() if names)


def _pairs(a: Report, b: Report, wanted: Mapping[str, str]) -> tuple[list[Pair], tuple[str, ...]]:
    """The tasks counted in both by digest, and the names of the wanted ones that are not."""
    in_a = {t.digest: t for t in a.evaluation.by_task if t.attempts}
    in_b = {t.digest: t for t in b.evaluation.by_task if t.attempts}
    pairs = [(in_a[d], in_b[d]) for d in sorted(wanted) if d in in_a and d in in_b]
    return pairs, tuple(sorted(name for d, name in wanted.items() if not (d in in_a and d in in_b)))


def _nothing(a: Side, b: Side, both: Sequence[str], same: Sequence[str]) -> str:
    pa, pb = a.report.provenance, b.report.provenance
    if same:
        why = f"{len(same)} tasks are in both, but none has a counted attempt in both yet"
    elif both:
        why = f"{len(both)} tasks have one name in both, but each has another content"
    else:
        why = f"run A has tasks of {pa.tasks_source}, run B of {pb.tasks_source}, none in common"
    return f"expected at least one task to compare, found none: {why}. Compare runs of one task set"


# --- differences ----------------------------------------------------------------------------


def _difference(
    name: str, values: Iterable[tuple[float, float]], seed: int, resamples: int
) -> Difference:
    a, b = zip(*values, strict=True)
    deltas = [y - x for x, y in zip(a, b, strict=True)]
    low, high = bootstrap(deltas, seed=seed, resamples=resamples)
    return Difference(
        name=name, a=mean(a), b=mean(b), value=mean(deltas), low=low, high=high, tasks=len(deltas)
    )


def _passes(name: str, k: int, pairs: Sequence[Pair], seed: int, resamples: int) -> Difference:
    rates = (tuple(pass_at_k(t.attempts, t.passed, k) for t in pair) for pair in pairs)
    return _difference(name, ((x, y) for x, y in rates), seed, resamples)


def _every_k(pairs: Sequence[Pair], seed: int, resamples: int) -> Iterator[Difference]:
    deepest = max(min(x.attempts, y.attempts) for x, y in pairs)
    for k in range(1, deepest + 1):
        deep = [pair for pair in pairs if min(t.attempts for t in pair) >= k]
        yield _passes(f"pass@{k}", k, deep, seed, resamples)


def _costs(pairs: Sequence[Pair], seed: int, resamples: int) -> Iterator[Difference]:
    measures: dict[str, Callable[[TaskResult], float | None]] = {
        "reward": lambda t: t.reward,
        "turns": lambda t: t.turns,
        "sampled tokens": lambda t: t.sampled_tokens,
        "agent seconds": lambda t: t.agent_s,
        "verifier seconds": lambda t: t.verify_s,
    }
    for name, worth in measures.items():
        # Counted tasks have every mean.
        values = [(worth(x) or 0.0, worth(y) or 0.0) for x, y in pairs]
        if any(x or y for x, y in values):
            yield _difference(name, values, seed, resamples)


# --- tasks and settings ---------------------------------------------------------------------


def _task(a: TaskResult, b: TaskResult) -> TaskPair:
    difference = b.passed / b.attempts - a.passed / a.attempts
    return TaskPair(
        name=a.name,
        category=a.category,
        difficulty=a.difficulty,
        a_passed=a.passed,
        a_attempts=a.attempts,
        b_passed=b.passed,
        b_attempts=b.attempts,
        difference=difference,
        flipped=(2 * a.passed > a.attempts) != (2 * b.passed > b.attempts),
        a_episode=_one(a, passed=difference < 0),
        b_episode=_one(b, passed=difference > 0),
    )


def _one(task: TaskResult, *, passed: bool) -> str:
    """A counted attempt that came to this, or else any counted one."""
    counted = [s for s in task.samples if s.counted]
    return next((s.id for s in counted if s.passed is passed), counted[0].id)


def _settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Setting]:
    for key, x, y in load.difference(a, b):
        yield Setting(key=key, a=_shown(x), b=_shown(y))


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
