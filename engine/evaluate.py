"""From outcomes to rates: pass@k and its intervals. Pure.

Rules: an attempt the infrastructure failed (or that was cancelled) says nothing about the policy:
it is left out of every rate and counted. A verifier that left no reward counts as not solved. A
rate over k attempts is over the tasks that have k counted attempts, and says how many those are.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from headrace.engine.resume import is_owed
from headrace.errors import ContractError
from headrace.types import Episode, Record

Z95 = 1.959963984540054


class Estimate(Record, frozen=True, kw_only=True):
    """A rate in [0, 1] with its 95 % interval."""

    k: int
    value: float
    low: float
    high: float
    tasks: int
    """Tasks with at least k counted attempts: what `value` is the mean of."""


class Evaluation(Record, frozen=True, kw_only=True):
    """What a set of attempts by one policy came to."""

    tasks: int
    """Tasks with at least one attempt, counted or not."""
    attempts: int
    """Counted attempts."""
    passed: int
    left_out: int
    """Attempts that say nothing about the policy."""
    pass_at_k: tuple[Estimate, ...]
    """By k from 1 to the most counted attempts of any task."""
    by_category: dict[str, "Evaluation"] = {}
    by_difficulty: dict[str, "Evaluation"] = {}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What evaluation needs of one episode."""

    task: str
    policy: str
    category: str | None
    difficulty: str | None
    counted: bool
    passed: bool


def outcome(episode: Episode) -> Outcome:
    """The part of an episode that evaluation looks at."""
    return Outcome(
        task=episode.task_digest,
        policy=episode.policy_version,
        category=episode.category,
        difficulty=episode.difficulty,
        counted=not is_owed(episode),
        passed=episode.verdict.passed,
    )


def evaluate(episodes: Iterable[Episode], *, seed: int = 0, resamples: int = 1000) -> Evaluation:
    """Evaluate attempts by one policy; of two records with one id the later counts.

    Keeps outcomes in memory, not episodes. Raises `ContractError` for more than one policy.
    """
    outcomes = {episode.id: outcome(episode) for episode in episodes}
    policies = {o.policy for o in outcomes.values()}
    if len(policies) > 1:
        raise ContractError(f"expected attempts by one policy, found {len(policies)}")
    return evaluate_outcomes(list(outcomes.values()), seed=seed, resamples=resamples)


def evaluate_outcomes(
    outcomes: Sequence[Outcome], *, seed: int = 0, resamples: int = 1000
) -> Evaluation:
    """As `evaluate`, from outcomes already reduced to one per attempt."""

    def split(field: str) -> dict[str, Evaluation]:
        parts: dict[str, list[Outcome]] = {}
        for o in outcomes:
            name = getattr(o, field)
            if name is not None:
                parts.setdefault(name, []).append(o)
        return {name: _evaluate(parts[name], seed, resamples) for name in sorted(parts)}

    whole = _evaluate(outcomes, seed, resamples)
    return Evaluation(
        tasks=whole.tasks,
        attempts=whole.attempts,
        passed=whole.passed,
        left_out=whole.left_out,
        pass_at_k=whole.pass_at_k,
        by_category=split("category"),
        by_difficulty=split("difficulty"),
    )


def pass_at_k(attempts: int, passed: int, k: int) -> float:
    """Unbiased chance that at least one of k attempts passes: 1 - C(n - c, k) / C(n, k).

    A product of ratios, each in [0, 1], so that nothing overflows or cancels.
    """
    if not 1 <= k <= attempts or not 0 <= passed <= attempts:
        raise ValueError(f"expected 1 <= k <= n and 0 <= c <= n, found {k=} {attempts=} {passed=}")
    if attempts - passed < k:
        return 1.0
    missed = 1.0
    for i in range(k):
        missed *= (attempts - passed - i) / (attempts - i)
    return 1.0 - missed


def wilson(rate: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a rate over n trials; (0, 1) when there were none."""
    if n == 0:
        return 0.0, 1.0
    square = z * z / n
    centre = (rate + square / 2) / (1 + square)
    spread = z / (1 + square) * math.sqrt(rate * (1 - rate) / n + square / (4 * n))
    low = 0.0 if rate <= 0 else max(0.0, centre - spread)
    high = 1.0 if rate >= 1 else min(1.0, centre + spread)
    return min(low, rate), max(high, rate)


def bootstrap(values: Sequence[float], *, seed: int, resamples: int) -> tuple[float, float]:
    """95 % percentile interval of the mean, resampling the values (one for each task)."""
    chance = random.Random(seed)
    n = len(values)
    means = sorted(math.fsum(chance.choices(values, k=n)) / n for _ in range(resamples))
    cut = int(resamples * 0.025)
    return means[cut], means[resamples - 1 - cut]


def _evaluate(outcomes: Sequence[Outcome], seed: int, resamples: int) -> Evaluation:
    counts: dict[str, tuple[int, int]] = {}
    for o in outcomes:
        n, c = counts.get(o.task, (0, 0))
        counts[o.task] = (n + o.counted, c + (o.counted and o.passed))
    attempts = sum(n for n, _ in counts.values())
    deepest = max((n for n, _ in counts.values()), default=0)
    return Evaluation(
        tasks=len(counts),
        attempts=attempts,
        passed=sum(c for _, c in counts.values()),
        left_out=len(outcomes) - attempts,
        pass_at_k=tuple(_estimate(counts, k, seed, resamples) for k in range(1, deepest + 1)),
    )


def _estimate(counts: Mapping[str, tuple[int, int]], k: int, seed: int, resamples: int) -> Estimate:
    deep = [counts[task] for task in sorted(counts) if counts[task][0] >= k]
    values = [pass_at_k(n, c, k) for n, c in deep]
    value = math.fsum(values) / len(values)
    if k == 1:
        low, high = wilson(value, sum(n for n, _ in deep))
    else:
        low, high = bootstrap(values, seed=seed, resamples=resamples)
    return Estimate(k=k, value=value, low=low, high=high, tasks=len(values))
