"""`headrace images` as a user meets it: the real entry point in a process of its own."""

import json
import os
import signal
import subprocess
import sysconfig
from pathlib import Path

import pytest

HEADRACE = Path(sysconfig.get_path("scripts")) / "headrace"
ENV = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
HEAD = "FROM headrace/base:bookworm\nRUN true\nRUN echo head\n"


def headrace(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [HEADRACE, *arguments], capture_output=True, text=True, timeout=50, env=ENV
    )


def write_task(folder: Path, dockerfile: str) -> None:
    for name in ("environment", "tests"):
        (folder / name).mkdir(parents=True)
    (folder / "task.toml").write_text('version = "1.0"\n')
    (folder / "instruction.md").write_text("Do nothing.\n")
    (folder / "environment" / "Dockerfile").write_text(dockerfile)
    (folder / "tests" / "test.sh").write_text("#!/bin/sh\necho 1 > /logs/verifier/reward.txt\n")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    write_task(tmp_path / "tasks" / "one", HEAD + "RUN echo one\n")
    write_task(tmp_path / "tasks" / "two", HEAD + "RUN echo two\n")
    write_task(tmp_path / "tasks" / "again", HEAD + "RUN echo two\n")
    write_task(tmp_path / "tasks" / "stages", "FROM elsewhere:1 AS a\nFROM a\nRUN echo\n")
    return tmp_path / "tasks"


def test_the_plan_says_what_is_shared_and_what_cannot_be_built(tasks: Path) -> None:
    done = headrace("images", "plan", tasks, "--provider", "namespace")
    assert done.returncode == 0, done.stderr
    assert "4 tasks need 3 images, 1 of which cannot be built on namespace" in done.stdout
    assert "5 layers to build, where one build per task makes 10: 2.0 times fewer" in done.stdout
    assert "unknown_base" in done.stdout


def test_the_plan_is_also_json(tasks: Path) -> None:
    done = headrace("images", "plan", tasks, "--provider", "namespace", "--json")
    plan = json.loads(done.stdout)
    assert (plan["provider"], plan["layers_naive"], plan["layers"]) == ("namespace", 10, 5)
    assert sorted(sorted(image["tasks"]) for image in plan["images"]) == [
        ["again", "two"],
        ["one"],
        ["stages"],
    ]
    (stopped,) = [image for image in plan["images"] if image["findings"]]
    assert stopped["findings"][0]["kind"] == "unknown_base"


def test_building_makes_what_can_be_made_and_ends_with_3_if_any_failed(
    provider: str, tmp_path: Path
) -> None:
    write_task(tmp_path / "tasks" / "fine", "FROM headrace/base:bookworm\n")
    write_task(tmp_path / "tasks" / "bad", "FROM headrace/base:bookworm\nRUN echo seen; exit 9\n")
    done = headrace("images", "build", tmp_path / "tasks", "--provider", provider)
    assert done.returncode == 3, done.stderr
    assert "1 images ready, 1 failed" in done.stdout
    assert "Error: no image for bad" in done.stderr
    assert "seen" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_stops_a_build_at_once(provider: str, tmp_path: Path) -> None:
    write_task(
        tmp_path / "tasks" / "slow", f"FROM headrace/base:bookworm\nRUN sleep 600.{os.getpid()}\n"
    )
    command = [HEADRACE, "images", "build", tmp_path / "tasks", "--provider", provider]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENV) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "RUN sleep" in line or "building" in line)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=40)[1]
    assert process.returncode == 130
    assert "stopped; what is built stays" in said


def test_pruning_wants_a_path_or_all_and_not_both(tmp_path: Path) -> None:
    for arguments in ([], [str(tmp_path), "--all"]):
        done = headrace("images", "prune", *arguments)
        assert done.returncode == 2
        assert "expected PATH, whose images stay, or --all" in done.stderr


def test_a_dry_run_says_what_would_go(provider: str) -> None:
    done = headrace("images", "prune", "first-steps", "--provider", provider, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would be removed; " in done.stdout.splitlines()[-1]


def test_a_folder_that_is_not_there_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    for command in ("plan", "build", "prune"):
        done = headrace("images", command, tmp_path / "nowhere", "--provider", "namespace")
        assert done.returncode == 2
        assert "nowhere" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["plan", "build", "prune"])
def test_tasks_that_can_all_not_be_read_are_not_taken_for_none(
    command: str, tmp_path: Path
) -> None:
    write_task(tmp_path / "tasks" / "one", "FROM headrace/base:bookworm\nCOPY nowhere /x\n")
    done = headrace("images", command, tmp_path / "tasks", "--provider", "namespace")
    assert (done.returncode, done.stdout) == (2, "")
    assert "COPY source 'nowhere' is not in" in done.stderr
    assert "expected at least one task that can be read, found none" in done.stderr


def test_a_plan_without_the_engine_says_what_it_could_not_look_up(tasks: Path) -> None:
    done = subprocess.run(
        [HEADRACE, "images", "plan", tasks, "--provider", "docker"],
        capture_output=True, text=True, timeout=50, env={**ENV, "DOCKER_HOST": "unix:///nowhere"},
    )  # fmt: skip
    assert done.returncode == 0
    assert "note: what is there already cannot be looked up: no Docker engine" in done.stderr
