"""Waiting until a sandbox is healthy: a command that must succeed before the agent begins.

Rule: the rules of Docker's HEALTHCHECK. A check that fails within the start period does not count;
after it, `retries` failures in a row are one too many. A command that hangs is a failure too. One
success is enough, and it is not looked at again. `decide` is pure; the waiting is at the edge.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from headrace.errors import SandboxError
from headrace.sandbox.base import IMAGE_USER, Sandbox
from headrace.types import CommandResult, HealthCheck, Task

SHOWN_CHARS = 500
ALIVE_S = 60.0

Sleep = Callable[[float], Awaitable[None]]


class Unhealthy(SandboxError):
    """The sandbox did not become what the task says it must be before the agent begins."""


async def is_wrecked(sandbox: Sandbox) -> bool:
    """Whether the agent's shell still answers, and there is no `sh` any more for anybody else.

    That is the agent's doing, and no failure around it.
    """
    try:
        result = await sandbox.run("/bin/sh -c :", timeout_s=ALIVE_S)
    except SandboxError:
        return False
    return result.exit_code in (126, 127)


def decide(check: HealthCheck, elapsed_s: float, failures: int) -> float | None:
    """After a failure: seconds until the next check, or None when it was one too many.

    `elapsed_s` is when the check that failed began, `failures` how many have counted before it.
    """
    if counts(check, elapsed_s):
        return None if failures + 1 >= check.retries else check.interval_s
    return check.start_interval_s


def counts(check: HealthCheck, elapsed_s: float) -> bool:
    """Whether a failure that began at `elapsed_s` counts."""
    return elapsed_s >= check.start_period_s


async def wait_healthy(
    sandbox: Sandbox,
    check: HealthCheck,
    task: Task,
    *,
    user: str | None = IMAGE_USER,
    clock: Callable[[], float] = time.monotonic,
    sleep: Sleep = asyncio.sleep,
) -> None:
    """Return once the check succeeds; `Unhealthy` when it has failed too often."""
    begun, failures = clock(), 0
    while True:
        elapsed_s = clock() - begun
        result = await sandbox.exec(
            check.command,
            timeout_s=check.timeout_s,
            workdir=task.environment.workdir,
            env=task.environment.env,
            user=user,
        )
        if result.exit_code == 0 and not result.timed_out:
            return
        wait_s = decide(check, elapsed_s, failures)
        if wait_s is None:
            raise Unhealthy(_said(check, result, failures + 1))
        failures += counts(check, elapsed_s)
        await sleep(wait_s)


def _said(check: HealthCheck, result: CommandResult, failures: int) -> str:
    how = (
        f"no end within {check.timeout_s:g} s"
        if result.timed_out
        else f"exit code {result.exit_code}"
    )
    output = (result.stdout + result.stderr).decode("utf-8", "replace").strip()[-SHOWN_CHARS:]
    return (
        f"health check {check.command!r} failed {failures} times in a row, at last with {how}"
        + (f": {output}" if output else "")
    )
