"""From outcomes to an evaluation: rates, intervals, and what the attempts cost. Pure.

Rules: an attempt the infrastructure failed (or that was cancelled) says nothing about the policy:
it is left out of every number and counted. A verifier that left no reward counts as not solved. A
rate over k attempts is over the tasks that have k counted attempts, and says how many those are.
Every task weighs the same. What each number means is in `docs/reference/evaluation.md`.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from headrace.engine.estimates import (
    RESAMPLES,
    bootstrap,
    bootstrap_many,
    mean,
    pass_at_k,
    wilson,
)
from headrace.engine.outcomes import Outcome, outcome
from headrace.errors import ContractError
from headrace.types import Episode, Record


class Estimate(Record, frozen=True, kw_only=True):
    """A mean over tasks with its 95 % interval."""

    k: int = 1
    value: float
    low: float
    high: float
    tasks: int
    """What `value` is the mean of: for pass@k the tasks with at least k counted attempts."""
    interval: str
    """`wilson`: over attempts, as if each were independent. `bootstrap`: over tasks."""


class Spread(Record, frozen=True, kw_only=True):
    """How a measure is distributed over attempts."""

    attempts: int
    mean: float
    median: float
    low: float
    """The tenth percentile."""
    lower: float
    """The lower quartile."""
    upper: float
    high: float
    """The ninetieth percentile."""
    largest: float


class Measure(Record, frozen=True, kw_only=True):
    """A measure of counted attempts; None where there is no such attempt."""

    all: Spread | None = None
    passed: Spread | None = None
    failed: Spread | None = None


class Attempt(Record, frozen=True, kw_only=True):
    """One attempt, to look up with `headrace show --episode`."""

    id: str
    sample: int
    counted: bool
    passed: bool
    reward: float | None
    """None: not counted."""
    stop_reason: str
    fault: str | None


class StepRate(Record, frozen=True, kw_only=True):
    """One step of a task of several, over the task's counted attempts."""

    name: str
    begun: int
    passed: int
    reward: float
    """Mean over the attempts that began it."""


class TaskResult(Record, frozen=True, kw_only=True):
    """One task's attempts."""

    name: str
    digest: str
    category: str | None
    difficulty: str | None
    attempts: int
    """Counted ones."""
    passed: int
    left_out: int
    reward: float | None
    """Means over counted attempts; None where there are none."""
    turns: float | None
    sampled_tokens: float | None
    agent_s: float | None
    verify_s: float | None
    steps: tuple[StepRate, ...] = ()
    samples: tuple[Attempt, ...] = ()

    @property
    def rate(self) -> float | None:
        """The task's pass@1."""
        return self.passed / self.attempts if self.attempts else None


class Evaluation(Record, frozen=True, kw_only=True):
    """What a set of attempts by one policy came to."""

    tasks: int
    """Tasks with at least one attempt, counted or not."""
    tasks_counted: int
    """Tasks with at least one counted attempt."""
    attempts: int
    """Counted attempts."""
    passed: int
    left_out: int
    """Attempts that say nothing about the policy."""
    retries: int
    """Further tries that the attempts took after their infrastructure failed."""
    pass_at_k: tuple[Estimate, ...]
    """By k from 1 to the most counted attempts of any task; k = 1 has Wilson's interval."""
    pass_at_1_over_tasks: Estimate | None
    """pass@1 again, with the interval that knows that attempts at one task resemble each other."""
    reward: Estimate | None
    """Mean reward; a verifier's fault is 0."""
    pass_ratio: Estimate | None
    """Mean share of a verifier's tests that passed, over the tasks whose tests are known."""
    partial: int
    """Counted attempts with a reward between 0 and 1."""
    turns: Measure
    sampled_tokens: Measure
    agent_s: Measure
    verify_s: Measure
    stop_reasons: dict[str, int]
    """Of counted attempts."""
    faults: dict[str, int]
    """Verifier's faults of counted attempts, by kind."""
    infrastructure: dict[str, int]
    """Attempts left out, by what failed."""
    readings_differ: int
    """Counted attempts whose tests read otherwise under the other `verifier.compat`."""
    readings: dict[str, Estimate] = {}
    """pass@1 under `strict` and under `correct`, where any attempt differs."""
    by_category: dict[str, "Evaluation"] = {}
    by_difficulty: dict[str, "Evaluation"] = {}
    by_task: tuple[TaskResult, ...] = ()
    """In name order; of the whole only, not of its parts."""


def evaluate(
    episodes: Iterable[Episode], *, seed: int = 0, resamples: int = RESAMPLES
) -> Evaluation:
    """Evaluate attempts by one policy; of two records with one id the later counts.

    Keeps outcomes in memory, not episodes. Raises `ContractError` for more than one policy.
    """
    outcomes = {episode.id: outcome(episode) for episode in episodes}
    return evaluate_outcomes(list(outcomes.values()), seed=seed, resamples=resamples)


def evaluate_outcomes(
    outcomes: Sequence[Outcome], *, seed: int = 0, resamples: int = RESAMPLES
) -> Evaluation:
    """As `evaluate`, from outcomes already reduced to one per attempt."""
    policies = {o.policy for o in outcomes}
    if len(policies) > 1:
        raise ContractError(f"expected attempts by one policy, found {len(policies)}")

    def split(name: Callable[[Outcome], str | None]) -> dict[str, Evaluation]:
        parts = _grouped((n, o) for o in outcomes if (n := name(o)) is not None)
        return {n: _evaluate(parts[n], seed, resamples) for n in sorted(parts)}

    return _evaluate(
        outcomes,
        seed,
        resamples,
        by_category=split(lambda o: o.category),
        by_difficulty=split(lambda o: o.difficulty),
        by_task=_by_task(outcomes),
    )


def curve(outcomes: Iterable[Outcome]) -> dict[int, float]:
    """pass@k alone, by k: the values of an evaluation without its intervals."""
    counts = _counts(_by_digest(outcomes))
    return {k: mean([pass_at_k(n, c, k) for n, c in deep]) for k, deep in _deep(counts)}


# --- the whole and its parts ----------------------------------------------------------------


def _evaluate(
    outcomes: Sequence[Outcome],
    seed: int,
    resamples: int,
    *,
    by_category: Mapping[str, Evaluation] | None = None,
    by_difficulty: Mapping[str, Evaluation] | None = None,
    by_task: tuple[TaskResult, ...] = (),
) -> Evaluation:
    tasks = _by_digest(outcomes)
    counted = {
        digest: c for digest in sorted(tasks) if (c := [o for o in tasks[digest] if o.counted])
    }
    every = [o for group in counted.values() for o in group]
    left_out = [o for o in outcomes if not o.counted]

    rates = _pass_at_k(_counts(counted), seed, resamples)

    def over_tasks(worth: Callable[[Outcome], float | None]) -> Estimate | None:
        return _over_tasks(counted.values(), worth, seed, resamples)

    return Evaluation(
        tasks=len(tasks),
        tasks_counted=len(counted),
        attempts=len(every),
        passed=sum(o.passed for o in every),
        left_out=len(left_out),
        retries=sum(o.tries - 1 for o in outcomes),
        pass_at_k=(*(_over_attempts(x, len(every)) for x in rates[:1]), *rates[1:]),
        pass_at_1_over_tasks=rates[0] if rates else None,
        reward=over_tasks(lambda o: o.reward),
        pass_ratio=over_tasks(lambda o: o.pass_ratio),
        partial=sum(0.0 < o.reward < 1.0 for o in every),
        turns=_measure(every, lambda o: o.turns),
        sampled_tokens=_measure(every, lambda o: o.sampled_tokens),
        agent_s=_measure(every, lambda o: o.agent_s),
        verify_s=_measure(every, lambda o: o.verify_s),
        stop_reasons=_tally(o.stop_reason for o in every),
        faults=_tally(o.fault for o in every),
        infrastructure=_tally(o.fault for o in left_out),
        readings_differ=sum(o.other is not None for o in every),
        readings=_readings(counted, seed, resamples),
        by_category=dict(by_category or {}),
        by_difficulty=dict(by_difficulty or {}),
        by_task=by_task,
    )


def _grouped(named: Iterable[tuple[str, Outcome]]) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for name, o in named:
        groups.setdefault(name, []).append(o)
    return groups


def _by_digest(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    return _grouped((o.task, o) for o in outcomes)


def _counts(tasks: Mapping[str, Sequence[Outcome]]) -> list[tuple[int, int]]:
    """(counted, passed) of each task, in digest order."""
    return [
        (sum(o.counted for o in tasks[t]), sum(o.counted and o.passed for o in tasks[t]))
        for t in sorted(tasks)
    ]


# --- rates ----------------------------------------------------------------------------------


def _deep(counts: Sequence[tuple[int, int]]) -> list[tuple[int, list[tuple[int, int]]]]:
    """By k: the tasks with at least k counted attempts."""
    deepest = max((n for n, _ in counts), default=0)
    return [(k, [nc for nc in counts if nc[0] >= k]) for k in range(1, deepest + 1)]


def _pass_at_k(
    counts: Sequence[tuple[int, int]], seed: int, resamples: int
) -> tuple[Estimate, ...]:
    """Every k with its interval over tasks; those over the same tasks share their resamples."""
    same: dict[int, list[int]] = {}
    deep = dict(_deep(counts))
    for k, tasks in deep.items():
        same.setdefault(len(tasks), []).append(k)
    found: list[Estimate] = []
    for ks in same.values():
        drawn = deep[ks[0]]
        worth = {nc: [pass_at_k(*nc, k) for k in ks] for nc in set(drawn)}
        intervals = bootstrap_many(drawn, worth, seed=seed, resamples=resamples)
        for i, k in enumerate(ks):
            value, (low, high) = mean([worth[nc][i] for nc in drawn]), intervals[i]
            found.append(
                Estimate(
                    k=k, value=value, low=low, high=high, tasks=len(drawn), interval="bootstrap"
                )
            )
    return tuple(found)


def _over_attempts(over_tasks: Estimate, attempts: int) -> Estimate:
    """pass@1 with the interval that takes every attempt as independent."""
    low, high = wilson(over_tasks.value, attempts)
    return msgspec.structs.replace(over_tasks, low=low, high=high, interval="wilson")


def _over_tasks(
    tasks: Iterable[Sequence[Outcome]],
    worth: Callable[[Outcome], float | None],
    seed: int,
    resamples: int,
) -> Estimate | None:
    """The mean over tasks of their attempts' mean; attempts worth None are not in it."""
    known = ([w for o in task if (w := worth(o)) is not None] for task in tasks)
    values = [mean(task) for task in known if task]
    if not values:
        return None
    low, high = bootstrap(values, seed=seed, resamples=resamples)
    return Estimate(value=mean(values), low=low, high=high, tasks=len(values), interval="bootstrap")


def _readings(
    tasks: Mapping[str, Sequence[Outcome]], seed: int, resamples: int
) -> dict[str, Estimate]:
    others = {o.other.compat for task in tasks.values() for o in task if o.other is not None}
    out: dict[str, Estimate] = {}
    for compat in sorted(others | {_opposite(other) for other in others}):

        def passed(o: Outcome, compat: str = compat) -> float:
            other = o.other
            return float(other.passed if other is not None and other.compat == compat else o.passed)

        estimate = _over_tasks(tasks.values(), passed, seed, resamples)
        assert estimate is not None  # there is a task, or there were no others
        out[compat] = estimate
    return out


def _opposite(compat: str) -> str:
    return "correct" if compat == "strict" else "strict"


# --- what attempts cost ---------------------------------------------------------------------


def spread(values: Sequence[float]) -> Spread | None:
    """None for no values."""
    if not values:
        return None
    ordered, last = sorted(values), len(values) - 1
    return Spread(
        attempts=len(ordered),
        mean=mean(ordered),
        median=statistics.median(ordered),
        low=ordered[int(0.1 * last)],
        lower=ordered[int(0.25 * last)],
        upper=ordered[last - int(0.25 * last)],
        high=ordered[last - int(0.1 * last)],
        largest=ordered[-1],
    )


def _measure(counted: Sequence[Outcome], worth: Callable[[Outcome], float]) -> Measure:
    return Measure(
        all=spread([worth(o) for o in counted]),
        passed=spread([worth(o) for o in counted if o.passed]),
        failed=spread([worth(o) for o in counted if not o.passed]),
    )


def _tally(names: Iterable[str | None]) -> dict[str, int]:
    """By name, the most frequent first."""
    counted = Counter(name for name in names if name is not None)
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


# --- tasks ----------------------------------------------------------------------------------


def _by_task(outcomes: Iterable[Outcome]) -> tuple[TaskResult, ...]:
    results = [_task(attempts) for attempts in _by_digest(outcomes).values()]
    return tuple(sorted(results, key=lambda task: (task.name, task.digest)))


def _task(attempts: Sequence[Outcome]) -> TaskResult:
    ordered = sorted(attempts, key=lambda o: (o.sample, o.id))
    counted = [o for o in ordered if o.counted]
    first = ordered[0]

    def average(worth: Callable[[Outcome], float]) -> float | None:
        return mean([worth(o) for o in counted]) if counted else None

    return TaskResult(
        name=min(o.name for o in ordered),
        digest=first.task,
        category=first.category,
        difficulty=first.difficulty,
        attempts=len(counted),
        passed=sum(o.passed for o in counted),
        left_out=len(ordered) - len(counted),
        reward=average(lambda o: o.reward),
        turns=average(lambda o: o.turns),
        sampled_tokens=average(lambda o: o.sampled_tokens),
        agent_s=average(lambda o: o.agent_s),
        verify_s=average(lambda o: o.verify_s),
        steps=_steps(counted),
        samples=tuple(_attempt(o) for o in ordered),
    )


def _attempt(o: Outcome) -> Attempt:
    return Attempt(
        id=o.id,
        sample=o.sample,
        counted=o.counted,
        passed=o.counted and o.passed,
        reward=o.reward if o.counted else None,
        stop_reason=o.stop_reason,
        fault=o.fault,
    )


def _steps(counted: Sequence[Outcome]) -> tuple[StepRate, ...]:
    """In the order in which they are begun."""
    rewards: dict[str, list[float]] = {}
    passed: Counter[str] = Counter()
    # The attempt that came furthest names every step in order.
    for o in sorted(counted, key=lambda o: -len(o.steps)):
        for step in o.steps:
            rewards.setdefault(step.name, []).append(step.reward)
            passed[step.name] += step.passed
    return tuple(
        StepRate(name=name, begun=len(found), passed=passed[name], reward=mean(found))
        for name, found in rewards.items()
    )
