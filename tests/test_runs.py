"""Whole runs on real sandboxes: the pack, resuming, stopping, and what is left behind."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import aiodocker
import pytest

from headrace.configs.models import (
    EngineConfig,
    LimitsConfig,
    NoopConfig,
    OracleConfig,
    ReplayConfig,
    RunConfig,
    SandboxConfig,
    ScriptedConfig,
    TasksConfig,
)
from headrace.engine import runner
from headrace.engine.events import EpisodeFinished, Event, RunStarted, TurnFinished
from headrace.engine.reader import latest_episodes
from headrace.errors import RunFolderError, TaskError
from headrace.sandbox.docker import socket_path
from headrace.sandbox.docker_sweep import OWNER, owner
from headrace.sandbox.leases import runtime_folder
from headrace.types import Episode, StopReason, VerdictFault

EASY = ("first-steps/*",)


def config(provider: str, policy: object, **changes: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "policy": policy,
            "sandbox": SandboxConfig.model_validate({"provider": provider}),
            "engine": EngineConfig(live=6, preparing=4, verifying=3, grace_s=5.0),
            **changes,
        }
    )


def episodes(run: Path) -> list[Episode]:
    return list(latest_episodes(run))


@pytest.mark.timeout(300)
async def test_the_oracle_solves_every_task_of_the_pack(provider: str, tmp_path: Path) -> None:
    summary = await runner.run(config(provider, OracleConfig()), tmp_path / "run")
    failed = [
        (e.task, e.verdict.reason, e.failure, e.verdict.log_tail)
        for e in episodes(tmp_path / "run")
        if not e.verdict.passed
    ]
    assert failed == []
    assert (summary.tasks, summary.passed, summary.owed) == (20, 20, 0)
    assert summary.pass_at_k == {"1": 1.0}


@pytest.mark.timeout(300)
async def test_doing_nothing_solves_no_task_of_the_pack(provider: str, tmp_path: Path) -> None:
    summary = await runner.run(config(provider, NoopConfig()), tmp_path / "run")
    assert (summary.tasks, summary.failed, summary.passed) == (20, 20, 0)
    assert summary.infra_failures == 0
    assert {e.verdict.reward for e in episodes(tmp_path / "run")} <= {0.0, None}


async def test_running_a_folder_again_does_only_what_is_owed(provider: str, tmp_path: Path) -> None:
    seen: list[Event] = []
    few = config(provider, NoopConfig(), tasks=TasksConfig(limit=2), attempts=2)
    first = await runner.run(few, tmp_path / "run")
    again = await runner.run(few, tmp_path / "run", on_event=seen.append)
    assert first.episodes == again.episodes == 4
    started = next(e for e in seen if isinstance(e, RunStarted))
    assert (started.planned, started.skipped) == (4, 4)
    assert not any(isinstance(e, EpisodeFinished) for e in seen)


async def test_a_folder_of_another_configuration_is_refused_with_the_difference(
    provider: str, tmp_path: Path
) -> None:
    one = config(provider, NoopConfig(), tasks=TasksConfig(limit=1))
    await runner.run(one, tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"limits\.max_turns.*20.*7"):
        await runner.run(
            one.model_copy(update={"limits": LimitsConfig(max_turns=7)}), tmp_path / "run"
        )


async def test_scripted_commands_share_one_shell_and_are_written_down(
    provider: str, tmp_path: Path
) -> None:
    script = ScriptedConfig(commands=("cd /tmp && X=5", 'echo "$PWD $X"; echo no >&2; false'))
    await runner.run(config(provider, script, tasks=TasksConfig(limit=1)), tmp_path / "run")
    (episode,) = episodes(tmp_path / "run")
    last = episode.turns[1].results[0]
    assert (last.stdout, last.stderr, last.exit_code) == (b"/tmp 5\n", b"no\n", 1)
    assert episode.stop_reason is StopReason.DONE
    assert episode.provider == provider


async def test_an_agent_that_runs_out_of_time_is_still_verified(
    provider: str, tmp_path: Path
) -> None:
    slow = config(
        provider,
        ScriptedConfig(commands=("sleep 100", "echo never")),
        tasks=TasksConfig(limit=1),
        limits=LimitsConfig(agent_timeout_s=1.0),
    )
    await runner.run(slow, tmp_path / "run")
    (episode,) = episodes(tmp_path / "run")
    assert episode.stop_reason is StopReason.AGENT_TIMEOUT
    assert episode.turns[0].results[0].timed_out
    assert episode.verdict.fault is not VerdictFault.INFRASTRUCTURE
    assert episode.verdict.reward == 0.0


async def test_a_run_replayed_comes_to_the_same_verdicts(provider: str, tmp_path: Path) -> None:
    tasks = TasksConfig(limit=3)
    await runner.run(config(provider, OracleConfig(), tasks=tasks), tmp_path / "a")
    replay = ReplayConfig(run=str(tmp_path / "a"))
    await runner.run(config(provider, replay, tasks=tasks), tmp_path / "b")
    rewards = [{e.task: e.verdict.reward for e in episodes(tmp_path / name)} for name in "ab"]
    assert rewards[0] == rewards[1] == dict.fromkeys(rewards[0], 1.0)


async def test_replaying_what_is_no_run_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not a run"):
        await runner.run(RunConfig(policy=ReplayConfig(run="/nope")), tmp_path / "run")


async def test_no_readable_task_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    with pytest.raises(TaskError, match="tasks"):
        await runner.run(
            RunConfig(policy=NoopConfig(), tasks=TasksConfig(source=str(tmp_path / "tasks"))),
            tmp_path / "run",
        )


def traces(temp: Path) -> set[str]:
    """What runs could leave on the host: mounts, control groups, processes, temporary files."""
    found = set(Path("/proc/self/mounts").read_text().splitlines())
    found |= {str(p) for p in Path("/sys/fs/cgroup").glob("**/*headrace*")}
    found |= {str(p) for p in temp.glob("headrace*")}
    for task in Path("/proc/self/task").glob("*/children"):
        found |= {f"process {pid}" for pid in task.read_text().split()}
    return found


async def containers() -> set[str]:
    """Containers of this process on the engine, by id."""
    async with aiodocker.Docker(url=f"unix://{socket_path()}") as engine:
        ours = {"label": [f"{OWNER}={owner()}"]}
        listed = await engine.containers.list(all=True, filters=ours)
        return {container.id for container in listed}


@pytest.mark.timeout(120)
async def test_three_runs_in_a_row_leave_nothing_behind(provider: str, tmp_path: Path) -> None:
    few = config(provider, OracleConfig(), tasks=TasksConfig(limit=3))
    await runner.run(few, tmp_path / "first")  # builds what is kept on purpose: images
    before = traces(Path(tempfile.gettempdir()))
    for i in range(3):
        summary = await runner.run(few, tmp_path / f"run{i}")
        assert summary.passed == 3
    assert traces(Path(tempfile.gettempdir())) <= before
    if provider == "docker":
        assert await containers() == set()


def cli(run: Path, provider: str, *settings: str) -> list[str]:
    """A run of the pack by the installed command, ten scripted seconds an episode."""
    command = [str(Path(sys.executable).parent / "headrace"), "eval", "--tasks", "first-steps"]
    command += ["--policy", "scripted", "--out", str(run)]
    for setting in (f"sandbox.provider={provider}", *settings):
        command += ["--set", setting]
    return command


def wait_for_line(process: subprocess.Popen[str], start: str) -> list[str]:
    """Read the progress up to the first line that starts so; returns what was read."""
    lines: list[str] = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if line.startswith(start):
            return lines
    raise AssertionError(f"no line {start!r} in:\n{''.join(lines)}")


@pytest.mark.timeout(180)
def test_the_first_ctrl_c_keeps_what_is_done_and_the_next_run_does_the_rest(
    provider: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = cli(run, provider, 'policy.commands=["sleep 1", "sleep 1"]', "engine.live=3")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for_line(process, "fail")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in out + err
    done = len(episodes(run))
    assert 0 < done < 20
    assert all(e.verdict.fault is None for e in episodes(run))
    rest = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert rest.returncode == 0, rest.stderr
    assert len(episodes(run)) == 20


@pytest.mark.timeout(120)
def test_a_second_ctrl_c_cancels_at_once_and_leaves_no_record_of_what_was_cut(
    provider: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = cli(
        run, provider, 'policy.commands=["sleep 6", "sleep 600"]', "limits.command_timeout_s=600"
    )
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for_line(process, "0/20")
        process.send_signal(signal.SIGINT)
        wait_for_line(process, "Ctrl-C")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in out + err
    assert episodes(run) == []
    assert "20 episodes owed" in out


async def test_what_a_run_holds_is_named_after_its_folder(
    unavailable: dict[str, str | None], tmp_path: Path
) -> None:
    if unavailable["namespace"] is not None:
        pytest.skip(f"namespace: {unavailable['namespace']}")
    held: list[str] = []

    def look(event: Event) -> None:
        if isinstance(event, TurnFinished):
            held.extend(path.name for path in (runtime_folder() / "leases").iterdir())

    one = config("namespace", NoopConfig(), tasks=TasksConfig(limit=1))
    await runner.run(one, tmp_path / "my run", on_event=look)
    assert [name for name in held if name.startswith("headrace-my-run-")] != []
