"""What evaluation needs of an episode, and nothing else of it.

Rule: small enough that a hundred thousand fit in memory; everything here is read from one record.
"""

from dataclasses import dataclass

from headrace.engine.resume import is_owed
from headrace.types import Episode, Verdict, VerdictFault

UNNAMED_FAULT = "unknown"


@dataclass(frozen=True, slots=True)
class Reading:
    """What the other way to read the same tests says."""

    compat: str
    passed: bool


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """One step of a task of several."""

    name: str
    passed: bool
    reward: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attempt."""

    task: str
    """Digest of the task."""
    policy: str
    """Version of the policy."""
    category: str | None
    difficulty: str | None
    counted: bool
    """False: the infrastructure failed it or it was cancelled; it says nothing of the policy."""
    passed: bool
    id: str = ""
    name: str = ""
    sample: int = 0
    tries: int = 1
    reward: float = 0.0
    """0 where a verifier left none. Not counted attempts have none that means anything."""
    pass_ratio: float | None = None
    turns: int = 0
    sampled_tokens: int = 0
    agent_s: float = 0.0
    verify_s: float = 0.0
    stop_reason: str = "done"
    fault: str | None = None
    """Kind of the verifier's fault, or of what made the attempt not count."""
    other: Reading | None = None
    steps: tuple[StepOutcome, ...] = ()


def outcome(episode: Episode) -> Outcome:
    """The part of an episode that evaluation looks at."""
    verdict, counted = episode.verdict, not is_owed(episode)
    return Outcome(
        task=episode.task_digest,
        policy=episode.policy_version,
        category=episode.category,
        difficulty=episode.difficulty,
        counted=counted,
        passed=verdict.passed,
        id=episode.id,
        name=episode.task,
        sample=episode.sample,
        tries=episode.tries,
        reward=verdict.reward or 0.0,
        pass_ratio=verdict.pass_ratio,
        turns=len(episode.turns),
        sampled_tokens=episode.sampled_tokens,
        agent_s=episode.timing.act_s,
        verify_s=episode.timing.verify_s,
        stop_reason=episode.stop_reason.value,
        fault=_verifier_fault(verdict) if counted else _why_not_counted(episode),
        other=_reading(verdict),
        steps=tuple(
            StepOutcome(
                name=step.name, passed=step.verdict.passed, reward=step.verdict.reward or 0.0
            )
            for step in episode.steps
        ),
    )


def _verifier_fault(verdict: Verdict) -> str | None:
    if verdict.fault is not VerdictFault.VERIFIER:
        return None
    return _kind(verdict.reason)


def _why_not_counted(episode: Episode) -> str:
    """The class of the error, as the failure names it."""
    if episode.verdict.fault is not VerdictFault.INFRASTRUCTURE:
        return "cancelled"
    if episode.failure is not None:
        return episode.failure.error
    return _kind(episode.verdict.reason)


def _kind(reason: str | None) -> str:
    """`reward_missing` of `reward_missing: no file`."""
    return (reason or "").partition(":")[0].strip() or UNNAMED_FAULT


def _reading(verdict: Verdict) -> Reading | None:
    if verdict.other is None:
        return None
    reward = verdict.other.reward
    return Reading(compat=verdict.other.compat, passed=reward is not None and reward >= 1.0)
