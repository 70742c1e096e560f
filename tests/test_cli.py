"""The command line as a user meets it: the real entry point in a process of its own."""

import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from headrace.cli.app import EXIT_CODES, app
from headrace.cli.doctor import judge_providers
from headrace.cli.host import Finding, disk, memory, open_files, pids, python
from headrace.configs.load import load, presets
from headrace.engine.run_folder import RunFolder
from headrace.engine.store import Store
from headrace.types import Command, CommandResult, Episode, StopReason, Turn, Verdict

ROOT = Path(__file__).resolve().parent.parent
HEADRACE = Path(sysconfig.get_path("scripts")) / "headrace"
ENV = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}


def headrace(*arguments: str | Path, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [HEADRACE, *arguments], capture_output=True, text=True, timeout=50, cwd=cwd, env=ENV
    )


def refused(*arguments: str | Path, cwd: Path = ROOT) -> str:
    """The message of a user's mistake, checked to be only a message."""
    done = headrace(*arguments, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout == ""
    return done.stderr


# --- help -----------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, ...]]:
    def walk(path: tuple[str, ...], command: Any) -> Iterator[tuple[str, ...]]:
        yield path
        for name, child in getattr(command, "commands", {}).items():
            yield from walk((*path, name), child)

    yield from walk((), typer.main.get_command(app))


def test_the_commands_are_those_of_the_manual() -> None:
    assert set(commands()) == {
        (), ("run",), ("eval",), ("resume",), ("report",), ("compare",), ("show",), ("shards",),
        ("shards", "cat"), ("sweep",), ("export",), ("import",),
        ("doctor",), ("tasks",), ("tasks", "list"), ("tasks", "check"),
        ("images",), ("images", "plan"), ("images", "build"), ("images", "prune"),
        ("top",), ("limits",), ("trace",), ("pairs",),
    }  # fmt: skip


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_has_help_that_fits_80_columns(path: tuple[str, ...]) -> None:
    done = headrace(*path, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: {' '.join(['headrace', *path])} ")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stderr == ""


def test_every_parameter_has_a_help_text() -> None:
    def params(command: Any) -> Iterator[Any]:
        yield from command.params
        for child in getattr(command, "commands", {}).values():
            yield from params(child)

    assert [p.name for p in params(typer.main.get_command(app)) if not p.help] == []


def test_the_version_is_printed() -> None:
    done = headrace("--version")
    assert (done.returncode, done.stdout) == (0, "headrace 0.1.0\n")


def test_help_imports_neither_engine_nor_clients() -> None:
    code = (
        "import sys; sys.argv = ['headrace', 'run', '--help']\n"
        "from headrace.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "headrace.cli.app" in loaded
    heavy = {"msgspec", "uvloop", "aiohttp", "httptools", "aiodocker", "zstandard", "renderers"}
    assert loaded & (heavy | {"asyncio", "torch", "headrace.engine", "headrace.configs"}) == set()


def test_the_help_names_every_preset() -> None:
    assert ", ".join(presets()) in " ".join(headrace("run", "--help").stdout.split())


@pytest.mark.parametrize("script", ["config_reference.py", "cli_reference.py"])
def test_the_reference_page_is_current(script: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_reference_page_has_every_exit_code() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    assert all(f"| {code} | {text} |" in page for code, text in EXIT_CODES.items())


# --- a user's mistakes ----------------------------------------------------------------------


def test_an_unknown_command_is_told_the_nearest() -> None:
    assert "Did you mean 'run'?" in refused("runn")


def test_a_missing_option_is_named() -> None:
    assert "--out" in refused("run", "oracle")


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    text = refused("run", "quickstrat", "--out", tmp_path / "r")
    assert "Did you mean the preset `quickstart`?" in text
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("limits.max_turn=3", "did you mean `limits.max_turns`?"),
        ("limits.max_turns=x", 'expected a whole number above 0, found "x" (a string)'),
        ("policy.type=vlm", 'did you mean "vllm"?'),
        ("limits", "expected dotted.key=value"),
    ],
)
def test_a_wrong_setting_is_refused(tmp_path: Path, setting: str, expected: str) -> None:
    text = refused("run", "oracle", "--out", tmp_path / "r", "--set", setting)
    assert text.startswith(f"Error: --set {setting}: ")
    assert expected in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("attempts = = 1", "this is not TOML: Invalid value (at line 1"),
        ("[limits]\nmax_turn = 3", "x.toml:2: limits.max_turn: unknown key"),
        ('seed = "a"\nattempts = 0', "2 problems in the configuration:"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    assert expected in refused("run", "x.toml", "--out", "r", cwd=tmp_path)


def test_an_unknown_policy_names_the_option(tmp_path: Path) -> None:
    text = refused("eval", "--tasks", "first-steps", "--policy", "orakel", cwd=tmp_path)
    assert text.startswith("Error: --policy orakel: policy.type: expected")
    assert 'did you mean "oracle"?' in text
    assert list(tmp_path.iterdir()) == []


def test_attempts_that_make_no_sense_name_the_option(tmp_path: Path) -> None:
    text = refused(
        "eval", "--tasks", "first-steps", "--policy", "noop", "--attempts", "0", cwd=tmp_path
    )
    assert "--attempts 0: attempts: expected a whole number above 0, found 0" in text


TASKS_COMMANDS = [
    ("tasks", "check", "{}"),
    ("tasks", "list", "{}"),
    ("eval", "--policy", "noop", "--tasks", "{}"),
]


@pytest.mark.parametrize("command", TASKS_COMMANDS, ids=" ".join)
def test_a_path_that_is_no_folder_is_refused(tmp_path: Path, command: tuple[str, ...]) -> None:
    text = refused(*(part.format(tmp_path / "nothing") for part in command), cwd=tmp_path)
    assert "expected a folder of tasks" in text
    assert "first-steps" in text


@pytest.mark.parametrize("command", TASKS_COMMANDS, ids=" ".join)
def test_a_folder_without_task_toml_is_refused(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "t").mkdir()
    text = refused(*(part.format(tmp_path / "t") for part in command), cwd=tmp_path)
    assert "expected task.toml" in text


def _task(folder: Path) -> Path:
    """A sound task folder."""
    (folder / "environment").mkdir(parents=True)
    (folder / "tests").mkdir()
    (folder / "environment" / "Dockerfile").write_text("FROM headrace/base:bookworm\n")
    (folder / "tests" / "test.sh").write_text("#!/bin/bash\necho 1 > /logs/verifier/reward.txt\n")
    (folder / "instruction.md").write_text("Do it.\n")
    (folder / "task.toml").write_text('version = "1.0"\n[agent]\ntimeout_sec = 60.0\n')
    return folder


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("task.toml", "version = = 1", "task.toml"),
        ("instruction.md", "  \n", "instruction.md"),
        ("environment/Dockerfile", None, "Dockerfile"),
        ("tests/test.sh", None, "test.sh"),
    ],
)
@pytest.mark.parametrize("command", ["check", "eval"])
def test_a_broken_task_is_refused(
    tmp_path: Path, command: str, file: str, text: str | None, expected: str
) -> None:
    task = _task(tmp_path / "one")
    if text is None:
        (task / file).unlink()
    else:
        (task / file).write_text(text)
    arguments = ["tasks", "check", str(task)]
    if command == "eval":
        arguments = ["eval", "--policy", "noop", "--tasks", str(task)]
    done = headrace(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    for place in ("first", "last"):
        words = ["run", "nothing.toml", "--out", "r"]
        words = ["--debug", *words] if place == "first" else [*words, "--debug"]
        done = headrace(*words, cwd=tmp_path)
        assert "Traceback" in done.stderr
        assert "ConfigError: nothing.toml: no such file" in done.stderr
        assert done.returncode == 2


@pytest.mark.parametrize("command", [("show",), ("shards", "cat")], ids=" ".join)
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, command: tuple[str, ...]) -> None:
    assert "is not a run" in refused(*command, tmp_path)


# --- reading a run --------------------------------------------------------------------------


def _episode(number: int, output: bytes = b"a\n") -> Episode:
    result = CommandResult(exit_code=0, stdout=output)
    turn = Turn(text="I look.", commands=(Command(text="ls -l"),), results=(result,))
    return Episode(
        id=f"{number:x}abc{number:04}", task="one", task_digest="d" * 64, sample=number,
        policy="oracle", policy_version="v", provider="namespace", instruction="Do it.",
        turns=(turn,), stop_reason=StopReason.DONE, verdict=Verdict(reward=float(number % 2)),
    )  # fmt: skip


async def _store(run: Path, episodes: Iterable[Episode]) -> None:
    config = load("oracle")
    with RunFolder.open(
        run, config, tasks={"one": "d"}, policy="oracle", policy_version="v", provider="namespace"
    ):
        async with Store(run, config.store) as store:
            for episode in episodes:
                await store.append(episode)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A run of five episodes."""
    asyncio.run(_store(tmp_path / "run", map(_episode, range(5))))
    return tmp_path / "run"


def test_a_run_is_shown_as_a_table(stored: Path) -> None:
    done = headrace("show", stored)
    assert done.returncode == 0
    assert "3abc0003" in done.stdout
    assert "5 episodes of 1 task, 2 passed, 3 not solved" in done.stdout


def test_an_episode_is_found_by_the_start_of_its_id(stored: Path) -> None:
    done = headrace("show", stored, "--episode", "3a")
    assert done.returncode == 0
    assert "$ ls -l" in done.stdout
    assert "reward 1" in done.stdout


def test_an_unknown_episode_is_refused(stored: Path) -> None:
    assert "has no episode zz" in refused("show", stored, "--episode", "zz")


def test_a_start_that_fits_several_episodes_is_refused(stored: Path) -> None:
    assert "5 episodes begin with : 0abc0000" in refused("show", stored, "--episode", "")


def test_every_episode_comes_out_as_a_line_of_json(stored: Path) -> None:
    done = headrace("shards", "cat", stored)
    assert (done.returncode, done.stderr) == (0, "")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["sample"] for record in records] == [0, 1, 2, 3, 4]
    assert records[0]["turns"][0]["results"][0]["stdout"] == "a\n"


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    big = random.Random(1).randbytes(300_000)
    asyncio.run(_store(tmp_path / "run", (_episode(n, big) for n in range(4))))
    with subprocess.Popen(
        [HEADRACE, "shards", "cat", tmp_path / "run"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=20) == 1


def test_damage_is_told_and_the_rest_is_still_read(stored: Path) -> None:
    (shard,) = (stored / "shards").glob("*.hrs")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    done = headrace("shards", "cat", stored)
    assert done.returncode == 2
    assert "unreadable: " in done.stderr
    assert "Traceback" not in done.stderr
    assert 0 < len(done.stdout.splitlines()) < 5


# --- tasks ----------------------------------------------------------------------------------


def test_the_bundled_pack_is_listed() -> None:
    done = headrace("tasks", "list")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 21


def test_a_long_name_is_whole_where_there_is_no_terminal(tmp_path: Path) -> None:
    name = "030. tasks-" + "x" * 150
    _task(tmp_path / name)
    assert name in headrace("tasks", "list", tmp_path).stdout


def unprivileged(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """As somebody whom the modes of files stop."""
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    return subprocess.run(
        [*(drop if os.geteuid() == 0 else []), HEADRACE, *arguments],
        capture_output=True, text=True, timeout=50, env=ENV,
    )  # fmt: skip


@pytest.mark.parametrize("what", ["tasks", "run"])
def test_a_folder_that_may_not_be_read_is_not_called_empty(
    what: str, tmp_path: Path, stored: Path
) -> None:
    if what == "tasks":
        _task(tmp_path / "closed" / "one")
        closed, command = tmp_path / "closed", ["tasks", "list", tmp_path / "closed"]
    else:
        closed, command = stored / "shards", ["show", stored]
    closed.chmod(0)
    done = unprivileged(*command)
    closed.chmod(0o755)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{closed}: expected a folder that may be read, found no access" in done.stderr


def test_a_sound_task_passes_the_check(tmp_path: Path) -> None:
    task = _task(tmp_path / "one")
    done = headrace("tasks", "check", task)
    assert done.returncode == 0
    assert "no_solution" in done.stdout
    assert f"next: headrace eval --tasks {task} --policy oracle" in done.stdout


def test_one_broken_task_does_not_hide_the_others(tmp_path: Path) -> None:
    _task(tmp_path / "good")
    (_task(tmp_path / "bad") / "instruction.md").unlink()
    done = headrace("tasks", "check", tmp_path)
    assert done.returncode == 2
    assert "good: " in done.stdout
    assert "2 tasks: 1 cannot be read" in done.stdout


# --- the doctor -----------------------------------------------------------------------------


def test_the_doctor_speaks_of_every_part() -> None:
    done = headrace("doctor", "--json")
    found = json.loads(done.stdout)
    assert {finding["name"] for finding in found} >= {
        "docker", "namespace", "base image", "cgroups", "vllm", "weights",
        "open files", "processes", "disk", "memory",
    }  # fmt: skip
    lacking = any(finding["state"] == "lack" for finding in found)
    assert done.returncode == (1 if lacking else 0)


def test_the_doctor_prints_the_same_as_a_table() -> None:
    done = headrace("doctor")
    names = [finding["name"] for finding in json.loads(headrace("doctor", "--json").stdout)]
    assert all(name in done.stdout for name in names)
    assert max(map(len, done.stdout.splitlines())) <= 80


LACK = Finding(name="x", state="lack", found="no")
FINE = Finding(name="y", state="ok", found="yes")


def test_one_provider_is_enough() -> None:
    assert [f.state for f in judge_providers([LACK, FINE])] == ["note", "ok"]
    assert [f.state for f in judge_providers([FINE, FINE])] == ["ok", "ok"]
    assert [f.state for f in judge_providers([LACK, LACK])] == ["lack", "lack"]


def test_few_open_files_are_a_note_unless_a_run_may_raise_them() -> None:
    finding = open_files(1024, 1024)
    assert (finding.state, finding.advice) == ("note", "raise nofile in limits.conf")
    assert "about 76 live episodes" in finding.found
    assert open_files(1024, 1_048_576).state == "ok"
    assert open_files(1024, resource.RLIM_INFINITY).state == "ok"


@pytest.mark.parametrize(
    ("finding", "state"),
    [
        (pids(None), "ok"),
        (pids(100_000), "ok"),
        (pids(100), "note"),
        (memory(1.0), "note"),
        (memory(16.0), "ok"),
        (disk(1.0, Path("/")), "note"),
        (disk(50.0, Path("/")), "ok"),
        (python((3, 11, 0)), "ok"),
        (python((3, 14, 0)), "lack"),
        (python((3, 10, 9)), "lack"),
    ],
)
def test_what_is_scarce_says_what_to_do(finding: Finding, state: str) -> None:
    assert finding.state == state
    assert bool(finding.advice) == (state != "ok")


def test_ctrl_c_while_the_command_line_is_read_is_130_and_no_traceback() -> None:
    code = (
        "import headrace.cli.app as app, os, signal\n"
        "app.run = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "from headrace.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")
