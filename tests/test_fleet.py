"""A run over several engine processes: real processes, real sandboxes, killed and stopped."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import aiodocker
import msgspec
import pytest

from headrace.configs.models import (
    EngineConfig,
    OracleConfig,
    RunConfig,
    SandboxConfig,
    ScriptedConfig,
    TasksConfig,
)
from headrace.engine import fleet, runner, status
from headrace.engine.events import (
    EpisodeFinished,
    EpisodeStarted,
    Event,
    Note,
    Stopping,
    TurnFinished,
)
from headrace.engine.fleet_process import error_of, heard
from headrace.engine.locks import FolderLock
from headrace.engine.measured import Merged
from headrace.engine.reader import latest_episodes
from headrace.engine.scheduler import Bounds
from headrace.engine.shutdown import Shutdown, Stop
from headrace.engine.wire import Bye, Portion, ToWorker, Trouble, starters_end
from headrace.errors import (
    ConfigError,
    ContractError,
    InfrastructureError,
    RunFolderError,
    StoreError,
)
from headrace.policies.fake import FakePolicy
from headrace.sandbox import leases
from headrace.sandbox.docker import socket_path
from headrace.sandbox.docker_engine import parsed_labels
from headrace.sandbox.docker_sweep import OWNER
from headrace.sandbox.providers import choose
from headrace.tasks.catalog import load
from headrace.types import Episode, Timing

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(fleet.usable_cpus() < 2, reason="needs two processors"),
]
SLOW = ("cd /tmp", "sleep 30", "echo never")
SOON_S = 60


def config(provider: str, policy: object, **more: object) -> RunConfig:
    engine = {"live": 4, "preparing": 4, "verifying": 2, "grace_s": 5.0, "processes": 2}
    engine |= more.pop("engine", {})  # type: ignore[arg-type]  # a dictionary, as all callers give
    return RunConfig.model_validate(
        {
            "policy": policy,
            "sandbox": SandboxConfig.model_validate({"provider": provider}),
            "engine": EngineConfig.model_validate(engine),
            "tasks": TasksConfig(limit=4),
            **more,
        }
    )


def workers(parent: int | None = None) -> list[int]:
    """Engine processes of ours, oldest first."""
    found = []
    for pid in leases.children_of(parent or os.getpid()):
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"headrace.engine.worker" in line:
            found.append(pid)
    return sorted(found)


def sandboxes_of(pids: set[int]) -> list[str]:
    """What these processes have leases for."""
    found = []
    for path in (leases.runtime_folder() / "leases").glob("*.json"):
        try:
            lease = msgspec.json.decode(path.read_bytes(), type=leases.Lease)
        except FileNotFoundError:
            continue
        if lease.owner.pid in pids:
            found.append(lease.what)
    return found


async def containers_of(pids: set[int]) -> list[str]:
    """Containers on the engine that these processes own."""
    async with aiodocker.Docker(url=f"unix://{socket_path()}") as docker:
        found = await docker.containers.list(all=1, filters=f'{{"label":["{OWNER}"]}}')
    owners = [parsed_labels(container)[OWNER] for container in found]
    return [owner for owner in owners if int(owner.partition(":")[0]) in pids]


async def until(condition: Callable[[], object]) -> None:
    """Another process tells nobody."""
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def compared(episode: Episode) -> Episode:
    """All that must be equal however many processes ran it."""
    turns = tuple(
        msgspec.structs.replace(
            turn,
            policy_s=0.0,
            command_s=0.0,
            results=tuple(msgspec.structs.replace(r, duration_s=0.0) for r in turn.results),
        )
        for turn in episode.turns
    )
    verdict = msgspec.structs.replace(episode.verdict, log_tail="", duration_s=0.0)
    return msgspec.structs.replace(
        episode, turns=turns, timing=Timing(), started_at=0.0, verdict=verdict
    )


async def test_two_processes_come_to_what_one_comes_to(provider: str, tmp_path: Path) -> None:
    script = ScriptedConfig(commands=("cd /tmp && X=5", 'echo "$PWD $X"; echo no >&2; false'))
    seen: list[Event] = []
    one = config(provider, script, attempts=3, engine={"processes": 1})
    two = config(provider, script, attempts=3)
    first = await runner.run(one, tmp_path / "one")
    second = await runner.run(two, tmp_path / "two", on_event=seen.append)
    found = {
        name: {e.id: compared(e) for e in latest_episodes(tmp_path / name)}
        for name in ("one", "two")
    }
    assert found["one"] == found["two"]
    assert (second.episodes, second.owed, second.turns) == (12, 0, first.turns)
    assert second.sandbox.started == 12
    kinds = Counter(type(event).__name__ for event in seen)
    assert (kinds["EpisodeStarted"], kinds["EpisodeFinished"]) == (12, 12)
    assert kinds["TurnFinished"] == sum(isinstance(e, TurnFinished) for e in seen) == second.turns
    shards = sorted(path.name for path in (tmp_path / "two" / "shards").glob("*.hrs"))
    assert {name[6:] for name in shards} == {"-1.hrs", "-2.hrs"}
    assert not list((tmp_path / "two" / "logs").glob("process-*"))


async def test_the_status_of_a_run_is_that_of_all_its_processes(
    only_namespace: str, tmp_path: Path
) -> None:
    summary = await runner.run(config(only_namespace, OracleConfig(), attempts=2), tmp_path / "run")
    (shown,) = status.read(tmp_path / "run")
    assert (shown.process, shown.processes, shown.ended) == ("main", 2, True)
    assert (shown.finished, shown.planned) == (8, 8)
    assert shown.totals.turns == summary.turns == 8
    assert sum(shown.totals.outcomes.values()) == shown.totals.starts == 8
    assert summary.passed == 8
    assert summary.engine.loop_lag_p99_s is not None
    assert {"queue", "start", "command", "store"} <= summary.engine.phases.keys()


async def test_a_run_is_resumed_with_another_number_of_processes(
    only_namespace: str, tmp_path: Path
) -> None:
    for n, attempts in ((2, 1), (1, 2), (2, 3)):
        more = config(only_namespace, OracleConfig(), attempts=attempts, engine={"processes": n})
        summary = await runner.run(more, tmp_path / "run")
        assert (summary.episodes, summary.owed) == (4 * attempts, 0)
    numbers = [path.name[:6] for path in sorted((tmp_path / "run" / "shards").glob("*.hrs"))]
    assert numbers == [f"{n:06}" for n in range(len(numbers))]


async def test_a_group_is_complete_without_its_stragglers_in_every_process(
    only_namespace: str, tmp_path: Path
) -> None:
    few = config(
        only_namespace,
        OracleConfig(),
        attempts=4,
        tasks=TasksConfig(limit=2),
        engine={"min_group": 2, "live": 2},
    )
    summary = await runner.run(few, tmp_path / "run")
    assert (summary.owed, summary.episodes + summary.dropped) == (0, 8)
    assert summary.dropped > 0


class Watched:
    """A run in a task of its own, and what it told."""

    def __init__(self, config: RunConfig, out: Path) -> None:
        self.events: list[Event] = []
        self.pids: set[int] = set()
        self._config = config
        self._out = out

    async def run(self) -> object:
        try:
            return await runner.run(self._config, self._out, on_event=self.events.append)
        except (runner.Interrupted, InfrastructureError) as error:
            return error

    def started(self) -> int:
        self.pids.update(workers())
        return sum(isinstance(event, EpisodeStarted) for event in self.events)

    def finished(self) -> int:
        return sum(isinstance(event, EpisodeFinished) for event in self.events)

    @property
    def notes(self) -> str:
        return "\n".join(event.text for event in self.events if isinstance(event, Note))


async def test_what_a_killed_process_had_is_run_by_the_others(
    provider: str, tmp_path: Path
) -> None:
    script = ScriptedConfig(commands=("sleep 2", "echo done"))
    watched = Watched(config(provider, script, attempts=3), tmp_path / "run")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(watched.run())
        await until(lambda: watched.started() >= 4)
        victim = workers()[0]
        os.kill(victim, signal.SIGKILL)
    summary = running.result()
    assert not isinstance(summary, Exception)
    assert (summary.episodes, summary.owed, summary.infra_failures) == (12, 0, 0)  # type: ignore[attr-defined]
    assert "has ended (signal 9)" in watched.notes
    assert "go to the others" in watched.notes
    tries = Counter(e.tries for e in latest_episodes(tmp_path / "run"))
    assert tries[2] >= 1
    assert tries[1] + tries[2] == 12
    assert sandboxes_of(watched.pids) == []
    if provider == "docker":
        assert await containers_of(watched.pids) == []


async def test_when_every_process_is_killed_the_rest_is_owed_and_run_the_next_time(
    only_namespace: str, tmp_path: Path
) -> None:
    slow = config(only_namespace, ScriptedConfig(commands=("sleep 3",)), attempts=3)
    watched = Watched(slow, tmp_path / "run")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(watched.run())
        await until(lambda: watched.finished() >= 1)
        for pid in workers():
            os.kill(pid, signal.SIGKILL)
    error = running.result()
    assert isinstance(error, InfrastructureError)
    assert "every engine process has ended" in str(error)
    assert sandboxes_of(watched.pids) == []
    kept = {e.id for e in latest_episodes(tmp_path / "run")}
    assert len(kept) >= watched.finished() >= 1
    again = await runner.run(slow, tmp_path / "run")
    assert (again.episodes, again.owed) == (12, 0)


async def test_a_process_that_is_asked_to_end_closes_its_sandboxes_and_the_others_go_on(
    only_namespace: str, tmp_path: Path
) -> None:
    script = ScriptedConfig(commands=("sleep 2", "echo done"))
    watched = Watched(config(only_namespace, script, attempts=2), tmp_path / "run")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(watched.run())
        await until(lambda: watched.started() >= 4)
        os.kill(workers()[0], signal.SIGTERM)
    summary = running.result()
    assert (summary.episodes, summary.owed) == (8, 0)  # type: ignore[attr-defined]
    assert "has ended (exit code 0)" in watched.notes
    assert "swept" not in watched.notes


async def test_one_ctrl_c_ends_all_processes_in_order_and_the_run_goes_on_later(
    only_namespace: str, tmp_path: Path
) -> None:
    slow = config(only_namespace, ScriptedConfig(commands=SLOW), engine={"grace_s": 0.1})
    watched = Watched(slow, tmp_path / "run")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(watched.run())
        await until(lambda: watched.started() >= 4)
        os.kill(os.getpid(), signal.SIGINT)
    stopped = running.result()
    assert isinstance(stopped, runner.Interrupted)
    assert (stopped.reason, stopped.summary.owed) == ("Ctrl-C", 4)
    modes = [event.mode for event in watched.events if isinstance(event, Stopping)]
    assert modes == ["finishing"]
    assert (workers(), sandboxes_of(watched.pids)) == ([], [])


_RUN = """
import sys
import uvloop
from pathlib import Path
from headrace.configs.models import RunConfig
from headrace.engine import runner

config = RunConfig.model_validate_json(sys.argv[1])
uvloop.run(runner.run(config, Path(sys.argv[2]), on_event=lambda event: print(event, flush=True)))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_no_process_and_no_sandbox_outlives_the_run_that_started_them(
    only_namespace: str, tmp_path: Path, how: signal.Signals
) -> None:
    slow = config(only_namespace, ScriptedConfig(commands=SLOW), engine={"grace_s": 0.1})
    main = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _RUN, slow.model_dump_json(), str(tmp_path / "run")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert main.stdout is not None
    started = 0
    async with asyncio.timeout(SOON_S):
        while started < 4:
            started += b"EpisodeStarted" in await main.stdout.readline()
    pids = set(workers(main.pid))
    assert len(pids) == 2
    main.send_signal(how)
    await main.communicate()
    await until(lambda: not any(leases.owner_of(pid) for pid in pids))
    assert sandboxes_of(pids) == []


async def test_nobody_goes_on_with_a_run_before_the_processes_of_a_killed_one_have_ended(
    only_namespace: str, tmp_path: Path
) -> None:
    """They still write: what the next session took for torn ends would be cut under them."""
    slow = config(only_namespace, ScriptedConfig(commands=SLOW))
    main = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _RUN, slow.model_dump_json(), str(tmp_path / "run")),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    await until(lambda: len(workers(main.pid)) == 2)
    pids = workers(main.pid)
    await until(lambda: sandboxes_of(set(pids)))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    main.kill()
    await main.wait()
    try:
        with pytest.raises(RunFolderError, match=f"in use by processes that process {main.pid} on"):
            await runner.run(slow, tmp_path / "run")
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    await until(lambda: not any(leases.owner_of(pid) for pid in pids))
    FolderLock(tmp_path / "run" / "run.lock").close()
    FolderLock(tmp_path / "run" / "shards" / "lock").close()


# --- bad input and bad luck -----------------------------------------------------------------


async def test_more_processes_than_processors_are_reduced_with_a_sentence(
    only_namespace: str, tmp_path: Path
) -> None:
    many = config(only_namespace, OracleConfig(), engine={"processes": 4096})
    watched = Watched(many, tmp_path / "run")
    summary = await watched.run()
    assert summary.owed == 0  # type: ignore[attr-defined]
    assert f"this machine has {fleet.usable_cpus()} processors" in watched.notes


ONLY_ONE = "no more than 1 can share the work, for the attempts at a task stay together"


@pytest.mark.parametrize(
    ("asked", "cpus", "busy", "number", "said"),
    [
        (4, 2, 9, 2, "this machine has 2 processors for us, so 2 are started"),
        (2, 8, 1, 1, f"{ONLY_ONE}, so 1 is started"),
        (3, 8, 9, 3, None),
        (2, 2, 0, 1, None),
    ],
)
def test_there_are_no_more_processes_than_processors_or_groups(
    asked: int, cpus: int, busy: int, number: int, said: str | None
) -> None:
    found, note = fleet.processes(asked, cpus=cpus, busy=busy)
    assert found == number
    assert note == (said and f"engine.processes = {asked}: {said}")


async def test_a_policy_of_ones_own_is_refused_by_several_processes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.processes = 2.*one's own"):
        await runner.run(config("auto", OracleConfig()), tmp_path, policy=FakePolicy())


@pytest.mark.parametrize("value", [0, -1, "many", 1.5])
def test_a_number_of_processes_without_sense_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="processes"):
        EngineConfig.model_validate({"processes": value})


@pytest.mark.parametrize(
    ("name", "message", "kind", "says"),
    [
        ("StoreError", "disk full", StoreError, "^disk full$"),
        ("bug", "Traceback: x", ContractError, "process 2.*\nTraceback"),
        ("boundary", "y", ContractError, "process 2"),
    ],
)
def test_an_error_of_a_process_is_the_same_error_here(
    name: str, message: str, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        raise error_of(2, Trouble(kind=name, message=message))


def test_every_bundled_task_arrives_as_it_was_sent() -> None:
    planned = runner.plan_episodes(
        config("namespace", OracleConfig()), load("first-steps").tasks, "v1"
    )
    portion = Portion(episodes=tuple(planned), tries={"a": 1})
    data = msgspec.msgpack.encode(portion)
    assert msgspec.msgpack.decode(data, type=ToWorker) == portion


async def driven(
    provider: str,
    out: Path,
    *,
    policy: object,
    shutdown: Shutdown | None = None,
    **more: object,
) -> tuple[fleet.Fleet, list[Event]]:
    """A fleet of two on a folder of its own, driven to its end."""
    asked = config(provider, policy)
    (out / "logs").mkdir(parents=True)
    events: list[Event] = []
    async with await choose(asked.sandbox, run_id="fleet") as chosen:
        tasks = load(asked.tasks.source, limit=4).tasks
        for task in tasks:
            await chosen.provider.prepare(task.environment)
        made = fleet.Fleet(
            runner.plan_episodes(asked, tasks, "v1"),
            asked,
            out,
            Bounds(live=4, preparing=4, verifying=2, tries=2),
            number=2,
            label="fleet",
            warm=0,
            opening=1,
            provider=chosen.provider,
            meters=Merged(),
            shutdown=shutdown or Shutdown(),
            on_event=events.append,
            **more,  # type: ignore[arg-type]  # `command` and `silent_s`
        )
        await made.drive()
    return made, events


async def test_processes_that_never_speak_leave_their_plan_owed(
    only_namespace: str, tmp_path: Path
) -> None:
    line = (sys.executable, "-c", "print('no such thing')")
    made, events = await driven(only_namespace, tmp_path, policy=OracleConfig(), command=line)
    assert "every engine process has ended: 4 episodes" in str(made.error)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("its log ends: no such thing" in note for note in notes)
    assert made.snapshot().stages == {"cancelled": 4}


_BROKEN = """
from contextlib import asynccontextmanager
from headrace.engine.worker import main

@asynccontextmanager
async def opened(begin, config):
    raise ZeroDivisionError("a bug")
    yield

main(opened)
"""


async def test_a_bug_in_a_process_ends_the_run_with_its_traceback(
    only_namespace: str, tmp_path: Path
) -> None:
    with pytest.raises(ContractError, match="ZeroDivisionError: a bug"):
        await driven(
            only_namespace,
            tmp_path,
            policy=OracleConfig(),
            command=(sys.executable, "-c", _BROKEN),
        )
    assert workers() == []


async def test_a_process_that_hangs_is_ended_and_the_others_go_on(
    only_namespace: str, tmp_path: Path
) -> None:
    async def stop_one() -> None:
        await until(lambda: len(workers()) == 2)
        victim = workers()[0]
        await until(lambda: sandboxes_of({victim}))
        os.kill(victim, signal.SIGSTOP)

    async with asyncio.TaskGroup() as group:
        driving = group.create_task(
            driven(
                only_namespace,
                tmp_path,
                policy=ScriptedConfig(commands=("sleep 3", "echo done")),
                silent_s=12.0,
            )
        )
        group.create_task(stop_one())
    made, events = driving.result()
    assert (made.error, made.finished) == (None, 4)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("said nothing for 12 s" in note for note in notes)


async def test_a_stop_that_is_asked_for_while_processes_start_ends_them(
    only_namespace: str, tmp_path: Path
) -> None:
    """None of them had a line yet to hear it over."""
    shutdown = Shutdown()

    async def ask() -> None:
        while shutdown.listener is None:  # noqa: ASYNC110 -- asked each time round the loop
            await asyncio.sleep(0)
        shutdown.request(Stop.FINISH, "early")
        assert workers() == []

    async with asyncio.timeout(SOON_S), asyncio.TaskGroup() as group:
        group.create_task(ask())
        driving = group.create_task(
            driven(
                only_namespace,
                tmp_path,
                policy=ScriptedConfig(commands=SLOW),
                shutdown=shutdown,
            )
        )
    made, events = driving.result()
    assert (made.error, made.finished) == (None, 0)
    assert made.snapshot().stages == {"cancelled": 4}
    assert not [event for event in events if isinstance(event, EpisodeStarted)]


async def test_what_a_process_said_while_its_starter_stood_still_is_heard() -> None:
    """After Ctrl-Z and a `fg` some minutes later, though a message was cut in its middle."""
    ours, its = socket.socketpair()
    line, said = await starters_end(ours), msgspec.msgpack.encode(Bye())
    data = len(said).to_bytes(4, "little") + said
    with its:
        async with asyncio.TaskGroup() as group:
            hearing = group.create_task(heard(line, 0.2))
            its.sendall(data[:4])
            for _ in range(5):
                await asyncio.sleep(0)
            still_until = time.monotonic() + 0.4
            while time.monotonic() < still_until:
                pass
            its.sendall(data[4:])
        assert hearing.result() == Bye()
        line.close()


async def test_a_process_that_says_nothing_is_given_up() -> None:
    ours, its = socket.socketpair()
    line = await starters_end(ours)
    with its, pytest.raises(TimeoutError):
        await heard(line, 0.01)
    line.close()
