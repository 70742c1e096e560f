"""Steers a run while it goes on: how many episodes are live, what it is asked for, what it shows.

Rule: once a second, beside the driver. It reads the model's load and the host's, asks `admission`,
applies what people asked for (`live_limits`), and writes `status`. A model server that does not
answer leaves its numbers as they were, and holds up nothing else. It starts, ends and cancels no
episode; an error of its own is told once and ends nothing.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec

from headrace.aio import background, in_thread
from headrace.engine import live_limits, preflight, status
from headrace.engine.admission import Admission, HostLoad, Reading, Reason
from headrace.engine.driven import Driven, Warmth
from headrace.engine.events import Note, OnEvent
from headrace.engine.host import read_host
from headrace.engine.live_limits import LiveLimits
from headrace.engine.meters import Meters
from headrace.engine.status import Rates, Slow, Status, Totals
from headrace.errors import HeadraceError
from headrace.policies.base import ModelLoad, Policy

EVERY_S = 1.0
ANSWER_S = 5.0
"""For the model server to tell its load."""
RATES_S = 60.0
SLOWEST = 10


class Steering:
    """Of one process of a run. `run` beside the driver, until cancelled."""

    def __init__(
        self,
        driver: Driven,
        policy: Policy,
        meters: Meters,
        folder: Path,
        *,
        run: str,
        admission: Admission | None,
        pool: Warmth | None,
        on_event: OnEvent,
        process: str = "main",
        processes: int = 1,
        clock: Callable[[], float] = time.monotonic,
        host: Callable[[Path], HostLoad] = read_host,
        every_s: float = EVERY_S,
    ) -> None:
        """`admission` None: the number of live episodes is fixed."""
        self._driver = driver
        self._policy = policy
        self._meters = meters
        self._folder = folder
        self._run = run
        self._admission = admission
        self._pool = pool
        self._on_event = on_event
        self._process = process
        self._processes = processes
        self._clock = clock
        self._read_host = host
        self._every_s = every_s
        self._began = clock()
        self._fixed: int | None = None
        """Live episodes as somebody asked for while the run goes on."""
        self._warm = 0 if pool is None else pool.most
        """Sandboxes wanted ahead, whether the machine holds them or not."""
        self._asked: LiveLimits | None = None
        self._lag_s = 0.0
        self.latest: Status | None = None
        """What was shown last."""
        self._why: str = Reason.FIXED
        self._said: ModelLoad | None = None
        """By the model server."""
        self._said_at = 0.0
        self._host = HostLoad()
        self._counts: deque[tuple[float, int, int, int]] = deque()
        self._told: set[str] = set()

    async def steer(self) -> None:
        """Until cancelled. A model server that answers late delays nothing but its own numbers."""
        async with background(self._again(self._ask)):
            await self._again(self._act)

    async def step(self) -> None:
        """Ask the model, then read, decide, apply and show, once."""
        await self._ask()
        await self._act()

    async def _again(self, call: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await call()
            except (HeadraceError, OSError, RuntimeError) as e:  # no thread, no open file
                self._tell(f"the run is not steered now: {e}")
            await asyncio.sleep(self._every_s)

    async def _act(self) -> None:
        self._host = await in_thread(self._read_host, self._folder)
        await self._hear()
        self._decide()
        await self.show()

    async def show(self, *, ended: bool = False) -> None:
        """Write the status."""
        try:
            self.latest = self._status(ended=ended)
            await in_thread(status.write, self._folder, self.latest)
        except (HeadraceError, OSError) as e:
            self._tell(f"the run's status cannot be written: {e}")

    # --- sensors ---

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                found = await self._policy.load()
        except TimeoutError:
            return
        if found is not None:
            self._said, self._said_at = found, self._clock()

    @property
    def _model(self) -> ModelLoad | None:
        """What it said last, and how long ago."""
        if self._said is None:
            return None
        age_s = self._said.age_s + self._clock() - self._said_at
        return msgspec.structs.replace(self._said, age_s=age_s)

    async def _hear(self) -> None:
        """What somebody asks for since the last look."""
        try:
            asked = await in_thread(live_limits.read, self._folder)
        except HeadraceError as e:
            self._tell(str(e))
            return
        if asked is None or asked == self._asked:
            return
        self._asked = asked
        self._on_event(Note(text=f"limits changed: {live_limits.words(asked)}"))
        if asked.live == "auto" and self._admission is None:
            self._tell("limits: live = auto: this run was started with a fixed number")
        if asked.live is not None:
            self._fixed = None if asked.live == "auto" else asked.live
        if asked.warm is not None:
            self._warm = asked.warm
        bounds = self._driver.bounds
        live = await self._fit(self._fixed or bounds.live)
        if self._fixed is not None:
            self._fixed = live
        self._driver.bounds = msgspec.structs.replace(
            bounds,
            live=live,
            preparing=asked.preparing or bounds.preparing,
            verifying=asked.verifying or bounds.verifying,
        )

    async def _fit(self, live: int) -> int:
        """As many live episodes as the machine holds of these; the pool is sized to what is left.

        More than there are episodes costs nothing, so only those are counted.
        """
        if self._pool is None:
            return live
        episodes = self._driver.planned
        fit = partial(
            preflight.prepare,
            min(live, episodes),
            self._pool.footprint,
            warm=min(self._warm, episodes),
            held=self._driver.snapshot().live + self._pool.warm,
            processes=self._processes,
        )
        found = await in_thread(fit)
        for note in found.notes:
            self._on_event(Note(text=note))
        self._pool.most = self._warm if found.warm >= min(self._warm, episodes) else found.warm
        return live if found.live >= min(live, episodes) else found.live

    # --- decisions ---

    def _decide(self) -> None:
        start_s, lag_s = self._meters.take_recent()
        self._lag_s = lag_s
        if self._admission is None or self._fixed is not None:
            self._why = Reason.FIXED
            return
        decision = self._admission.observe(
            Reading(
                now_s=self._clock(),
                live=self._driver.snapshot().live,
                wanted=self._driver.wants,
                model=self._model,
                host=self._host,
                start_s=start_s,
                lag_s=lag_s,
            )
        )
        self._why = decision.reason
        self._driver.bounds = msgspec.structs.replace(self._driver.bounds, live=decision.live)

    # --- what is shown ---

    def _status(self, *, ended: bool) -> Status:
        snapshot, bounds, breaker = (
            self._driver.snapshot(),
            self._driver.bounds,
            self._driver.breaker,
        )
        return Status(
            at=time.time(),
            pid=os.getpid(),
            run=self._run,
            process=self._process,
            processes=self._processes,
            uptime_s=self._clock() - self._began,
            planned=self._driver.planned,
            finished=self._driver.finished,
            dropped=self._driver.dropped,
            failed_starts=breaker.opened,
            stages=snapshot.stages,
            live=bounds.live,
            preparing=bounds.preparing,
            verifying=bounds.verifying,
            why=str(self._why),
            breaker_open=breaker.is_open,
            warm=0 if self._pool is None else self._pool.warm,
            rates=self._rates(),
            totals=self._totals(),
            lag_p99_s=self._lag_s,
            model=self._model,
            host=self._host,
            slowest=self._slowest(),
            phases=self._meters.phases(),
            ended=ended,
        )

    def _rates(self) -> Rates:
        now, meters = self._clock(), self._meters
        self._counts.append((now, self._driver.finished, meters.turns, meters.sampled_tokens))
        while self._counts[0][0] < now - RATES_S:
            self._counts.popleft()
        first, last = self._counts[0], self._counts[-1]
        seconds = last[0] - first[0]
        if seconds <= 0:
            return Rates()
        episodes, turns, tokens = (
            (b - a) / seconds for a, b in zip(first[1:], last[1:], strict=True)
        )
        return Rates(episodes=episodes, turns=turns, sampled_tokens=tokens)

    def _totals(self) -> Totals:
        meters, pool = self._meters, self._pool
        return Totals(
            turns=meters.turns,
            sampled_tokens=meters.sampled_tokens,
            starts=meters.started,
            retries=self._driver.retries,
            outcomes=dict(meters.outcomes),
            pool_hits=0 if pool is None else pool.hits,
            pool_misses=0 if pool is None else pool.misses,
        )

    def _slowest(self) -> tuple[Slow, ...]:
        return tuple(islice(self._driver.under_way(), SLOWEST))

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._on_event(Note(text=text))
