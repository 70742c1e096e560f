"""An engine process: drives the episodes it is dealt, on a loop, a provider and shards of its own.

    python -m headrace.engine.worker SOCKET [LOCK ...]

Rule: what to run, how many at once and when to stop comes over the socket it inherits (`wire.py`),
and nothing else decides. It inherits the run's locks too, and lets go of them by ending. An episode
is told to be finished once it is durable. When the other end is gone it cancels what runs, closes
its sandboxes and ends. It acts on no Ctrl-C, makes no plan, starts no model server and writes no
file of the run but its shards and artifacts.
"""

import asyncio
import os
import signal
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import count, islice
from pathlib import Path

import uvloop

from headrace.aio import background, in_thread, unwrap
from headrace.configs.models import RunConfig
from headrace.engine import collector, preflight
from headrace.engine.breaker import Breaker
from headrace.engine.driver import Driver, EpisodeSink
from headrace.engine.events import EpisodeDropped, Event, StageEntered, Stopping, TurnFinished
from headrace.engine.groups import Groups
from headrace.engine.measured import measured
from headrace.engine.meters import Meters
from headrace.engine.parts import Parts
from headrace.engine.resume import is_owed
from headrace.engine.runner import parts_of, policy_of
from headrace.engine.scheduler import Bounds
from headrace.engine.shutdown import Shutdown, Stop
from headrace.engine.store import Store
from headrace.engine.warming import keep_warm
from headrace.engine.wire import (
    Begin,
    Bye,
    Ended,
    Finish,
    FromWorker,
    Halt,
    Line,
    Now,
    Places,
    Portion,
    Served,
    Told,
    ToWorker,
    Trouble,
    workers_end,
)
from headrace.errors import HeadraceError
from headrace.policies.served import ServedPolicy
from headrace.sandbox.pool import Pool
from headrace.sandbox.providers import choose
from headrace.types import Episode

MORE = ""
"""Held, as a task of that name would be, while more may be dealt."""
TELL_EVERY_S = 0.05
LOOK_EVERY = 20
SAMPLES_EVERY = 200
"""Beats of `TELL_EVERY_S`."""
MOST_UNTOLD = 50_000
"""Events kept for a starting process that does not listen; then stages and turns are left out."""
SLOWEST = 10
NOTHING = Bounds(live=0, preparing=1, verifying=1, tries=1)

Opener = Callable[[Begin, RunConfig], AbstractAsyncContextManager[Parts]]
"""Opens what episodes share; the provider is a `Pool`."""


class Outbox(EpisodeSink):
    """What has happened and was not told yet. The sink of the driver: see `EpisodeSink`."""

    def __init__(self, line: Line[FromWorker, ToWorker], store: Store) -> None:
        self._line = line
        self._store = store
        self._events: list[Event] = []
        self._ended: list[Ended] = []
        self._groups: dict[str, str] = {}

    def expect(self, portion: Portion) -> None:
        self._groups.update({one.id: one.task.digest for one in portion.episodes})

    def hear(self, event: Event) -> None:
        """An `OnEvent`. That the run is stopping is known where it comes from."""
        if isinstance(event, Stopping):
            return
        if len(self._events) >= MOST_UNTOLD and isinstance(event, StageEntered | TurnFinished):
            return
        self._events.append(event)
        if isinstance(event, EpisodeDropped):
            group = self._groups.pop(event.id)
            self._ended.append(Ended(id=event.id, group=group, dropped=True))

    async def append(self, episode: Episode) -> None:
        await self._store.append(episode)
        group = self._groups.pop(episode.id)
        self._ended.append(Ended(id=episode.id, group=group, graded=not is_owed(episode)))

    def tell(self) -> None:
        """Send what there is."""
        if self._events or self._ended:
            self._line.send(Told(events=tuple(self._events), ended=tuple(self._ended)))
            self._events.clear()
            self._ended.clear()


class Work:
    """The life of one engine process, from its orders to its last word."""

    def __init__(self, line: Line[FromWorker, ToWorker], begin: Begin, parts: Parts) -> None:
        assert isinstance(parts.provider, Pool)
        config = RunConfig.model_validate(begin.config)
        self._line = line
        self._begin = begin
        self._parts = parts
        self._pool = parts.provider
        self._turn = 0
        self._shutdown = Shutdown()
        self._meters = Meters()
        self._groups = Groups(config.engine.min_group, config.engine.patience)
        self._store = Store(Path(begin.folder), config.store, writer=begin.worker)
        self._outbox = Outbox(line, self._store)
        self._driver = Driver(
            (),
            parts,
            NOTHING,
            sink=self._outbox,
            meters=self._meters,
            shutdown=self._shutdown,
            grace_s=config.engine.grace_s,
            on_event=self._outbox.hear,
            held=(MORE,),
            groups=self._groups,
            breaker=Breaker(outage_s=config.engine.outage_s),
        )

    async def run(self) -> None:
        """To the end that was asked for, or to an error. Says the last word."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._shutdown.request, Stop.CANCEL, "SIGTERM")
        async with self._store, AsyncExitStack() as stack:
            for beside in (
                self._meters.watch_loop,
                self._listen,
                self._keep_telling,
                partial(keep_warm, self._driver, self._pool, self._parts),
            ):
                await stack.enter_async_context(background(beside()))
            with collector.seldom():
                await self._driver.drive()
        self._outbox.tell()
        error = self._driver.error
        self._line.send(Bye(last=self._now(), trouble=None if error is None else trouble(error)))

    async def _listen(self) -> None:
        while (message := await self._line.receive()) is not None:
            self._obey(message)
        self._shutdown.request(Stop.CANCEL, "the process that started this one is gone")

    def _obey(self, message: ToWorker) -> None:
        match message:
            case Portion():
                self._outbox.expect(message)
                for group, graded in message.graded.items():
                    self._groups.known(group, graded)
                self._driver.extend(message.episodes, message.tries)
            case Places():
                self._turn, self._driver.bounds = message.turn, message.bounds
                self._pool.most = message.warm
                most = message.bounds.live + message.warm  # who started us raised its own limit
                preflight.raise_files(preflight.files_of(most, self._pool.footprint))
            case Halt():
                self._shutdown.request(message.stop, message.reason)
            case Finish():
                self._driver.release((MORE,))
            case Served():
                if isinstance(self._parts.policy, ServedPolicy):
                    self._parts.policy.served(up=message.up, gone=message.gone)

    # --- how it stands ---

    async def _keep_telling(self) -> None:
        """Until cancelled; no faster than the other end hears."""
        for beat in count():
            self._outbox.tell()
            if beat % LOOK_EVERY == 0:
                self._line.send(self._now(samples=beat % SAMPLES_EVERY == 0))
            await self._line.drained()
            await asyncio.sleep(TELL_EVERY_S)

    def _now(self, *, samples: bool = True) -> Now:
        driver, meters, pool = self._driver, self._meters, self._pool
        start_s, lag_s = meters.take_recent()
        snapshot = driver.snapshot()
        return Now(
            stages=snapshot.stages,
            live=snapshot.live,
            turn=self._turn,
            wants=driver.wants,
            retries=driver.retries,
            opened=driver.breaker.opened,
            paused=driver.breaker.is_open,
            warm=pool.warm,
            hits=pool.hits,
            misses=pool.misses,
            turns=meters.turns,
            sampled_tokens=meters.sampled_tokens,
            started=meters.started,
            outcomes=dict(meters.outcomes),
            cpu_s=meters.cpu_s,
            start_s=start_s,
            lag_s=lag_s,
            slowest=tuple(islice(driver.under_way(), SLOWEST)),
            measured=measured(meters) if samples else None,
        )


@asynccontextmanager
async def opened(begin: Begin, config: RunConfig) -> AsyncIterator[Parts]:
    """The parts of a run: its provider, its policy, its verifier."""
    async with AsyncExitStack() as stack:
        policy = await in_thread(policy_of, config, Path(begin.folder), _ignore)
        if begin.kept:
            policy = ServedPolicy(policy)
        chosen = await choose(config.sandbox, images=config.images, run_id=begin.label)
        await stack.enter_async_context(chosen)
        await stack.enter_async_context(policy)
        pool = Pool(chosen.provider, most=0, opening=begin.opening)
        await stack.enter_async_context(pool)
        yield parts_of(config, Path(begin.folder), pool, policy)


def _ignore(line: str) -> None:
    """The starting process has told it."""


def trouble(error: BaseException) -> Trouble:
    """An error as data. One that is no error of headrace brings its traceback."""
    if isinstance(error, HeadraceError):
        return Trouble(kind=type(error).__name__, message=str(error))
    return Trouble(kind="bug", message="".join(traceback.format_exception(error)))


async def serve(sock: socket.socket, opener: Opener = opened) -> None:
    """Everything, over a connected socket."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, _ignore, "")  # a handler: SIG_IGN would be inherited
    line = await workers_end(sock)
    try:
        begin = await line.receive()
        if not isinstance(begin, Begin):
            return
        try:
            async with opener(begin, RunConfig.model_validate(begin.config)) as parts:
                await Work(line, begin, parts).run()
        except Exception as error:  # the capture point of a process: told to who started it
            line.send(Bye(trouble=trouble(unwrap(error))))
        await line.drained()
    finally:
        line.close()
        await line.closed()


def main(opener: Opener = opened) -> None:
    """Run on the descriptor that the first argument names; the others are kept open."""
    for descriptor in map(int, sys.argv[1:]):
        os.set_inheritable(descriptor, False)  # else a sandbox would keep it open
    sock = socket.socket(fileno=int(sys.argv[1]))
    uvloop.run(serve(sock, opener))


if __name__ == "__main__":
    main()
