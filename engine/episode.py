"""One episode from image to verdict.

Rule: what goes wrong around the agent is an `InfrastructureError` that names its stage and leaves
this file; what the agent does wrong is data on the episode. The sandbox is closed whatever
happens. It does not retry, store or count: the runner does.

A task without steps is one step whose name is empty. The phases are in files of their own:
`world` (open), `health`, `steps` (what comes before a step), `act`, `artifacts`, `separate`.
"""

import asyncio
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from headrace.aio import in_thread, run_shielded
from headrace.engine import steps
from headrace.engine.act import Bench, Clock, Ending, Log, act
from headrace.engine.artifacts import Keeper, run_hooks
from headrace.engine.health import ALIVE_S, Sleep, is_wrecked, wait_healthy
from headrace.engine.limits import of_step
from headrace.engine.parts import Parts, Planned, Stages
from headrace.engine.separate import verify_apart
from headrace.engine.world import World, open_agents
from headrace.errors import (
    InfrastructureError,
    PolicyError,
    SandboxError,
    SandboxFull,
    StoreError,
    boundary,
)
from headrace.tasks.phases import agent_policy, verifier_policy, views_of
from headrace.types import (
    Collected,
    Episode,
    Failure,
    StepResult,
    StopReason,
    Task,
    Timing,
    Verdict,
    VerdictFault,
)

__all__ = ["Attempt", "Parts", "Planned", "Stages"]


class Attempt:
    """The running episode: what has happened so far, kept when it fails half way."""

    def __init__(
        self,
        planned: Planned,
        parts: Parts,
        *,
        clock: Clock = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.stage = "prepare"
        self._planned = planned
        self._parts = parts
        self._clock = clock
        self._sleep = sleep
        self._started_at = wall()
        self._log = Log()
        self._ending = Ending(StopReason.CANCELLED)
        self._verdict: Verdict | None = None
        self._results: list[StepResult] = []
        self._artifacts: list[Collected] = []
        self._keeper: Keeper | None = None
        self._prepare_s = self._act_s = self._wait_s = self._verify_s = 0.0
        self._image_s = self._start_s = 0.0
        self._failure: Failure | None = None

    async def run(self, stages: Stages) -> None:
        """Prepare, act, verify, close. Raises `InfrastructureError`; then `failed` records it."""
        task = self._planned.task
        async with AsyncExitStack() as stack:
            begun = self._clock()
            world = await open_agents(stack, self._planned, self._parts)
            self._image_s, self._start_s = world.image_s, world.start_s
            world.enter(task.environment.network)
            if task.environment.healthcheck is not None:
                check = task.environment.healthcheck
                await wait_healthy(world.sandbox, check, task, clock=self._clock, sleep=self._sleep)
            if task.steps:
                await self._begin(world, 0)
            self._prepare_s = self._clock() - begun
            stages.prepared()
            await self._do(world, stack, stages)
            stages.verified()

    def failed(self, error: InfrastructureError, *, every_time: bool = False) -> None:
        """Given up: no reward, and the reason as data.

        `every_time`: no try came further, because its sandbox ended by itself. That is no accident
        of the infrastructure any more, and counts as not solved.
        """
        name = type(error).__name__
        self._failure = Failure(stage=self.stage, error=name, message=str(error))
        if self.stage != "verify":  # the agent's own end is kept if it had one
            gone = isinstance(error, PolicyError)
            reason = StopReason.POLICY_ERROR if gone else StopReason.SANDBOX_ERROR
            self._ending = Ending(reason, str(error))
        if every_time:
            why = f"sandbox_lost: on every try: {error}"
            self._verdict = Verdict(reward=None, fault=VerdictFault.VERIFIER, reason=why)
        else:
            why = f"{name}: {error}"
            self._verdict = Verdict(reward=None, fault=VerdictFault.INFRASTRUCTURE, reason=why)

    def episode(self, *, tries: int, queue_s: float) -> Episode:
        """The record. Only after `run` has returned or `failed` was called."""
        assert self._verdict is not None, "run() or failed() comes first"
        task, log = self._planned.task, self._log
        return Episode(
            id=self._planned.id,
            task=task.name,
            task_digest=task.digest,
            category=task.category,
            difficulty=task.difficulty,
            sample=self._planned.sample,
            tries=tries,
            policy=self._parts.policy.name,
            policy_version=self._parts.policy.version,
            provider=self._parts.provider.name,
            instruction=task.instruction or _instructions(task),
            prompt=log.prompt,
            opening=log.opening,
            turns=tuple(log.turns),
            observations=tuple(log.observations),
            segments=log.transcript.segments(),
            stop_reason=self._ending.reason,
            stop_detail=self._ending.detail,
            verdict=self._verdict,
            failure=self._failure,
            timing=Timing(
                queue_s=queue_s,
                prepare_s=self._prepare_s,
                image_s=self._image_s,
                start_s=self._start_s,
                act_s=self._act_s,
                policy_s=log.policy_s,
                command_s=log.command_s,
                wait_s=self._wait_s,
                verify_s=self._verify_s,
            ),
            steps=tuple(self._results),
            artifacts=tuple(self._artifacts),
            started_at=self._started_at,
        )

    @property
    def prepare_s(self) -> float:
        return self._prepare_s

    # --- the steps ---

    async def _do(self, world: World, stack: AsyncExitStack, stages: Stages) -> None:
        """Every step in turn: act, then verify."""
        task = self._planned.task
        for index, view in enumerate(views_of(task)):
            step = task.steps[index] if task.steps else None
            self.stage = "act"
            if index > 0:  # prepared in the verify slot: only then may the agent go on
                if not await self._go_on(world, index):
                    break
                stages.again()
            await self._act(world, view, index, stages)
            acted = self._clock()
            await stages.acted()
            self._wait_s += self._clock() - acted
            self.stage = "verify"
            verdict = await self._verify(world, stack, view, index)
            if step is None:
                self._verdict = verdict
                return
            reason, detail = self._ending
            result = StepResult(
                name=step.name, stop_reason=reason, stop_detail=detail, verdict=verdict
            )
            self._results.append(result)
            if not steps.goes_on(step, verdict):
                break
        self._verdict = steps.sum_up(task, self._results, strict=self._parts.strict)

    async def _begin(self, world: World, index: int) -> None:
        task = self._planned.task
        await steps.begin(
            world.sandbox,
            task.steps[index],
            views_of(task)[index],
            clock=self._clock,
            sleep=self._sleep,
        )

    async def _go_on(self, world: World, index: int) -> bool:
        """Prepare a step after the first; False when it cannot begin."""
        before, step = self._planned.task.steps[index - 1 : index + 1]
        world.enter(self._planned.task.environment.network)
        try:
            if before.verifier.environment is None:
                await steps.clear_tests(world.sandbox)
            await steps.fresh_shell(world.sandbox)
            await self._begin(world, index)
        except SandboxError as error:
            if error.final:
                raise
            if not await is_wrecked(world.sandbox):
                await world.sandbox.exec("exit 0", timeout_s=ALIVE_S)  # raises when it is gone
            self._results.append(steps.not_begun(step, error))
            return False
        return True

    # --- act, verify ---

    async def _act(self, world: World, view: Task, index: int, stages: Stages) -> None:
        planned = self._planned
        bench = Bench(
            sandbox=world.sandbox,
            limits=of_step(planned.limits, index),
            log=self._log,
            clock=self._clock,
            on_turn=stages.turn,
            step=_name(planned.task, index),
        )
        world.enter(agent_policy(view))
        begun = self._clock()
        try:
            self._ending = await act(self._parts.policy, view, planned.sample, bench)
        finally:
            self._act_s += self._clock() - begun

    async def _verify(self, world: World, stack: AsyncExitStack, view: Task, index: int) -> Verdict:
        begun = self._clock()
        try:
            world.enter(view.environment.network)
            return await self._grade(world, stack, self._graded(view, index), index)
        except SandboxError as e:
            if e.final or not (isinstance(e, SandboxFull) or await is_wrecked(world.sandbox)):
                raise
            reason = f"sandbox_unusable: {e}"
            return Verdict(reward=None, fault=VerdictFault.VERIFIER, reason=reason)
        finally:
            self._verify_s += self._clock() - begun

    async def _grade(self, world: World, stack: AsyncExitStack, view: Task, index: int) -> Verdict:
        """Collect, then verify in the agent's sandbox or in one of the verifier's own."""
        apart = view.verifier.environment is not None
        keeper = self._keeper = self._keeper or await self._new_keeper(stack, apart=apart)
        kept: list[Collected] = []
        if keeper is None:
            await run_hooks(view, world.sandbox)
        else:
            kept = await keeper.collect(view, world.sandbox, _name(self._planned.task, index))
            self._artifacts += kept
        if not apart:
            world.enter(verifier_policy(view))
            return await self._parts.verifier.verify(view, world.sandbox)
        assert keeper is not None
        if index + 1 >= len(self._planned.task.steps):
            await world.sandbox.aclose()  # nobody needs it again, and it takes memory
        return await verify_apart(self._planned, self._parts, view, kept, keeper.folder)

    async def _new_keeper(self, stack: AsyncExitStack, *, apart: bool) -> Keeper | None:
        """None when nobody wants the files."""
        if self._parts.artifacts is not None:
            return Keeper(self._parts.artifacts / self._planned.id, self._parts.large)
        if not apart:
            return None
        folder = Path(tempfile.gettempdir(), f"headrace-{secrets.token_hex(8)}")
        stack.push_async_callback(in_thread, shutil.rmtree, folder, True)
        with boundary(StoreError, "a folder for the artifacts of an episode"):
            await run_shielded(in_thread(folder.mkdir, 0o700))  # never after its removal
        return Keeper(folder, self._parts.large)

    def _graded(self, view: Task, index: int) -> Task:
        """`view` with the run's own time for the verifier."""
        timeout_s = of_step(self._planned.limits, index).verifier_timeout_s
        recipe = msgspec.structs.replace(view.verifier, timeout_s=timeout_s)
        return msgspec.structs.replace(view, verifier=recipe)


def _name(task: Task, index: int) -> str:
    return task.steps[index].name if task.steps else ""


def _instructions(task: Task) -> str:
    return "\n\n".join(step.instruction for step in task.steps)
