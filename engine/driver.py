"""Drives planned episodes through the scheduler's stages.

Rule: the scheduler decides, this file acts: one task per admitted episode, all in one task group.
It owns no resources; the runner hands it open ones.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec

from headrace.aio import run_shielded
from headrace.engine.breaker import Breaker
from headrace.engine.episode import Attempt
from headrace.engine.events import (
    EpisodeDropped,
    EpisodeFinished,
    EpisodeRetried,
    EpisodeStarted,
    Note,
    OnEvent,
    StageEntered,
    Stopping,
    TurnFinished,
)
from headrace.engine.groups import Groups
from headrace.engine.meters import Meters
from headrace.engine.parts import Parts, Planned
from headrace.engine.resume import is_owed
from headrace.engine.scheduler import ENDED, After, Bounds, Grant, Scheduler, Snapshot, Stage
from headrace.engine.shutdown import Shutdown, Stop
from headrace.engine.status import Slow
from headrace.errors import ImageError, InfrastructureError, ProviderGone, SandboxEnded
from headrace.types import Episode, Turn

TICK_S = 0.001
"""Added to what is waited for, so that its moment is over when the timer fires."""


class EpisodeSink(Protocol):
    """Where finished episodes go."""

    async def append(self, episode: Episode) -> None:
        """Returns when the episode is durable. Raises `StoreError`."""


class Driver:
    """One run's episodes from the first grant to the last record."""

    def __init__(
        self,
        planned: Sequence[Planned],
        parts: Parts,
        bounds: Bounds,
        *,
        sink: EpisodeSink,
        meters: Meters,
        shutdown: Shutdown,
        grace_s: float,
        on_event: OnEvent,
        held: Collection[str] = (),
        groups: Groups | None = None,
        breaker: Breaker | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`held`: names of tasks whose episodes are not to start before `release`.

        `groups`: which groups let go of their stragglers; None: none does.
        """
        self._held = set(held)
        self._driving = False
        self._planned = {p.id: p for p in planned}
        self._parts = parts
        self._sink = sink
        self._meters = meters
        self._shutdown = shutdown
        self._grace_s = grace_s
        self._on_event = on_event
        self._clock = clock
        self._scheduler = Scheduler(bounds)
        self._groups = groups or Groups(None)
        self._breaker = breaker or Breaker()
        self._timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._ended: Counter[str] = Counter()
        """Tries whose sandbox ended by itself once the agent was at work."""
        self._gates: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._began: dict[str, float] = {}
        """When each that is under way was admitted, in that order."""
        self._obeyed = Stop.NONE
        self._grace: asyncio.TimerHandle | None = None
        self.finished = 0
        """Episodes that are durable."""
        self.dropped = 0
        """Episodes that their groups went on without."""
        self.error: InfrastructureError | None = None
        """What made the run stop before its plan was done, if something did."""

    async def drive(self) -> Snapshot:
        """Run the plan to its end, or to the end that was asked for."""
        self._driving = True
        self._submit([id for id, p in self._planned.items() if p.task.name not in self._held])
        self._shutdown.listener = self._wake.set
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._obey()
                    now = self._clock()
                    self._let_go(now)
                    for grant in self._scheduler.grants(self._breaker.allowance(now)):
                        self._act_on(grant, group)
                    if self._scheduler.idle and not self._held:
                        break
                    self._wake_in_time(now)
                    await self._wake.wait()
                    self._wake.clear()
        finally:
            self._shutdown.listener = None
            for timer in (self._grace, self._timer):
                if timer is not None:
                    timer.cancel()
        return self._scheduler.snapshot()

    def release(self, tasks: Collection[str]) -> None:
        """The episodes of these tasks may start, unless the run is stopping."""
        names = self._held.intersection(tasks)
        self._held -= names
        if not self._driving:
            return
        self._submit([id for id, p in self._planned.items() if p.task.name in names])
        self._wake.set()

    def extend(self, planned: Sequence[Planned], tries: Mapping[str, int]) -> None:
        """More of the plan, of several processes; it may start unless the run is stopping.

        `tries`: how often some were tried elsewhere. Something is held until all of it is there.
        """
        for one in planned:
            self._planned[one.id] = one
            self._scheduler.submit(one.id, self._clock(), tries=tries.get(one.id, 0))
        self._wake.set()

    @property
    def bounds(self) -> Bounds:
        return self._scheduler.bounds

    @bounds.setter
    def bounds(self, bounds: Bounds) -> None:
        """In force at once for what has not started yet."""
        if bounds != self._scheduler.bounds:
            self._scheduler.rebound(bounds)
            self._wake.set()

    @property
    def breaker(self) -> Breaker:
        return self._breaker

    @property
    def wants(self) -> bool:
        """Episodes wait for nothing but the bound of the live ones."""
        return self._scheduler.wants

    @property
    def retries(self) -> int:
        """Further tries that were granted."""
        return self._scheduler.retries

    @property
    def planned(self) -> int:
        return len(self._planned)

    def snapshot(self) -> Snapshot:
        return self._scheduler.snapshot()

    def under_way(self) -> Iterator[Slow]:
        """The admitted episodes, longest first."""
        now = self._clock()
        for id, began in self._began.items():
            planned = self._planned[id]
            yield Slow(
                id=id,
                task=planned.task.name,
                sample=planned.sample,
                stage=self._scheduler.stage(id).value,
                for_s=now - began,
            )

    def ahead(self, n: int) -> list[Planned]:
        """What will start next, at most `n`; nothing while more are live than allowed."""
        if self._scheduler.above:
            return []
        return [self._planned[id] for id in self._scheduler.ahead(n)]

    def _submit(self, ids: Sequence[str]) -> None:
        for id in ids:
            self._scheduler.submit(id, self._clock())

    def _wake_in_time(self, since: float) -> None:
        """For what happens by the clock: a probe of the breaker, the end of a straggler's time.

        What was due before `since` waits for something else than the clock, and that wakes us.
        """
        if self._timer is not None:
            self._timer.cancel()
        moments = (self._breaker.next_at(), self._groups.next_at(since))
        at = min((at for at in moments if at is not None and at >= since), default=None)
        if at is not None:
            delay_s = max(0.0, at - self._clock()) + TICK_S
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake.set)

    # --- grants ---

    def _act_on(self, grant: Grant, group: asyncio.TaskGroup) -> None:
        if grant.stage is Stage.VERIFY:
            self._gates.pop(grant.id).set()
            self._entered(grant.id, Stage.VERIFY)
            return
        if self._groups.complete(self._planned[grant.id].task.digest):
            self._drop(grant.id)
            self._wake.set()  # its place is free
            return
        now = self._clock()
        self._breaker.begun()
        self._groups.begun(self._planned[grant.id].task.digest, grant.id, now)
        self._began[grant.id] = now
        queue_s = self._scheduler.waited_s(grant.id, now)
        self._tasks[grant.id] = group.create_task(self._episode(grant.id, queue_s), name=grant.id)

    async def _episode(self, id: str, queue_s: float) -> None:
        planned = self._planned[id]
        self._on_event(EpisodeStarted(id=id, task=planned.task.name, sample=planned.sample))
        self._entered(id, Stage.PREPARE)
        attempt = Attempt(planned, self._parts)
        try:
            try:
                await attempt.run(_Stages(self, id, attempt))
            except InfrastructureError as error:
                if not self._survives(id, attempt, error):
                    return
            tries = self._scheduler.tries(id)
            await self._store(attempt.episode(tries=tries, queue_s=queue_s))
        finally:
            del self._tasks[id], self._began[id]
            self._gates.pop(id, None)
            stage = self._scheduler.stage(id)
            if attempt.stage == "prepare" and stage in {Stage.PREPARE, Stage.DROPPED}:
                self._breaker.abandoned()
            if stage not in ENDED | {Stage.QUEUED}:
                self._scheduler.cancelled(id)
            self._groups.ended(planned.task.digest, id, self._clock(), graded=False)
            self._wake.set()

    def _survives(self, id: str, attempt: Attempt, error: InfrastructureError) -> bool:
        """Whether a failed attempt is to be stored now."""
        stage = self._scheduler.stage(id)
        waits = isinstance(error, ProviderGone) and self._waits_for_engine(error, stage)
        if error.final and not waits:
            self._halt(error)
        if stage is Stage.STORE:
            # Verified; only closing failed. The verdict stands, and sweep finds what is left.
            return True
        if stage in ENDED or (error.final and not waits):  # let go: only closing failed
            return False
        if stage is Stage.PREPARE and not waits:
            if isinstance(error, ImageError):  # the task's own: says nothing about the engine
                self._breaker.abandoned()
            else:
                self._breaker.failed(self._clock())
        if isinstance(error, SandboxEnded) and attempt.stage != "prepare":
            self._ended[id] += 1
        after = self._scheduler.failed(id, self._clock(), retry=error.retry, counts=not waits)
        if after is After.RETRY:
            self._on_event(EpisodeRetried(id=id, error=f"{type(error).__name__}: {error}"))
        if after is not After.STORE:
            return False
        tries = self._scheduler.tries(id)
        attempt.failed(error, every_time=1 < tries == self._ended[id])
        return True

    def _waits_for_engine(self, error: ProviderGone, stage: Stage) -> bool:
        """Whether an engine that does not answer may still come back; told when it begins."""
        before = self._breaker.is_gone
        starting = stage is Stage.PREPARE
        waits = self._breaker.gone(self._clock(), starting=starting)
        if waits and not before:
            self._on_event(Note(text=f"waiting for the sandbox engine: {error}"))
        return waits

    async def _store(self, episode: Episode) -> None:
        self._entered(episode.id, Stage.STORE)
        try:
            begun = self._clock()
            await run_shielded(self._sink.append(episode))
            took = msgspec.structs.asdict(episode.timing)
            self._meters.add_phases(**took, store_s=self._clock() - begun)
        except InfrastructureError as error:
            self._halt(error)
            return
        self._scheduler.finished(episode.id)
        self.finished += 1
        graded = not is_owed(episode)
        self._groups.ended(episode.task_digest, episode.id, self._clock(), graded=graded)
        self._meters.outcomes[_outcome(episode, graded=graded)] += 1
        self._on_event(finished(episode))

    # --- letting go ---

    def _let_go(self, now: float) -> None:
        """End the stragglers of complete groups, and start none of those that still wait."""
        for id in self._groups.stragglers(now):
            if self._scheduler.stage(id) not in ENDED | {Stage.QUEUED, Stage.STORE}:
                self._drop(id)
                self._tasks[id].cancel()

    def _drop(self, id: str) -> None:
        planned = self._planned[id]
        self._scheduler.dropped(id)
        self.dropped += 1
        self._on_event(EpisodeDropped(id=id, task=planned.task.name, sample=planned.sample))

    # --- stopping ---

    def _halt(self, error: InfrastructureError) -> None:
        """An error that no further try can mend: stop, with what is durable intact."""
        self.error = self.error or error
        self._shutdown.request(Stop.CANCEL, f"{type(error).__name__}: {error}")

    def _obey(self) -> None:
        if self._shutdown.stop is self._obeyed:
            return
        self._obeyed = self._shutdown.stop
        self._scheduler.drain()
        self._held.clear()
        cancel = {Stage.PREPARE}
        if self._obeyed is Stop.CANCEL:
            cancel |= {Stage.ACT, Stage.WAITING, Stage.VERIFY}
        else:
            loop = asyncio.get_running_loop()
            self._grace = loop.call_later(
                self._grace_s, self._shutdown.request, Stop.CANCEL, "the grace period is over"
            )
        mode = "cancelling" if self._obeyed is Stop.CANCEL else "finishing"
        self._on_event(Stopping(mode=mode, reason=self._shutdown.reason))
        for id, task in self._tasks.items():
            if self._scheduler.stage(id) in cancel:
                task.cancel()

    # --- what the stages report ---

    def _entered(self, id: str, stage: Stage) -> None:
        self._on_event(StageEntered(id=id, stage=stage.value))

    def on_prepared(self, id: str, prepare_s: float) -> None:
        self._scheduler.prepared(id)
        if self._breaker.is_gone:
            self._on_event(Note(text="the sandbox engine answers again"))
        self._breaker.succeeded()
        self._meters.add_start(prepare_s)
        self._entered(id, Stage.ACT)
        self._wake.set()

    def on_turn(self, id: str, turn: Turn, sampled_tokens: int) -> None:
        self._meters.turns += 1
        self._meters.sampled_tokens += sampled_tokens
        for result in turn.results:
            self._meters.command_s.add(result.duration_s)
        self._on_event(TurnFinished(id=id, sampled_tokens=sampled_tokens))

    async def on_acted(self, id: str) -> None:
        self._scheduler.acted(id, self._clock())
        gate = self._gates[id] = asyncio.Event()
        self._wake.set()
        await gate.wait()

    def on_again(self, id: str) -> None:
        self._scheduler.again(id)
        self._entered(id, Stage.ACT)
        self._wake.set()

    def on_verified(self, id: str) -> None:
        self._scheduler.verified(id)
        self._wake.set()


def finished(episode: Episode) -> EpisodeFinished:
    """What is told of a durable episode."""
    fault = episode.verdict.fault
    return EpisodeFinished(
        id=episode.id,
        task=episode.task,
        sample=episode.sample,
        reward=episode.verdict.reward,
        fault=None if fault is None else fault.value,
        stop_reason=episode.stop_reason.value,
        tries=episode.tries,
        failure=episode.failure.message if episode.failure is not None else "",
    )


def _outcome(episode: Episode, *, graded: bool) -> str:
    if not graded:
        return "infrastructure"
    return "passed" if episode.verdict.passed else "failed"


class _Stages:
    """An episode's line to its driver."""

    def __init__(self, driver: Driver, id: str, attempt: Attempt) -> None:
        self._driver = driver
        self._id = id
        self._attempt = attempt

    def prepared(self) -> None:
        self._driver.on_prepared(self._id, self._attempt.prepare_s)

    def turn(self, turn: Turn, sampled_tokens: int) -> None:
        self._driver.on_turn(self._id, turn, sampled_tokens)

    async def acted(self) -> None:
        await self._driver.on_acted(self._id)

    def again(self) -> None:
        self._driver.on_again(self._id)

    def verified(self) -> None:
        self._driver.on_verified(self._id)
