"""One episode from image to verdict.

Rule: what goes wrong around the agent is an `InfrastructureError` that names its stage and leaves
this file; what the agent does wrong is data on the episode. The sandbox is closed whatever
happens. It does not retry, store or count: the runner does.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

import msgspec

from headrace.engine.limits import (
    EpisodeLimits,
    Spent,
    budget,
    check,
    command_timeout_s,
    left_s,
)
from headrace.errors import InfrastructureError, PolicyError, SandboxError, ServerGone
from headrace.policies.base import Policy, Session, Stop
from headrace.policies.transcript import Transcript
from headrace.sandbox.archive import upload
from headrace.sandbox.base import Limits, Provider, Sandbox, SandboxSpec
from headrace.types import (
    Action,
    Command,
    CommandResult,
    Episode,
    Failure,
    StopReason,
    Task,
    Timing,
    Turn,
    Verdict,
    VerdictFault,
)
from headrace.verifiers.base import Verifier

UPLOAD_TIMEOUT_S = 120.0


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """One slot of the plan."""

    id: str
    task: Task
    sample: int
    limits: EpisodeLimits
    sandbox: Limits
    network: bool
    """The run follows what the task asks for; False: loopback only, whatever it asks."""


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What every episode of a run shares."""

    provider: Provider
    policy: Policy
    verifier: Verifier


class Stages(Protocol):
    """How an episode tells where it is, and waits for a verify slot."""

    def prepared(self) -> None: ...

    def turn(self, turn: Turn, sampled_tokens: int) -> None: ...

    async def acted(self) -> None:
        """Returns when the episode may verify."""

    def verified(self) -> None: ...


class Attempt:
    """The running episode: what has happened so far, kept when it fails half way."""

    def __init__(
        self,
        planned: Planned,
        parts: Parts,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.stage = "prepare"
        self._planned = planned
        self._parts = parts
        self._clock = clock
        self._started_at = wall()
        self._turns: list[Turn] = []
        self._observations: list[str] = []
        self._prompt = ""
        self._transcript = Transcript()
        self._tokens = 0
        self._stop = StopReason.CANCELLED
        self._stop_detail = ""
        self._verdict: Verdict | None = None
        self._prepare_s = self._act_s = self._policy_s = self._command_s = self._verify_s = 0.0
        self._failure: Failure | None = None

    async def run(self, stages: Stages) -> None:
        """Prepare, act, verify, close. Raises `InfrastructureError`; then `failed` records it."""
        async with AsyncExitStack() as stack:
            begun = self._clock()
            sandbox = await self._open(stack)
            self._prepare_s = self._clock() - begun
            stages.prepared()
            self.stage = "act"
            begun = self._clock()
            await self._act(sandbox, stages)
            self._act_s = self._clock() - begun
            await stages.acted()
            self.stage = "verify"
            begun = self._clock()
            self._verdict = await self._parts.verifier.verify(self._graded_task(), sandbox)
            self._verify_s = self._clock() - begun
            stages.verified()

    def failed(self, error: InfrastructureError) -> None:
        """The infrastructure failed for good: no reward, and the reason as data."""
        name = type(error).__name__
        self._failure = Failure(stage=self.stage, error=name, message=str(error))
        if self.stage != "verify":  # the agent's own end is kept if it had one
            self._stop = (
                StopReason.POLICY_ERROR
                if isinstance(error, PolicyError)
                else StopReason.SANDBOX_ERROR
            )
            self._stop_detail = str(error)
        self._verdict = Verdict(
            reward=None, fault=VerdictFault.INFRASTRUCTURE, reason=f"{name}: {error}"
        )

    def episode(self, *, tries: int, queue_s: float) -> Episode:
        """The record. Only after `run` has returned or `failed` was called."""
        assert self._verdict is not None, "run() or failed() comes first"
        task = self._planned.task
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
            instruction=task.instruction,
            prompt=self._prompt,
            turns=tuple(self._turns),
            observations=tuple(self._observations),
            segments=self._transcript.segments(),
            stop_reason=self._stop,
            stop_detail=self._stop_detail,
            verdict=self._verdict,
            failure=self._failure,
            timing=Timing(
                queue_s=queue_s,
                prepare_s=self._prepare_s,
                act_s=self._act_s,
                policy_s=self._policy_s,
                command_s=self._command_s,
                verify_s=self._verify_s,
            ),
            started_at=self._started_at,
        )

    @property
    def prepare_s(self) -> float:
        return self._prepare_s

    # --- prepare ---

    async def _open(self, stack: AsyncExitStack) -> Sandbox:
        planned, recipe = self._planned, self._planned.task.environment
        image = await self._parts.provider.prepare(recipe)
        spec = SandboxSpec(
            image=image,
            episode=planned.id,
            workdir=recipe.workdir,
            env=recipe.env,
            user=planned.task.agent.user,
            network=planned.network and recipe.network.mode == "public",
            limits=planned.sandbox,
        )
        sandbox = await stack.enter_async_context(self._parts.provider.open(spec))
        if recipe.upload_context and recipe.context is not None:
            await _bounded(upload(sandbox, recipe.context, recipe.workdir or "."), "upload")
        return sandbox

    # --- act ---

    async def _act(self, sandbox: Sandbox, stages: Stages) -> None:
        planned = self._planned
        async with self._parts.policy.session(planned.task, planned.sample) as session:
            begun = self._clock()  # only now: a session may have waited for its server
            done = False
            results: Sequence[CommandResult] = ()
            while True:
                spent = Spent(
                    turns=len(self._turns),
                    tokens=self._tokens,
                    elapsed_s=self._clock() - begun,
                    done=done,
                )
                reason = check(planned.limits, spent)
                if reason is not None:
                    self._stop = reason
                    return
                action = await self._decide(session, results, spent)
                if action is None:
                    return
                results = await self._carry_out(action, sandbox, begun)
                done = action.done
                sampled = 0 if action.sample is None else len(action.sample.token_ids)
                stages.turn(self._turns[-1], sampled)

    async def _decide(
        self, session: Session, results: Sequence[CommandResult], spent: Spent
    ) -> Action | None:
        """The next action, or None when the call ended the agent phase."""
        limits = self._planned.limits
        asked = self._clock()
        try:
            async with asyncio.timeout(left_s(limits, spent.elapsed_s)):
                action = await session.act(results, budget(limits, spent))
        except TimeoutError:
            self._stop = StopReason.AGENT_TIMEOUT
            self._stop_detail = "during a policy call"
            return None
        except Stop as stop:
            self._stop, self._stop_detail = stop.reason, stop.detail
            return None
        except ServerGone:
            raise  # nobody's turn: the episode is tried again when the server is back
        except PolicyError as error:
            self._stop, self._stop_detail = StopReason.POLICY_ERROR, str(error)
            return None
        finally:
            self._policy_s += self._clock() - asked
            self._prompt = self._prompt or session.prompt
            if self._turns and len(self._observations) < len(self._turns):
                self._observations.append(session.observation())
        if action.sample is not None:
            self._transcript.add(len(self._turns), action.sample)
            self._tokens += len(action.sample.token_ids)
        return action

    async def _carry_out(
        self, action: Action, sandbox: Sandbox, begun: float
    ) -> list[CommandResult]:
        """Run what the action asks for and write the turn down, even if a command fails."""
        results: list[CommandResult] = []
        started = self._clock()
        try:
            for up in action.uploads:
                await _bounded(upload(sandbox, up.source, up.target), f"upload to {up.target}")
            for command in action.commands:
                if not await self._one_command(command, sandbox, begun, results):
                    break
        finally:
            command_s = self._clock() - started
            self._command_s += command_s
            self._turns.append(
                Turn(
                    text=action.text,
                    uploads=action.uploads,
                    commands=action.commands,
                    results=tuple(results),
                    done=action.done,
                    problems=action.problems,
                    warnings=action.warnings,
                    policy_s=action.policy_s,
                    command_s=command_s,
                )
            )
        return results

    async def _one_command(
        self, command: Command, sandbox: Sandbox, begun: float, results: list[CommandResult]
    ) -> bool:
        """Run it; False when no time is left for it."""
        timeout_s = command_timeout_s(self._planned.limits, command, self._clock() - begun)
        if timeout_s <= 0:
            return False
        results.append(await sandbox.run(command.text, timeout_s=timeout_s))
        return True

    def _graded_task(self) -> Task:
        task = self._planned.task
        timeout_s = self._planned.limits.verifier_timeout_s
        recipe = msgspec.structs.replace(task.verifier, timeout_s=timeout_s)
        return msgspec.structs.replace(task, verifier=recipe)


async def _bounded(work: Awaitable[None], what: str) -> None:
    """Await an upload with a deadline."""
    try:
        async with asyncio.timeout(UPLOAD_TIMEOUT_S):
            await work
    except TimeoutError:
        raise SandboxError(f"{what} took more than {UPLOAD_TIMEOUT_S:.0f} s") from None
