"""The driver over the shipped fakes: what groups let go, a failing engine, and what wakes it."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from headrace.engine.breaker import Breaker
from headrace.engine.driver import Driver
from headrace.engine.events import EpisodeDropped, EpisodeStarted, Event, StageEntered
from headrace.engine.groups import Groups
from headrace.engine.limits import EpisodeLimits
from headrace.engine.meters import Meters
from headrace.engine.parts import Parts, Planned
from headrace.engine.scheduler import Bounds, Snapshot, Stage
from headrace.engine.shutdown import Shutdown
from headrace.errors import SandboxError
from headrace.policies.base import Budget, Policy, Session
from headrace.policies.listed import ListedSession
from headrace.sandbox.base import Limits, SandboxSpec
from headrace.sandbox.fake import FakeProvider, FakeSandbox
from headrace.types import (
    Action,
    AgentRecipe,
    CommandResult,
    EnvironmentRecipe,
    Episode,
    Task,
    VerifierRecipe,
)
from headrace.verifiers.harbor import HarborVerifier

LIMITS = EpisodeLimits(
    max_turns=5, max_tokens=None, agent_timeout_s=30.0, command_timeout_s=5.0, verifier_timeout_s=5
)
FOR_EVER = 3600.0


class Sleeps:
    """Acts so long for each sample."""

    name, version, terminal = "test", "1", False

    def __init__(self, seconds: Mapping[int, float]) -> None:
        self._seconds = seconds

    @asynccontextmanager
    async def session(self, task: Task, sample: int) -> AsyncIterator[Session]:
        session = ListedSession(())

        async def act(results: Sequence[CommandResult], budget: Budget) -> Action:
            await asyncio.sleep(self._seconds.get(sample, 0.0))
            return Action(text="", done=True)

        session.act = act  # type: ignore[method-assign]
        yield session

    async def __aenter__(self) -> Policy:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


class Unwilling(FakeProvider):
    """Its sandboxes cannot be removed when their episode is cancelled."""

    @asynccontextmanager
    async def open(self, spec: SandboxSpec) -> AsyncIterator[FakeSandbox]:
        async with super().open(spec) as sandbox:
            try:
                yield sandbox
            except asyncio.CancelledError:
                raise SandboxError("it could not be removed") from None


class Hangs(FakeProvider):
    """One episode's sandbox never starts."""

    def __init__(self, episode: str) -> None:
        super().__init__()
        self._episode = episode
        self.reached = asyncio.Event()

    @asynccontextmanager
    async def open(self, spec: SandboxSpec) -> AsyncIterator[FakeSandbox]:
        if spec.episode == self._episode and not self.reached.is_set():
            self.reached.set()
            await asyncio.Event().wait()
        async with super().open(spec) as sandbox:
            yield sandbox


def passing_tests(command: str) -> bytes:
    """What a sandbox answers to the verifier when the tests wrote a reward."""
    if "headrace-brought" in command:
        return b"headrace-brought\n"
    return b"file /logs/verifier/reward.txt\n--\n" if "set --" in command else b""


def passing() -> FakeProvider:
    return FakeProvider(exec_script=passing_tests, files={"/logs/verifier/reward.txt": b"1\n"})


class Kept:
    """A sink in memory."""

    def __init__(self) -> None:
        self.episodes: list[Episode] = []

    async def append(self, episode: Episode) -> None:
        self.episodes.append(episode)


class Clock:
    """Counts: each look of the driver at its schedule reads it."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return time.monotonic()


def driver(
    tmp_path: Path,
    seconds: Mapping[int, float],
    n: int,
    provider: FakeProvider,
    *,
    live: int = 8,
    groups: Groups | None = None,
    tries: int = 2,
    breaker: Breaker | None = None,
    clock: Clock | None = None,
    sink: Kept | None = None,
    events: list[Event] | None = None,
) -> Driver:
    """Of `n` episodes of one task; those of sample `s` act for `seconds[s]`."""
    (tmp_path / "tests").mkdir(exist_ok=True)
    (tmp_path / "tests" / "test.sh").write_text("#!/bin/sh\n")
    task = Task(
        name="t",
        digest="d",
        path=str(tmp_path),
        format="harbor",
        instruction="do it",
        environment=EnvironmentRecipe(image="x"),
        agent=AgentRecipe(),
        verifier=VerifierRecipe(tests=(str(tmp_path / "tests"),)),
    )
    return Driver(
        [
            Planned(id=f"e{i}", task=task, sample=i, limits=LIMITS, sandbox=Limits(), network=False)
            for i in range(n)
        ],
        Parts(provider=provider, policy=Sleeps(seconds), verifier=HarborVerifier()),
        Bounds(live=live, preparing=8, verifying=8, tries=tries),
        sink=sink or Kept(),
        meters=Meters(),
        shutdown=Shutdown(),
        grace_s=10.0,
        on_event=(events if events is not None else []).append,
        groups=groups,
        breaker=breaker,
        clock=clock or Clock(),
    )


async def driven(made: Driver) -> Snapshot:
    async with asyncio.timeout(15):
        return await made.drive()


async def test_a_group_that_has_enough_goes_on_without_its_straggler(tmp_path: Path) -> None:
    sink, events = Kept(), list[Event]()
    more = {2: FOR_EVER}
    made = driver(tmp_path, more, 4, passing(), groups=Groups(3), sink=sink, events=events)
    snapshot = await driven(made)
    assert (snapshot[Stage.FINISHED], snapshot[Stage.DROPPED]) == (3, 1)
    assert sorted(e.sample for e in sink.episodes) == [0, 1, 3]
    assert [e.sample for e in events if isinstance(e, EpisodeDropped)] == [2]


async def test_siblings_of_a_complete_group_do_not_start(tmp_path: Path) -> None:
    events = list[Event]()
    made = driver(tmp_path, {}, 4, passing(), live=1, groups=Groups(2), events=events)
    snapshot = await driven(made)
    assert (snapshot[Stage.FINISHED], snapshot[Stage.DROPPED]) == (2, 2)
    assert sum(isinstance(e, EpisodeStarted) for e in events) == 2


async def test_a_sibling_whose_infrastructure_failed_completes_no_group(tmp_path: Path) -> None:
    sink, provider = Kept(), passing()
    provider.open_errors.append(SandboxError("no room"))
    made = driver(tmp_path, {}, 3, provider, live=1, tries=1, groups=Groups(2), sink=sink)
    snapshot = await driven(made)
    assert snapshot[Stage.FINISHED] == 3
    assert [e.verdict.passed for e in sink.episodes] == [False, True, True]


async def test_a_straggler_whose_sandbox_cannot_be_closed_is_still_let_go(tmp_path: Path) -> None:
    made = driver(tmp_path, {2: FOR_EVER}, 4, Unwilling(), groups=Groups(3))
    snapshot = await driven(made)
    assert (snapshot[Stage.FINISHED], snapshot[Stage.DROPPED]) == (3, 1)
    assert made.error is None


async def test_a_probe_that_is_let_go_as_a_straggler_leaves_room_for_another(
    tmp_path: Path,
) -> None:
    """Else no sandbox would ever start again."""
    provider = Hangs("e1")
    breaker = Breaker(failures=1, pause_s=0.01, longest_s=0.01)
    made = driver(tmp_path, {0: 0.2}, 2, provider, groups=Groups(1, 1.0), breaker=breaker)

    async def fail() -> None:
        await provider.reached.wait()
        breaker.failed(time.monotonic())  # it opens, and what is on its way counts as the probe
        breaker.begun()

    async with asyncio.TaskGroup() as group:
        group.create_task(fail())
        driving = group.create_task(driven(made))
    assert driving.result()[Stage.DROPPED] == 1
    assert breaker.allowance(time.monotonic() + 1.0) != 0


async def test_a_probe_that_is_due_and_has_no_place_is_not_waited_for_by_the_clock(
    tmp_path: Path,
) -> None:
    """It looked a thousand times a second."""
    breaker = Breaker(failures=1, pause_s=0.01, longest_s=0.01)
    clock, events = Clock(), list[Event]()
    made = driver(
        tmp_path,
        {0: 1.0},
        2,
        FakeProvider(),
        live=1,
        breaker=breaker,
        clock=clock,
        events=events,
    )

    async def fail() -> None:
        while StageEntered(id="e0", stage="act") not in events:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        breaker.failed(clock())
        made.bounds = Bounds(live=1, preparing=7, verifying=8, tries=2)  # it looks

    async with asyncio.TaskGroup() as group:
        group.create_task(fail())
        driving = group.create_task(driven(made))
    assert driving.result()[Stage.FINISHED] == 2
    assert clock.reads < 200
