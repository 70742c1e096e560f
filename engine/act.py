"""The agent's part: a policy and a sandbox in turn, until a limit or the policy ends it.

Rule: what the agent does wrong is data; what goes wrong around it leaves as `InfrastructureError`,
with what has happened so far in the `Log`. One call of `act` is one session of the policy: an
episode has one, or one for each step. It opens, grades and retries nothing.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from headrace.engine.limits import (
    EpisodeLimits,
    Spent,
    budget,
    check,
    command_timeout_s,
    left_s,
)
from headrace.errors import PolicyError, SandboxError, ServerGone
from headrace.policies.base import Policy, Session, Stop
from headrace.policies.transcript import Transcript
from headrace.sandbox.archive import upload
from headrace.sandbox.base import Sandbox
from headrace.types import Action, Command, CommandResult, StopReason, Task, Turn

UPLOAD_TIMEOUT_S = 120.0

Clock = Callable[[], float]
OnTurn = Callable[[Turn, int], None]
"""Called with each turn and its number of sampled tokens."""


class Log:
    """What an episode's agent has done so far, over all of its steps."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.observations: list[str] = []
        self.prompt = ""
        self.opening = ""
        self.transcript = Transcript()
        self.tokens = 0
        self.policy_s = 0.0
        self.command_s = 0.0


class Ending(NamedTuple):
    """Why a session ended."""

    reason: StopReason
    detail: str = ""


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """Where a session works."""

    sandbox: Sandbox
    limits: EpisodeLimits
    log: Log
    clock: Clock
    on_turn: OnTurn
    step: str = ""


async def act(policy: Policy, task: Task, sample: int, bench: Bench) -> Ending:
    """One session from its first call to its end. Raises `InfrastructureError`."""
    async with policy.session(task, sample) as session:
        # The clock starts only now: a session may have waited for its server.
        return await _Turns(session, bench, begun=bench.clock()).run()


class _Turns:
    """The turns of one session."""

    def __init__(self, session: Session, bench: Bench, *, begun: float) -> None:
        self._session = session
        self._bench = bench
        self._log = bench.log
        self._begun = begun
        self._first = True
        """No call of this session has been made yet."""

    async def run(self) -> Ending:
        done = False
        results: Sequence[CommandResult] = ()
        while True:
            spent = Spent(
                turns=len(self._log.turns),
                tokens=self._log.tokens,
                elapsed_s=self._elapsed_s(),
                done=done,
            )
            reason = check(self._bench.limits, spent)
            if reason is not None:
                return Ending(reason)
            action = await self._decide(results, spent)
            if isinstance(action, Ending):
                return action
            results = await self._carry_out(action)
            done = action.done
            sampled = 0 if action.sample is None else len(action.sample.token_ids)
            self._bench.on_turn(self._log.turns[-1], sampled)

    def _elapsed_s(self) -> float:
        return self._bench.clock() - self._begun

    async def _decide(self, results: Sequence[CommandResult], spent: Spent) -> Action | Ending:
        """The next action, or the end when the call ended the session."""
        limits, log = self._bench.limits, self._log
        asked = self._bench.clock()
        try:
            async with asyncio.timeout(left_s(limits, spent.elapsed_s)):
                action = await self._session.act(results, budget(limits, spent))
        except TimeoutError:
            return Ending(StopReason.AGENT_TIMEOUT, "during a policy call")
        except Stop as stop:
            return Ending(stop.reason, stop.detail)
        except ServerGone:
            raise  # nobody's turn: the episode is tried again when the server is back
        except PolicyError as error:
            return Ending(StopReason.POLICY_ERROR, str(error))
        finally:
            log.policy_s += self._bench.clock() - asked
            self._note_what_was_shown()
        if action.sample is not None:
            fresh = action.sample.new_segment or (self._first and bool(log.turns))
            sample = msgspec.structs.replace(action.sample, new_segment=fresh)
            log.transcript.add(len(log.turns), sample)
            log.tokens += len(sample.token_ids)
        self._first = False
        return action

    def _note_what_was_shown(self) -> None:
        """A later step's session is shown its own opening after the last turn of the one before."""
        session, log = self._session, self._log
        log.prompt = log.prompt or session.prompt
        log.opening = log.opening or session.opening
        if log.turns and len(log.observations) < len(log.turns):
            log.observations.append(session.opening if self._first else session.observation())

    async def _carry_out(self, action: Action) -> list[CommandResult]:
        """Run what the action asks for and write the turn down, even if a command fails."""
        results: list[CommandResult] = []
        started = self._bench.clock()
        try:
            for up in action.uploads:
                await put(self._bench.sandbox, up.source, up.target)
            for command in action.commands:
                if not await self._one_command(command, results):
                    break
        finally:
            command_s = self._bench.clock() - started
            self._log.command_s += command_s
            self._log.turns.append(
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
                    step=self._bench.step,
                )
            )
        return results

    async def _one_command(self, command: Command, results: list[CommandResult]) -> bool:
        """Run or type it; False when no time is left for it."""
        timeout_s = command_timeout_s(self._bench.limits, command, self._elapsed_s())
        if timeout_s <= 0:
            return False
        sandbox = self._bench.sandbox
        if command.keys:
            result = await (await sandbox.terminal()).type(command.text, wait_s=timeout_s)
        else:
            result = await sandbox.run(command.text, timeout_s=timeout_s)
        results.append(result)
        return True


async def put(sandbox: Sandbox, source: str, target: str) -> None:
    """`upload` with a deadline."""
    try:
        async with asyncio.timeout(UPLOAD_TIMEOUT_S):
            await upload(sandbox, source, target)
    except TimeoutError:
        raise SandboxError(f"upload to {target} took more than {UPLOAD_TIMEOUT_S:.0f} s") from None
