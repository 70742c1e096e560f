"""Which episode may do what next: a pure state machine.

Rule: every transition of an episode's life is in this file. No `await`, no clock, no I/O; `now`
is an argument, in seconds of any monotonic clock. Misuse raises `ContractError`.

    queued -> prepare -> act -> waiting -> verify -> store -> finished
       ^         |        |        |         |         |
       |         |        +<-----------------+         |     again: a task of several steps
       +---------+--------+--------+---------+         |     failed with tries left
                 +--------+--------+---------+-> store |     failed for good: stored as such
    any but finished -> cancelled                            leaves no record, is owed again
    any but finished -> dropped                              leaves no record, is not owed

Each stage has a bound of its own because each saturates something else: `prepare` the sandbox
engine, `act` the model, `verify` the CPU. What it does not do: it does not know tasks, clocks,
sandboxes or why something failed.
"""

from collections import Counter, deque
from enum import StrEnum
from itertools import islice

from headrace.errors import ContractError
from headrace.types import Record


class Stage(StrEnum):
    QUEUED = "queued"
    PREPARE = "prepare"
    ACT = "act"
    WAITING = "waiting"
    """Acted; a verify slot is not free yet. The sandbox is open."""
    VERIFY = "verify"
    STORE = "store"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    DROPPED = "dropped"
    """Let go: its group is complete without it."""


LIVE = frozenset({Stage.PREPARE, Stage.ACT, Stage.WAITING, Stage.VERIFY, Stage.STORE})
ENDED = frozenset({Stage.FINISHED, Stage.CANCELLED, Stage.DROPPED})


class After(StrEnum):
    """What becomes of an episode whose infrastructure failed."""

    RETRY = "retry"
    """Queued again, first in line."""
    STORE = "store"
    """Its tries, or those of the whole run, are spent: to be stored with the failure."""
    OWED = "owed"
    """The run is draining: no record, owed to the next run."""


class Bounds(Record, frozen=True, kw_only=True):
    """How many episodes may be in a stage at once, and how often they may be tried."""

    live: int
    preparing: int
    verifying: int
    tries: int
    """Of one episode, the first included. At least 1, as are the bounds above."""
    retries: int | None = None
    """Of all episodes together, after their first try; None: as many as `tries` allows."""


class Grant(Record, frozen=True, kw_only=True):
    """Permission for one episode to enter `prepare` or `verify`."""

    id: str
    stage: Stage


class Snapshot(Record, frozen=True, kw_only=True):
    """Counts by stage; they add up to `submitted`."""

    submitted: int
    stages: dict[str, int]
    draining: bool

    def __getitem__(self, stage: Stage) -> int:
        return self.stages.get(stage.value, 0)

    @property
    def live(self) -> int:
        return sum(self[stage] for stage in LIVE)


class Scheduler:
    """Admits episodes in submission order, so siblings start together; retries go first."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._stage: dict[str, Stage] = {}
        self._tries: dict[str, int] = {}
        self._since: dict[str, float] = {}
        self._queue: deque[str] = deque()
        self._waiting: deque[str] = deque()
        self._count: Counter[Stage] = Counter()
        self._draining = False
        self.retries = 0
        """Further tries granted to episodes whose infrastructure failed."""

    # --- events of the outside world ---

    def submit(self, id: str, now: float, *, tries: int = 0) -> None:
        """Plan one episode; while draining it is cancelled at once. The same id twice is a bug.

        `tries`: how often it was tried elsewhere already.
        """
        if id in self._stage:
            raise ContractError(f"episode {id} is already planned")
        self._tries[id] = tries
        self._since[id] = now
        if self._draining:
            self._set(id, Stage.CANCELLED)
            return
        self._set(id, Stage.QUEUED)
        self._queue.append(id)

    def rebound(self, bounds: Bounds) -> None:
        """Other bounds from now on. What is live above them ends in its own time."""
        self._bounds = bounds

    def grants(self, starts: int | None = None) -> list[Grant]:
        """Everything that may start now, in order. Each grant is given once.

        `starts`: at most so many enter `prepare` now; None: as many as the bounds allow.
        """
        granted: list[Grant] = []
        left = len(self._queue) if starts is None else starts
        while self._waiting and self._count[Stage.VERIFY] < self._bounds.verifying:
            granted.append(self._grant(self._waiting.popleft(), Stage.VERIFY))
        while (
            self._queue
            and left > 0
            and not self._draining
            and self._count[Stage.PREPARE] < self._bounds.preparing
            and self._live() < self._bounds.live
        ):
            id = self._queue.popleft()
            left -= 1
            self._tries[id] += 1
            granted.append(self._grant(id, Stage.PREPARE))
        return granted

    def prepared(self, id: str) -> None:
        """Its sandbox is open: the agent begins."""
        self._move(id, {Stage.PREPARE}, Stage.ACT)

    def acted(self, id: str, now: float) -> None:
        """The agent has ended; the episode waits for a verify slot."""
        self._move(id, {Stage.ACT}, Stage.WAITING)
        self._since[id] = now
        self._waiting.append(id)

    def again(self, id: str) -> None:
        """A step is graded and another follows: the agent goes on, its verify slot is free."""
        self._move(id, {Stage.VERIFY}, Stage.ACT)

    def verified(self, id: str) -> None:
        """The verdict is known; what remains is to close and store."""
        self._move(id, {Stage.VERIFY}, Stage.STORE)

    def failed(self, id: str, now: float, *, retry: bool = True, counts: bool = True) -> After:
        """The infrastructure failed; says what becomes of the episode.

        `counts` False: what failed is not to be held against it, and the try is given back.
        """
        stage = self._expect(id, LIVE - {Stage.STORE})
        if stage is Stage.WAITING:
            self._waiting.remove(id)
        spent = counts and (self._tries[id] >= self._bounds.tries or self._budget_spent())
        if not retry or spent:
            self._set(id, Stage.STORE)
            return After.STORE
        if self._draining:
            self._set(id, Stage.CANCELLED)
            return After.OWED
        self._set(id, Stage.QUEUED)
        self._since[id] = now
        self._queue.appendleft(id)
        if counts:
            self.retries += 1
        else:
            self._tries[id] -= 1
        return After.RETRY

    def finished(self, id: str) -> None:
        """Its record is durable."""
        self._move(id, {Stage.STORE}, Stage.FINISHED)

    def cancelled(self, id: str) -> None:
        """It ends without a record and is owed to the next run. A second time does nothing."""
        self._leave(id, frozenset(Stage) - {Stage.FINISHED, Stage.DROPPED})
        self._set(id, Stage.CANCELLED)

    def dropped(self, id: str) -> None:
        """It ends without a record and is not owed."""
        self._leave(id, frozenset(Stage) - ENDED)
        self._set(id, Stage.DROPPED)

    def drain(self) -> list[str]:
        """Admit nothing more; what is queued is cancelled and returned."""
        self._draining = True
        dropped = list(self._queue)
        self._queue.clear()
        for id in dropped:
            self._set(id, Stage.CANCELLED)
        return dropped

    # --- questions ---

    @property
    def bounds(self) -> Bounds:
        return self._bounds

    @property
    def wants(self) -> bool:
        """Episodes wait for nothing but the bound of the live ones."""
        return bool(self._queue) and not self._draining and self._live() >= self._bounds.live

    @property
    def above(self) -> bool:
        """More are live than the bound: it was lowered, and nothing starts soon."""
        return self._live() > self._bounds.live

    def ahead(self, n: int) -> list[str]:
        """The next in line, at most `n`, in the order in which they will start."""
        return [] if self._draining else list(islice(self._queue, n))

    def stage(self, id: str) -> Stage:
        return self._stage[id]

    def tries(self, id: str) -> int:
        """How often it was admitted, this time included."""
        return self._tries[id]

    def waited_s(self, id: str, now: float) -> float:
        """Seconds since it was last queued, or began to wait for its verify slot."""
        return now - self._since[id]

    @property
    def idle(self) -> bool:
        """Nothing is queued or live."""
        return self._count[Stage.QUEUED] == 0 and self._live() == 0

    def snapshot(self) -> Snapshot:
        stages = {stage.value: n for stage, n in self._count.items() if n}
        return Snapshot(submitted=len(self._stage), stages=stages, draining=self._draining)

    def __repr__(self) -> str:
        return f"<Scheduler {self.snapshot()}>"

    # --- transitions ---

    def _leave(self, id: str, allowed: frozenset[Stage]) -> None:
        """Out of the line it stands in, if it stands in one."""
        stage = self._expect(id, allowed)
        if stage is Stage.QUEUED:
            self._queue.remove(id)
        elif stage is Stage.WAITING:
            self._waiting.remove(id)

    def _grant(self, id: str, stage: Stage) -> Grant:
        self._set(id, stage)
        return Grant(id=id, stage=stage)

    def _move(self, id: str, allowed: set[Stage], to: Stage) -> None:
        self._expect(id, frozenset(allowed))
        self._set(id, to)

    def _expect(self, id: str, allowed: frozenset[Stage]) -> Stage:
        stage = self._stage.get(id)
        if stage is None:
            raise ContractError(f"episode {id} was never planned")
        if stage not in allowed:
            raise ContractError(f"episode {id} is {stage}, expected one of {sorted(allowed)}")
        return stage

    def _set(self, id: str, stage: Stage) -> None:
        before = self._stage.get(id)
        if before is not None:
            self._count[before] -= 1
        self._stage[id] = stage
        self._count[stage] += 1

    def _budget_spent(self) -> bool:
        return self._bounds.retries is not None and self.retries >= self._bounds.retries

    def _live(self) -> int:
        return sum(self._count[stage] for stage in LIVE)
