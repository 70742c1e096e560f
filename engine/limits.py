"""When an episode's agent phase ends: pure arithmetic, `elapsed_s` is an argument.

Rule: this file holds the order of the checks. Before each policy call:

    1. agent_timeout   the agent's time is spent; also when its last action said it was done, for
                       then the deadline cut that action's commands
    2. done            the previous action said so
    3. max_turns       the turns are spent
    4. max_tokens      the sampled tokens are spent

then the call itself may end it with `context_full` or `max_tokens` (a `Stop` of the policy), with
`agent_timeout` (the deadline falls into the call) or with `policy_error`; then a command may end
it with `agent_timeout` (the deadline falls into the command) or `sandbox_error`. `cancelled` comes
from outside and leaves no record.

Of a task of several steps each has its own seconds; turns and tokens are the whole episode's. A
step that begins when those are spent has no turn, and is graded all the same.
"""

import msgspec

from headrace.policies.base import Budget
from headrace.types import Command, Record, StopReason, Task

EARLY_S = 0.01
"""A timer may end a command so much before the agent's deadline; the time is spent all the same."""


class StepLimits(Record, frozen=True, kw_only=True):
    """What one step of a task of several has of its own."""

    agent_timeout_s: float | None
    verifier_timeout_s: float


class EpisodeLimits(Record, frozen=True, kw_only=True):
    """The limits of one episode, the run's and the task's combined. None: no limit."""

    max_turns: int
    max_tokens: int | None
    agent_timeout_s: float | None
    command_timeout_s: float
    verifier_timeout_s: float
    steps: tuple[StepLimits, ...] = ()
    """One for each step of the task; empty for a task without steps."""


def combine(
    task: Task,
    *,
    max_turns: int,
    max_tokens: int | None,
    agent_timeout_s: float | None,
    command_timeout_s: float,
    verifier_timeout_s: float | None,
) -> EpisodeLimits:
    """The run's limits where it sets them, else the task's."""
    return EpisodeLimits(
        max_turns=max_turns,
        max_tokens=max_tokens,
        agent_timeout_s=task.agent.timeout_s if agent_timeout_s is None else agent_timeout_s,
        command_timeout_s=command_timeout_s,
        verifier_timeout_s=(
            task.verifier.timeout_s if verifier_timeout_s is None else verifier_timeout_s
        ),
        steps=tuple(
            StepLimits(
                agent_timeout_s=(
                    step.agent.timeout_s if agent_timeout_s is None else agent_timeout_s
                ),
                verifier_timeout_s=(
                    step.verifier.timeout_s if verifier_timeout_s is None else verifier_timeout_s
                ),
            )
            for step in task.steps
        ),
    )


def of_step(limits: EpisodeLimits, index: int) -> EpisodeLimits:
    """The limits that hold during step `index`; `limits` itself for a task without steps."""
    if not limits.steps:
        return limits
    own = limits.steps[index]
    return msgspec.structs.replace(
        limits, agent_timeout_s=own.agent_timeout_s, verifier_timeout_s=own.verifier_timeout_s
    )


class Spent(Record, frozen=True, kw_only=True):
    """What an episode has used so far."""

    turns: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    done: bool = False


def check(limits: EpisodeLimits, spent: Spent) -> StopReason | None:
    """Why the agent phase ends before the next policy call, or None."""
    left = left_s(limits, spent.elapsed_s)
    if left is not None and left <= EARLY_S:
        return StopReason.AGENT_TIMEOUT
    if spent.done:
        return StopReason.DONE
    if spent.turns >= limits.max_turns:
        return StopReason.MAX_TURNS
    if limits.max_tokens is not None and spent.tokens >= limits.max_tokens:
        return StopReason.MAX_TOKENS
    return None


def left_s(limits: EpisodeLimits, elapsed_s: float) -> float | None:
    """Seconds left of the agent's time, never negative; None: no limit."""
    if limits.agent_timeout_s is None:
        return None
    return max(0.0, limits.agent_timeout_s - elapsed_s)


def budget(limits: EpisodeLimits, spent: Spent) -> Budget:
    """What the next policy call may use."""
    tokens = None if limits.max_tokens is None else max(0, limits.max_tokens - spent.tokens)
    return Budget(max_tokens=tokens, deadline_s=left_s(limits, spent.elapsed_s))


def command_timeout_s(limits: EpisodeLimits, command: Command, elapsed_s: float) -> float:
    """Seconds for one command: its own or the run's, within what is left of the agent's time."""
    wanted = limits.command_timeout_s if command.timeout_s is None else command.timeout_s
    left = left_s(limits, elapsed_s)
    return wanted if left is None else min(wanted, left)
