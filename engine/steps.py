"""Tasks of several steps: what comes before a step, when the next one is done, what they sum to.

Rule: Harbor's. One sandbox for all steps; before a step what the tests of the step before brought
and left is removed, so that the agent cannot read it, and the agent's shell is a fresh one. A
reward below a step's `min_reward` ends the task. The verdict is the mean, key by key, over the
steps that were begun, a missing key or reward counting 0, or the last step's own.

It leaves running what earlier steps started, the tests included.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from headrace.engine.act import Clock, put
from headrace.engine.health import Sleep, Unhealthy, wait_healthy
from headrace.errors import SandboxError
from headrace.sandbox.base import IMAGE_USER, Sandbox
from headrace.types import (
    OtherReading,
    StepRecipe,
    StepResult,
    StopReason,
    Task,
    TestOutcome,
    Verdict,
    VerdictFault,
)
from headrace.verifiers.reward import Rewards

SHELL_TIMEOUT_S = 60.0
CLEAR = "rm -rf -- /tests /logs/verifier; mkdir -p -m 777 /logs/verifier"
SHOWN_CHARS = 500


async def clear_tests(sandbox: Sandbox) -> None:
    """Remove the tests and what they left. Raises `Unhealthy` when they cannot be removed."""
    command = f"{CLEAR}; [ ! -e /tests ] && [ ! -L /tests ]"
    result = await sandbox.exec(command, timeout_s=SHELL_TIMEOUT_S)
    if result.exit_code != 0:
        said = result.stderr.decode("utf-8", "replace").strip()[-SHOWN_CHARS:]
        raise Unhealthy(f"the tests of the step before could not be removed: {said}")


async def begin(
    sandbox: Sandbox, step: StepRecipe, view: Task, *, clock: Clock, sleep: Sleep
) -> None:
    """Bring the step's files, run its `setup.sh`, wait for its health check.

    Raises `Unhealthy` when one of the last two fails.
    """
    if step.files is not None:
        await put(sandbox, step.files, view.environment.workdir or ".")
        if (Path(step.files) / "setup.sh").is_file():
            await _set_up(sandbox, step, view)
    if step.healthcheck is not None:
        user = _user(view)
        await wait_healthy(sandbox, step.healthcheck, view, user=user, clock=clock, sleep=sleep)


async def fresh_shell(sandbox: Sandbox) -> None:
    """End the agent's shell: the next command finds the working directory, and no old variables."""
    await sandbox.run("kill -9 $$", timeout_s=SHELL_TIMEOUT_S)


async def _set_up(sandbox: Sandbox, step: StepRecipe, view: Task) -> None:
    result = await sandbox.exec(
        "bash ./setup.sh",
        timeout_s=view.environment.build_timeout_s,
        workdir=view.environment.workdir,
        env=view.environment.env,
        user=_user(view),
    )
    if result.exit_code != 0:
        how = "no end in time" if result.timed_out else f"exit code {result.exit_code}"
        said = (result.stdout + result.stderr).decode("utf-8", "replace").strip()[-SHOWN_CHARS:]
        raise Unhealthy(f"setup.sh of step {step.name!r}: {how}" + (f": {said}" if said else ""))


def _user(view: Task) -> str:
    return IMAGE_USER if view.agent.user is None else view.agent.user


# --- decisions ------------------------------------------------------------------------------


def not_begun(step: StepRecipe, error: SandboxError) -> StepResult:
    """A step whose preparation failed after earlier ones: the agent may have caused it."""
    verdict = Verdict(reward=None, fault=VerdictFault.VERIFIER, reason=f"step_not_ready: {error}")
    return StepResult(
        name=step.name,
        stop_reason=StopReason.SANDBOX_ERROR,
        stop_detail=str(error),
        verdict=verdict,
    )


def goes_on(step: StepRecipe, verdict: Verdict) -> bool:
    """Whether the step after this one is done: a key that is missing is below its least."""
    if verdict.reward is None:
        return False
    found = _values(verdict)
    return all(key in found and found[key] >= least for key, least in step.min_reward.items())


def sum_up(task: Task, results: Sequence[StepResult], *, strict: bool = False) -> Verdict:
    """One verdict for the steps that were begun; at least one.

    A step without a reward counts 0, for the agent may have broken its tests; Harbor (`strict`)
    leaves it out of the mean. Where the two differ `other` has the second reading.
    """
    verdict, harbors = _sum(task, results, every=True), _sum(task, results, every=False)
    if verdict.reward == harbors.reward:
        return harbors if strict else verdict
    why = "a step without a reward counts 0, or is left out of the mean"
    taken, left = (harbors, verdict) if strict else (verdict, harbors)
    other = OtherReading(compat="correct" if strict else "strict", reward=left.reward, reason=why)
    return msgspec.structs.replace(taken, other=other)


def _sum(task: Task, results: Sequence[StepResult], *, every: bool) -> Verdict:
    """`every`: the steps without a reward are in the mean, with 0."""
    last = results[-1].verdict
    graded = [r.verdict for r in results if r.verdict.reward is not None]
    if task.reward_strategy == "final":
        graded = [] if last.reward is None else [last]
    tests = tuple(
        TestOutcome(name=f"{r.name}: {test.name}", status=test.status)
        for r in results
        for test in r.verdict.tests
    )
    duration_s = sum(r.verdict.duration_s for r in results)
    if not graded:
        return Verdict(
            reward=None,
            fault=last.fault,
            reason=f"step {results[-1].name!r}: {last.reason}",
            tests=tests,
            log_tail=last.log_tail,
            duration_s=duration_s,
        )
    mean = task.reward_strategy == "mean"
    over = len(results) if mean and every else len(graded)
    rewards = Rewards(values=_mean([_values(v) for v in graded], over))
    return Verdict(
        reward=rewards.reward,
        rewards=rewards.values,
        reason=_without_reward(results, every=every) if mean else None,
        tests=tests,
        log_tail=last.log_tail,
        duration_s=duration_s,
    )


def _values(verdict: Verdict) -> dict[str, float]:
    assert verdict.reward is not None
    return verdict.rewards or {"reward": verdict.reward}


def _mean(rewards: Sequence[dict[str, float]], over: int) -> dict[str, float]:
    keys = dict.fromkeys(key for values in rewards for key in values)
    return {key: sum(values.get(key, 0.0) for values in rewards) / over for key in keys}


def _without_reward(results: Sequence[StepResult], *, every: bool) -> str | None:
    """The steps that have none, and what becomes of them in the mean."""
    without = [f"{r.name!r} ({r.verdict.reason})" for r in results if r.verdict.reward is None]
    word = "counted_0" if every else "not_in_the_mean"
    return f"{word}: {', '.join(without)}" if without else None
