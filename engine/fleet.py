"""Several engine processes as one: the plan is dealt to them, what they come to is gathered.

Rule: this process drives no episode. It has the plan, the bounds and the signals; each engine
process (`worker.py`) has a part of them, in portions, as it runs dry. What a process that ends
before its episodes had made durable counts; the rest goes to the others, one try the poorer, and
is owed when none is left. None is started again. An error of one that is final ends all.

Who is dealt what is decided in `dealing.py`, what is said in `wire.py`; one process is started,
heard and ended in `fleet_process.py`.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from headrace.aio import background, in_thread
from headrace.configs.models import RunConfig
from headrace.engine.dealing import Deal, Shares, split
from headrace.engine.driver import finished
from headrace.engine.events import EpisodeStarted, Note, OnEvent, Stopping
from headrace.engine.fleet_process import (
    COMMAND,
    Worker,
    drop_if_empty,
    error_of,
    heard,
    how_it_ended,
    started,
)
from headrace.engine.measured import Counts, Merged
from headrace.engine.parts import Planned
from headrace.engine.resume import is_owed
from headrace.engine.scheduler import LIVE, Bounds, Snapshot, Stage
from headrace.engine.shutdown import Shutdown, Stop
from headrace.engine.status import Slow
from headrace.engine.store import SharedShards
from headrace.engine.wire import (
    Begin,
    Bye,
    Finish,
    FromWorker,
    Halt,
    Now,
    Places,
    Portion,
    Served,
    Told,
    Trouble,
)
from headrace.errors import InfrastructureError
from headrace.policies.served import State
from headrace.sandbox.base import Footprint, Provider
from headrace.types import Record

AHEAD = 8
"""Episodes dealt to a process beyond those it may have live, at least."""
SILENT_S = 120.0
"""A process that says nothing for so long hangs, and is ended."""
SERVER_EVERY_S = 0.25
UNLIMITED = 1 << 30


def processes(asked: int, *, cpus: int, busy: int) -> tuple[int, str | None]:
    """How many are started, and the sentence to tell where that is fewer than asked for.

    `busy`: groups, or live episodes if those are fewer. A group stays in one process.
    """
    number = max(1, min(asked, cpus, busy))
    if number == asked or busy == 0:
        return number, None
    why = f"this machine has {cpus} processors for us"
    if busy < cpus:
        why = f"no more than {busy} can share the work, for the attempts at a task stay together"
    is_are = "is" if number == 1 else "are"
    return number, f"engine.processes = {asked}: {why}, so {number} {is_are} started"


def usable_cpus() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0))


class Open(Record, frozen=True, kw_only=True):
    """Of all processes: how often their breakers opened, and whether one is open."""

    opened: int
    is_open: bool


class WarmAhead:
    """The pools of all processes. See `driven.Warmth`."""

    def __init__(
        self,
        most: int,
        footprint: Footprint,
        workers: Sequence[Worker],
        changed: Callable[[], None],
    ) -> None:
        self.footprint = footprint
        self._most = most
        self._workers = workers
        self._changed = changed

    @property
    def most(self) -> int:
        return self._most

    @most.setter
    def most(self, most: int) -> None:
        self._most = max(0, most)
        self._changed()

    @property
    def warm(self) -> int:
        return sum(w.now.warm for w in self._workers if w.now is not None and not w.over)

    @property
    def hits(self) -> int:
        return sum(w.now.hits for w in self._workers if w.now is not None)

    @property
    def misses(self) -> int:
        return sum(w.now.misses for w in self._workers if w.now is not None)


class Fleet:
    """A session's episodes over several processes. Looks like a driver: see `driven.Driven`."""

    def __init__(
        self,
        planned: Sequence[Planned],
        config: RunConfig,
        folder: Path,
        bounds: Bounds,
        *,
        number: int,
        label: str,
        warm: int,
        opening: int,
        provider: Provider,
        meters: Merged,
        shutdown: Shutdown,
        on_event: OnEvent,
        held: Collection[str] = (),
        graded: Mapping[str, int] | None = None,
        server: State | None = None,
        locks: Sequence[int] = (),
        command: Sequence[str] = COMMAND,
        silent_s: float = SILENT_S,
    ) -> None:
        """`config`: as the processes read it. `graded`: episodes of a group that are, by digest.

        `server`: asked how the model server is; None: it is not ours to watch. `locks`: the run's,
        as descriptors; every process holds them too, so a killed starter lets nobody in too early.
        """
        self._planned = planned
        self._config = config
        self._folder = folder
        self._bounds = bounds
        self._label = label
        self._opening = opening
        self._provider = provider
        self._meters = meters
        self._shutdown = shutdown
        self._on_event = on_event
        self._graded = Counter(graded or {})
        self._server = server
        self._locks = tuple(locks)
        self._command = command
        self._silent_s = silent_s
        self._deal = Deal(planned, tries=bounds.tries, held=held)
        self._shares = Shares()
        self._workers = [Worker(n + 1) for n in range(number)]
        self._obeyed = Stop.NONE
        self._owed = 0
        self._finishing = False
        """Somebody was there at the end of the plan."""
        self.pool = WarmAhead(warm, provider.footprint, self._workers, self._reshare)
        self.finished = 0
        """Episodes that are durable."""
        self.dropped = 0
        """Episodes that their groups went on without."""
        self.error: InfrastructureError | None = None
        """What made the run stop before its plan was done, if something did."""

    async def drive(self) -> Snapshot:
        """Run the plan to its end, or to the end that was asked for."""
        self._shutdown.listener = self._obey
        try:
            self._obey()
            if self._obeyed is Stop.NONE:
                await self._drive()
        finally:
            self._shutdown.listener = None
        self._owed += self._deal.stop()
        if self._owed and self._obeyed is Stop.NONE and not self._finishing:
            self.error = self.error or InfrastructureError(
                f"every engine process has ended: {self._owed} episodes are owed; what they said "
                f"is in {self._folder / 'logs'}. The same command goes on from here"
            )
        self._meters.settle()
        return self.snapshot()

    async def _drive(self) -> None:
        for worker in self._workers:
            self._deal.join(worker.number)
            self._shares.join(worker.number)
        async with SharedShards(self._folder, self._config.store) as shards:
            async with background(self._watch_server()), asyncio.TaskGroup() as group:
                for worker in self._workers:
                    group.create_task(self._attend(worker, shards), name=f"process {worker.number}")

    def release(self, tasks: Collection[str]) -> None:
        """The episodes of these tasks may start, unless the run is stopping."""
        self._deal.release(tasks)
        self._feed()

    # --- one process ---

    async def _attend(self, worker: Worker, shards: SharedShards) -> None:
        """From its start to its end, whatever that is."""
        log = self._folder / "logs" / f"process-{worker.number}.log"
        locks = (*self._locks, shards.lock)
        async with started(self._command, log, locks) as (process, line):
            worker.line = line
            line.send(self._begin(worker))
            if self._obeyed is not Stop.NONE:  # asked for before it could hear of it
                worker.send(Halt(stop=self._obeyed, reason=self._shutdown.reason))
            self._reshare()
            self._feed()
            try:
                while not worker.over:
                    message = await heard(line, self._silent_s)
                    if message is None:
                        break
                    self._hear(worker, message)
            except TimeoutError:
                self._note(
                    f"engine process {worker.number} said nothing for {self._silent_s:.0f} s"
                )
                process.kill()
            worker.over = True
        await self._leave(worker, process.returncode, log, shards)

    def _begin(self, worker: Worker) -> Begin:
        return Begin(
            worker=worker.number,
            config=self._config.model_dump(mode="json"),
            folder=str(self._folder),
            label=self._label,
            opening=max(1, self._opening // len(self._workers)),
            kept=self._server is not None,
        )

    def _hear(self, worker: Worker, message: FromWorker) -> None:
        match message:
            case Told():
                self._hear_of(worker, message)
            case Now():
                self._look_at(worker, message)
            case Bye():
                worker.over = worker.orderly = True
                if message.last is not None:
                    self._look_at(worker, message.last)
                if message.trouble is not None:
                    self._halt(worker, message.trouble)

    def _hear_of(self, worker: Worker, told: Told) -> None:
        for event in told.events:
            if isinstance(event, EpisodeStarted):
                self._deal.started(event.id)
            self._on_event(event)
        for one in told.ended:
            self._deal.ended(worker.number, one.id)
            self.dropped += one.dropped
            self.finished += not one.dropped
            self._graded[one.group] += one.graded
        if told.ended:
            self._feed()

    def _look_at(self, worker: Worker, now: Now) -> None:
        worker.now = now
        counts = {f: getattr(now, f) for f in Counts.__struct_fields__}
        self._meters.count(worker.number, Counts(**counts))
        self._meters.recent(worker.number, now.start_s, now.lag_s)
        if now.measured is not None:
            self._meters.sample(worker.number, now.measured)
        self._shares.said(worker.number, turn=now.turn, live=now.live)
        self._reshare()
        self._feed()

    async def _leave(
        self, worker: Worker, code: int | None, log: Path, shards: SharedShards
    ) -> None:
        """What it had and did not end goes to others, but for what it has made durable."""
        had = set(self._deal.has(worker.number))
        for episode in await shards.left_by(worker.number, had) if had else ():
            self._deal.ended(worker.number, episode.id)
            self.finished += 1
            self._graded[episode.task_digest] += not is_owed(episode)
            self._on_event(finished(episode))
        lost = self._deal.lost(worker.number)
        self._shares.leave(worker.number)
        self._owed += len(lost.owed)
        if lost.again or not worker.orderly:
            self._note(await in_thread(how_it_ended, worker.number, code, log))
        if not worker.orderly:
            await self._sweep()
        if lost.again:
            self._note(f"{len(lost.again)} episodes of process {worker.number} go to the others")
        await in_thread(drop_if_empty, log)
        self._reshare()
        self._feed()

    async def _sweep(self) -> None:
        """Remove the sandboxes of a process that could not close them."""
        try:
            for line in await self._provider.sweep():
                self._note(f"swept: {line}")
        except InfrastructureError as error:
            self._note(f"what a dead engine process left could not be removed: {error}")

    def _halt(self, worker: Worker, trouble: Trouble) -> None:
        """An error that no further try can mend, or one that is no data: it ends all."""
        error = error_of(worker.number, trouble)
        if not isinstance(error, InfrastructureError):
            raise error
        self.error = self.error or error
        self._shutdown.request(Stop.CANCEL, f"{trouble.kind}: {trouble.message}")

    # --- decisions carried out ---

    def _feed(self) -> None:
        """Deal to those that run dry; end all when nothing is left."""
        if self._obeyed is not Stop.NONE:
            return
        for worker in self._workers:
            if worker.over or worker.line is None or worker.places is None:
                continue
            places = worker.places
            ahead = max(AHEAD, 2 * places.bounds.preparing, places.warm)
            dealt = self._deal.deal(worker.number, places.bounds.live + ahead)
            if dealt:
                worker.send(self._portion(dealt))
        if self._deal.idle:
            for worker in self._workers:
                if worker.line is not None and not worker.over:
                    worker.line.send(Finish())
                    self._finishing = True

    def _portion(self, dealt: Sequence[Planned]) -> Portion:
        groups = {one.task.digest for one in dealt}
        return Portion(
            episodes=tuple(dealt),
            tries=self._deal.tries([one.id for one in dealt]),
            graded={group: self._graded[group] for group in groups if self._graded[group]},
        )

    def _reshare(self) -> None:
        """Send every process its part of the bounds, where that is another than before."""
        joined = [w.number for w in self._workers if not w.over]
        wants = {
            number: UNLIMITED if self._deal.left else self._deal.outstanding(number)
            for number in joined
        }
        self._shares.assign(self._bounds.live, wants)
        preparing = split(self._bounds.preparing, joined, least=1)
        verifying = split(self._bounds.verifying, joined, least=1)
        warm = split(self.pool.most, joined)
        budget = self._bounds.retries
        retries = split(budget or 0, [w.number for w in self._workers])
        for worker in self._workers:
            number = worker.number
            if worker.line is None or worker.over:
                continue
            live, turn = self._shares.last(number)
            bounds = Bounds(
                live=live,
                preparing=preparing[number],
                verifying=verifying[number],
                tries=self._bounds.tries,
                retries=None if budget is None else retries[number],
            )
            places = Places(bounds=bounds, warm=warm[number], turn=turn)
            if places != worker.places:
                worker.places = places
                worker.send(places)

    def _obey(self) -> None:
        """Told of every request to stop."""
        if self._shutdown.stop is self._obeyed:
            return
        self._obeyed = self._shutdown.stop
        self._owed += self._deal.stop()
        mode = "cancelling" if self._obeyed is Stop.CANCEL else "finishing"
        self._on_event(Stopping(mode=mode, reason=self._shutdown.reason))
        for worker in self._workers:
            worker.send(Halt(stop=self._obeyed, reason=self._shutdown.reason))

    async def _watch_server(self) -> None:
        """Tell all how the model server is, again and again; until cancelled."""
        while self._server is not None:
            up, gone = self._server()
            state = Served(up=up, gone=gone)
            for worker in self._workers:
                worker.send(state)
            await asyncio.sleep(SERVER_EVERY_S)

    def _note(self, text: str) -> None:
        self._on_event(Note(text=text))

    # --- as a driver looks ---

    @property
    def bounds(self) -> Bounds:
        return self._bounds

    @bounds.setter
    def bounds(self, bounds: Bounds) -> None:
        """In force at once for what has not started yet."""
        if bounds != self._bounds:
            self._bounds = bounds
            self._reshare()
            self._feed()

    @property
    def breaker(self) -> Open:
        said = [w.now for w in self._workers if w.now is not None]
        alive = [w.now for w in self._workers if w.now is not None and not w.over]
        return Open(
            opened=sum(now.opened for now in said), is_open=any(now.paused for now in alive)
        )

    @property
    def wants(self) -> bool:
        """Episodes wait for nothing but the bound of the live ones."""
        return any(w.now.wants for w in self._workers if w.now is not None and not w.over)

    @property
    def retries(self) -> int:
        """Further tries that were granted."""
        return sum(w.now.retries for w in self._workers if w.now is not None)

    @property
    def planned(self) -> int:
        return len(self._planned)

    def snapshot(self) -> Snapshot:
        """As the processes said last: up to a second old."""
        stages: Counter[str] = Counter()
        for worker in self._workers:
            if worker.now is not None and not worker.over:
                for stage in LIVE:
                    stages[stage.value] += worker.now.stages.get(stage.value, 0)
        stages[Stage.FINISHED.value] = self.finished
        stages[Stage.DROPPED.value] = self.dropped
        stages[Stage.CANCELLED.value] = self._owed
        waiting = len(self._planned) - sum(stages.values())
        stages[Stage.QUEUED.value] = max(0, waiting)
        return Snapshot(
            submitted=len(self._planned),
            stages={stage: n for stage, n in stages.items() if n},
            draining=self._obeyed is not Stop.NONE,
        )

    def under_way(self) -> Iterator[Slow]:
        """The admitted episodes, longest first."""
        slow = [s for w in self._workers if w.now is not None and not w.over for s in w.now.slowest]
        return iter(sorted(slow, key=lambda one: -one.for_s))
