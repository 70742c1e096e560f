"""A run while it goes on: what it shows, and bounds that are changed from outside."""

import asyncio
import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from headrace.aio import background
from headrace.cli.top import follow, picture
from headrace.engine import live_limits, status
from headrace.engine.admission import Admission, HostLoad, Reason
from headrace.engine.driver import Driver
from headrace.engine.events import Event, Note
from headrace.engine.limits import EpisodeLimits
from headrace.engine.live_limits import LiveLimits
from headrace.engine.meters import Meters
from headrace.engine.parts import Parts, Planned
from headrace.engine.scheduler import Bounds
from headrace.engine.shutdown import Shutdown
from headrace.engine.status import STALE_S, Rates, Slow, Status
from headrace.engine.steering import ANSWER_S, Steering
from headrace.errors import UsageError
from headrace.policies.base import ModelLoad
from headrace.policies.fake import FakePolicy
from headrace.sandbox.base import Footprint, Limits
from headrace.sandbox.fake import FakeProvider
from headrace.sandbox.pool import Pool
from headrace.types import AgentRecipe, EnvironmentRecipe, Episode, Task, VerifierRecipe
from headrace.verifiers.harbor import HarborVerifier

LIMITS = EpisodeLimits(
    max_turns=50, max_tokens=None, agent_timeout_s=60.0, command_timeout_s=5.0, verifier_timeout_s=5
)
ROOM = ModelLoad(kv_use=0.1, running=4, waiting=0, preemptions=0)


class Kept:
    """A sink in memory."""

    async def append(self, episode: Episode) -> None:
        await asyncio.sleep(0)


class Rig:
    """A driver over fakes, steered."""

    def __init__(
        self,
        folder: Path,
        *,
        n: int = 40,
        live: int = 4,
        admission: Admission | None = None,
        load: ModelLoad | None = ROOM,
        provider: FakeProvider | None = None,
    ) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self.provider = provider or FakeProvider(record=False)
        self.provider.run_gate = asyncio.Event()
        self.policy = FakePolicy(turns=2, load_of=lambda calls: load)
        self.pool = Pool(self.provider, most=2)
        self.driver = Driver(
            [planned(i) for i in range(n)],
            Parts(provider=self.pool, policy=self.policy, verifier=HarborVerifier()),
            Bounds(live=live, preparing=64, verifying=64, tries=1),
            sink=Kept(),
            meters=Meters(),
            shutdown=Shutdown(),
            grace_s=1.0,
            on_event=self.events.append,
        )
        self.now_s = 0.0
        self._admission = admission
        self.steering = self.steered_by(self.policy)

    def steered_by(self, policy: FakePolicy, *, every_s: float = 1.0) -> Steering:
        return Steering(
            self.driver,
            policy,
            Meters(),
            self.folder,
            run="r",
            admission=self._admission,
            pool=self.pool,
            on_event=self.events.append,
            clock=lambda: self.now_s,
            host=lambda folder: HostLoad(),
            every_s=every_s,
        )

    async def while_it_runs(self, look: Callable[[], "asyncio.Future[None] | object"]) -> None:
        """`look` once episodes are live and wait at the gate; then the run goes to its end."""
        gate = self.provider.run_gate
        assert gate is not None

        async def then() -> None:
            try:
                await self.until(lambda: self.provider.live == self.driver.bounds.live)
                found = look()
                if asyncio.iscoroutine(found):
                    await found
            finally:
                gate.set()

        async with asyncio.timeout(20), self.pool, asyncio.TaskGroup() as group:
            group.create_task(self.driver.drive())
            group.create_task(then())

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 - the driver tells nobody
            await asyncio.sleep(0)

    def shown_live(self) -> int:
        return sum(one.live for one in status.read(self.folder))

    async def step(self, seconds: float = 1.0) -> Status:
        self.now_s += seconds
        await self.steering.step()
        (found,) = status.read(self.folder)
        return found


def planned(n: int) -> Planned:
    task = Task(
        name=f"t{n // 4}",
        digest=f"d{n // 4}",
        path="/nowhere",
        format="harbor",
        instruction="do it",
        environment=EnvironmentRecipe(image="x"),
        agent=AgentRecipe(),
        verifier=VerifierRecipe(),
    )
    return Planned(
        id=f"e{n}", task=task, sample=n % 4, limits=LIMITS, sandbox=Limits(), network=False
    )


# --- steering ---


async def test_a_status_tells_stages_bounds_and_the_longest_episodes(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    async def look() -> None:
        found = await rig.step()
        assert (found.planned, found.finished, found.pid) == (40, 0, os.getpid())
        assert found.stages == {"queued": 36, "act": 4}
        assert (found.live, found.why) == (4, Reason.FIXED)
        assert found.model == ROOM
        assert [slow.id for slow in found.slowest] == ["e0", "e1", "e2", "e3"]
        assert found.running(time.time())

    await rig.while_it_runs(look)
    await rig.steering.show(ended=True)
    (last,) = status.read(tmp_path)
    assert last.ended
    assert last.stages == {"finished": 40}


async def test_with_room_at_both_ends_more_episodes_are_live(tmp_path: Path) -> None:
    rig = Rig(tmp_path, admission=Admission(start=4, most=32))

    async def look() -> None:
        for live in (5, 6, 7):
            found = await rig.step(5.0)
            assert found.why == Reason.GROWS
            assert found.live == live
            await rig.until(lambda: rig.provider.live == rig.driver.bounds.live)

    await rig.while_it_runs(look)


async def test_a_full_cache_lets_no_more_episodes_start(tmp_path: Path) -> None:
    full = msgspec.structs.replace(ROOM, kv_use=1.0)
    rig = Rig(tmp_path, live=10, admission=Admission(start=10, most=32), load=full)

    async def look() -> None:
        found = await rig.step()
        assert (found.live, found.why) == (7, Reason.KV_CACHE)
        assert rig.provider.live == 10, "what is live is not ended for it"

    await rig.while_it_runs(look)


async def test_bounds_are_changed_while_the_run_goes_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    async def look() -> None:
        live_limits.write(tmp_path, LiveLimits(live=9, verifying=3, warm=0))
        found = await rig.step()
        assert (found.live, found.verifying, found.preparing) == (9, 3, 64)
        assert rig.pool.most == 0
        await rig.until(lambda: rig.provider.live == 9)
        assert Note(text="limits changed: live = 9, verifying = 3, warm = 0") in rig.events

    await rig.while_it_runs(look)


async def test_a_number_somebody_asked_for_stands_until_it_is_auto_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path, admission=Admission(start=4, most=32))

    async def look() -> None:
        live_limits.write(tmp_path, LiveLimits(live=2))
        assert (await rig.step(10.0)).live == 2
        assert (await rig.step(10.0)).why == Reason.FIXED
        live_limits.write(tmp_path, LiveLimits(live="auto"))
        assert (await rig.step(10.0)).why != Reason.FIXED

    await rig.while_it_runs(look)


async def test_a_file_of_limits_without_sense_changes_nothing_and_is_told_once(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    (tmp_path / live_limits.LIMITS_FILE).write_text('{"live": -3}')

    async def look() -> None:
        for _ in range(3):
            assert (await rig.step()).live == 4
        told = [e.text for e in rig.events if isinstance(e, Note)]
        assert told == ["live: expected 1 to 1000000, found -3"]

    await rig.while_it_runs(look)


class Mute(FakePolicy):
    """Its model server takes the question for its load and never answers."""

    async def load(self) -> ModelLoad | None:
        await asyncio.Event().wait()
        return None


async def test_a_model_server_that_does_not_tell_its_load_holds_up_no_limit_and_no_status(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    rig.steering = rig.steered_by(Mute(turns=2), every_s=0.01)

    async def look() -> None:
        live_limits.write(tmp_path, LiveLimits(live=9))
        async with asyncio.timeout(ANSWER_S - 1), background(rig.steering.steer()):
            await rig.until(lambda: rig.driver.bounds.live == 9 and rig.shown_live() == 9)

    await rig.while_it_runs(look)


async def test_what_the_model_server_said_ages_between_two_answers(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    async def look() -> None:
        await rig.step()
        rig.now_s += 7.0
        await rig.steering.show()
        (found,) = status.read(tmp_path)
        assert found.model == msgspec.structs.replace(ROOM, age_s=7.0)

    await rig.while_it_runs(look)


class Large(FakeProvider):
    """Its sandboxes need a terabyte each."""

    footprint = Footprint(memory_bytes=1 << 40, processes=0, files=0)


async def test_more_than_the_machine_holds_is_reduced_while_the_run_goes_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path, provider=Large(record=False))

    async def look() -> None:
        live_limits.write(tmp_path, LiveLimits(live=30, warm=5))
        found = await rig.step()
        assert found.live == 4, "as many as were live: there is room for no other"
        assert rig.pool.most == 0
        told = [e.text for e in rig.events if isinstance(e, Note)]
        assert told[0] == "limits changed: live = 30, warm = 5"
        assert told[1].startswith("30 live episodes and 5 sandboxes ahead of them need about")
        assert told[1].endswith("at most 4 are live, 0 ahead")
        live_limits.write(tmp_path, LiveLimits(live=3))
        assert (await rig.step()).live == 3

    await rig.while_it_runs(look)


async def test_more_live_than_there_are_episodes_needs_no_room(tmp_path: Path) -> None:
    rig = Rig(tmp_path, n=4, provider=Large(record=False))

    async def look() -> None:
        live_limits.write(tmp_path, LiveLimits(live=1000, warm=0))
        assert (await rig.step()).live == 1000
        assert [e.text for e in rig.events if isinstance(e, Note)] == [
            "limits changed: live = 1000, warm = 0"
        ]

    await rig.while_it_runs(look)


# --- files ---


def test_limits_add_up_and_are_over_with_the_session(tmp_path: Path) -> None:
    live_limits.write(tmp_path, LiveLimits(live=8))
    assert live_limits.write(tmp_path, LiveLimits(warm=2)) == LiveLimits(live=8, warm=2)
    live_limits.clear(tmp_path)
    assert live_limits.read(tmp_path) is None


@pytest.mark.parametrize(
    "given", [LiveLimits(live=0), LiveLimits(preparing=-1), LiveLimits(verifying=10**9)]
)
def test_numbers_without_sense_are_refused(tmp_path: Path, given: LiveLimits) -> None:
    with pytest.raises(UsageError, match="expected 1 to 1000000, found"):
        live_limits.write(tmp_path, given)


def test_a_status_of_another_version_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "status").mkdir()
    (tmp_path / "status" / "main.json").write_text('{"at": "yesterday"}')
    assert status.read(tmp_path) == []


# --- the picture ---


def a_status(**changes: object) -> Status:
    fields: dict[str, object] = {
        "at": 1000.0,
        "pid": 7,
        "run": "abc",
        "process": "main",
        "uptime_s": 65.0,
        "planned": 100,
        "finished": 40,
        "dropped": 0,
        "failed_starts": 0,
        "stages": {"queued": 50, "act": 9, "verify": 1},
        "live": 16,
        "preparing": 4,
        "verifying": 4,
        "why": "grows",
        "rates": Rates(episodes=2.0, turns=14.0, sampled_tokens=900.0),
        "host": HostLoad(cpu=0.5, memory_free=0.75),
        **changes,
    }
    return Status(**fields)  # type: ignore[arg-type]


def drawn(*found: Status, now: float = 1001.0, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(picture(found, now, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_picture_has_what_a_person_asks_for() -> None:
    slow = Slow(id="e", task="org/slow", sample=3, stage="act", for_s=64.0)
    model = ModelLoad(
        kv_use=0.42, running=9, waiting=2, preemptions=1, prefix_queries=100, prefix_hits=93
    )
    text = drawn(a_status(model=model, slowest=(slow,), phases={"policy_s": (0.5, 2.0)}))
    for words in (
        "run abc running: 40/100 episodes, 1:05",
        "2.0 episodes/s  14 turns/s  900 tokens/s",
        "bounds: live 16 (grows), preparing 4, verifying 4",
        "model: 9 running, 2 waiting, KV cache 42%, prefix cache 93%, 1 preemptions",
        "pressure cpu 50%",
        "1:04     act    org/slow  3",
    ):
        assert words in text


def test_a_model_server_that_has_answered_nobody_has_no_hits() -> None:
    text = drawn(a_status(model=ModelLoad(kv_use=0.0, running=0, waiting=8, preemptions=0)))
    assert "model: 0 running, 8 waiting, KV cache 0%, 0 preemptions" in text


def test_processes_add_up() -> None:
    text = drawn(a_status(process="1"), a_status(process="2", finished=20))
    assert "running over 2 processes: 60/200 episodes" in text
    assert "4.0 episodes/s" in text
    assert "live 32" in text


def test_a_process_that_says_nothing_is_told() -> None:
    text = drawn(a_status(), now=1000.0 + STALE_S + 1)
    assert "process main (pid 7) has said nothing for 6.0s" in text
    assert "has said nothing" not in drawn(a_status(ended=True), now=5000.0)


def test_a_run_whose_only_process_is_dead_is_not_called_running() -> None:
    assert "run abc silent" in drawn(a_status(), now=1000.0 + STALE_S + 1)
    both = drawn(a_status(process="1"), a_status(process="2", at=900.0))
    assert "run abc running over 2 processes" in both
    assert "process 2 (pid 7) has said nothing for" in both


@pytest.mark.parametrize("width", [24, 40, 60, 72, 200])
def test_a_narrow_terminal_costs_no_number(width: int) -> None:
    slow = Slow(id="e", task="org/slow", sample=3, stage="act", for_s=64.0)
    phases = {"policy_s": (0.512, 112.0), "verify_s": (0.25, 98.0)}
    text = drawn(a_status(phases=phases, slowest=(slow,)), width=width)
    words = text.split()
    for word in ("50", "9", "0.512", "112.0", "0.250", "98.0", "1:04", "org/slow", "16"):
        assert word in words, text
    assert all(len(line) <= width for line in text.splitlines())


def test_it_is_shown_until_it_ends_and_once_where_there_is_no_terminal(tmp_path: Path) -> None:
    status.write(tmp_path, a_status(at=time.time()))
    slept: list[float] = []

    def ends(seconds: float) -> None:
        slept.append(seconds)
        status.write(tmp_path, a_status(at=time.time(), ended=True))

    pipe = Console(file=io.StringIO(), width=100)
    follow(tmp_path, pipe, once=False, sleep=ends)
    assert isinstance(pipe.file, io.StringIO)
    assert pipe.file.getvalue().count("run abc") == 1
    assert slept == []
    terminal = Console(file=io.StringIO(), width=100, force_terminal=True)
    follow(tmp_path, terminal, once=False, sleep=ends)
    assert slept == [1.0]
    assert isinstance(terminal.file, io.StringIO)
    assert "run abc ended" in terminal.file.getvalue()


def test_a_run_folder_that_is_removed_ends_the_picture(tmp_path: Path) -> None:
    status.write(tmp_path, a_status(at=time.time()))
    terminal = Console(file=io.StringIO(), width=100, force_terminal=True)
    follow(tmp_path, terminal, once=False, sleep=lambda _: shutil.rmtree(tmp_path / "status"))
    follow(tmp_path, Console(file=io.StringIO(), width=100), once=True)


def test_an_open_breaker_is_told() -> None:
    assert "sandbox starts are paused" in drawn(a_status(breaker_open=True))
