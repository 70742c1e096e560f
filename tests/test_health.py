"""Health checks: what counts, what is waited for, and how one that fails is told."""

import pytest

from headrace.engine.health import Unhealthy, counts, decide, wait_healthy
from headrace.errors import InfrastructureError
from headrace.sandbox.base import IMAGE_USER, SandboxSpec
from headrace.sandbox.fake import FakeProvider
from headrace.types import (
    AgentRecipe,
    CommandResult,
    EnvironmentRecipe,
    HealthCheck,
    Task,
    VerifierRecipe,
)

OK = CommandResult(exit_code=0)
BAD = CommandResult(exit_code=7, stdout=b"not yet\n", stderr=b"connection refused\n")
HUNG = CommandResult(exit_code=None, timed_out=True)

TASK = Task(
    name="t",
    digest="d",
    path="/t",
    format="harbor",
    instruction="x",
    environment=EnvironmentRecipe(image="x", workdir="/app"),
    agent=AgentRecipe(),
    verifier=VerifierRecipe(),
)


class Time:
    """A clock that only sleeping and checking move."""

    def __init__(self, *, check_s: float = 0.0) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self.check_s = check_s

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


async def waited(check: HealthCheck, *answers: CommandResult, check_s: float = 0.0) -> Time:
    """Wait with these answers in turn; the last one is repeated."""
    left = list(answers)
    time = Time()

    def answer(command: str) -> CommandResult:
        time.now += check_s
        return left.pop(0) if len(left) > 1 else left[0]

    provider = FakeProvider(exec_script=answer)
    async with provider.open(SandboxSpec(image="x", episode="e")) as sandbox:
        await wait_healthy(sandbox, check, TASK, clock=time, sleep=time.sleep)
    assert {call.user for call in provider.calls if call.method == "exec"} == {IMAGE_USER}
    return time


async def test_one_success_is_enough_and_nobody_waits() -> None:
    assert (await waited(HealthCheck(command="true"), OK)).slept == []


async def test_failures_within_the_start_period_do_not_count() -> None:
    check = HealthCheck(command="c", start_period_s=10, start_interval_s=2, interval_s=7, retries=2)
    time = await waited(check, *[BAD] * 5, BAD, OK)
    assert time.slept == [2, 2, 2, 2, 2, 7]


async def test_so_many_failures_in_a_row_are_one_too_many() -> None:
    with pytest.raises(Unhealthy, match="failed 3 times in a row, at last with exit code 7"):
        await waited(HealthCheck(command="c", retries=3), BAD)


async def test_the_message_has_the_end_of_what_the_check_said() -> None:
    with pytest.raises(InfrastructureError, match="not yet\nconnection refused"):
        await waited(HealthCheck(command="c", retries=1), BAD)


async def test_a_check_that_hangs_is_a_failure() -> None:
    check = HealthCheck(command="c", timeout_s=3, retries=2)
    time = await waited(check, HUNG, OK)
    assert time.slept == [5]
    with pytest.raises(Unhealthy, match="no end within 3 s"):
        await waited(check, HUNG)


async def test_a_check_that_began_within_the_start_period_does_not_count_when_it_ends_later() -> (
    None
):
    check = HealthCheck(command="c", start_period_s=10, start_interval_s=1, retries=1)
    time = await waited(check, BAD, OK, check_s=9.0)
    assert time.slept == [1]


def test_without_retries_the_first_failure_that_counts_is_the_end() -> None:
    check = HealthCheck(command="c", retries=0, start_period_s=1)
    assert decide(check, 0.5, 0) == check.start_interval_s
    assert decide(check, 1.0, 0) is None
    assert not counts(check, 0.9)
