"""`headrace pairs --follow`: a line for each pair while the run goes on, and how it ends."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE

import pytest
from tests.preferences.going import DEADLINE_S, TASKS, lost, put, session, won
from tests.preferences.runs import spoil
from typer.testing import CliRunner

from headrace.aio import in_thread
from headrace.cli.app import app
from headrace.errors import RunFolderError, UsageError
from headrace.preferences import follow
from headrace.preferences.formats.registry import pair_format
from headrace.preferences.pairs import make_pairs
from headrace.preferences.rules import rule_of

HEADRACE = Path(sys.executable).with_name("headrace")


@asynccontextmanager
async def following(
    run: Path, *options: str, out: int = PIPE
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command in a process of its own; ended with the block."""
    process = await asyncio.create_subprocess_exec(
        HEADRACE, "pairs", "--follow", run, *options, stdout=out, stderr=PIPE, limit=1 << 24
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def next_line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    return await process.stdout.readline()


def rows(run: Path, *kinds: str) -> list[bytes]:
    """What `headrace pairs` writes as JSON lines."""
    out = run.with_name("pairs")
    rules = [rule_of(kind) for kind in kinds]
    make_pairs([run], out, rules=rules, format=pair_format("jsonl"))
    return (out / "train.jsonl").read_bytes().splitlines(keepends=True)


async def test_lines_come_while_the_run_goes_on_and_are_those_of_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--rule", "litecoder", "--rule", "first-divergence")
    async with following(run, *options) as process:
        async with session(run) as store:
            lines = []
            for task in TASKS:
                await put(store, won(task), lost(task))
                lines += [await next_line(process), await next_line(process)]
        rest, told = await process.communicate()
    assert (process.returncode, rest) == (0, b"")
    assert told.decode().splitlines()[-1] == f"{run} has ended: 8 pairs"
    expected = await in_thread(rows, run, "litecoder", "first-divergence")
    assert sorted(lines) == sorted(expected)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
async def test_ctrl_c_ends_with_130_and_no_traceback(tmp_path: Path, stop: signal.Signals) -> None:
    run = tmp_path / "run"
    async with session(run) as store, following(run) as process:
        await put(store, won("org/a"), lost("org/a"))
        assert json.loads(await next_line(process))["pair"]["task"] == "org/a"
        process.send_signal(stop)
        rest, told = await process.communicate()
    assert (process.returncode, rest, told) == (130, b"", b"")


async def test_a_run_that_has_not_begun_is_waited_for(tmp_path: Path) -> None:
    run = tmp_path / "run"
    async with following(run) as process:
        assert process.stderr is not None
        told = await process.stderr.readline()
        assert told.decode() == f"waiting up to 30 s for {run} to begin\n"
        async with session(run) as store:
            await put(store, won("org/a"), lost("org/a"))
            assert json.loads(await next_line(process))["pair"]["task"] == "org/a"


async def test_a_closed_pipe_ends_it_without_a_traceback(tmp_path: Path) -> None:
    run = tmp_path / "run"
    reading, writing = os.pipe()
    async with session(run) as store, following(run, out=writing) as process:
        os.close(writing)
        await put(store, won("org/a"), lost("org/a"))
        assert await in_thread(os.read, reading, 10) == b'{"pair":{"'
        os.close(reading)
        await put(store, won("org/b"), lost("org/b"))
        _, told = await process.communicate()
    assert (process.returncode, told) == (1, b"")


async def test_damage_is_told_and_the_exit_code_is_2(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for task in TASKS[:2]:
        async with session(run) as store:
            await put(store, won(task), lost(task))
    await in_thread(spoil, run)
    async with following(run) as process:
        out, told = await process.communicate()
    assert process.returncode == 2
    assert [json.loads(line)["pair"]["task"] for line in out.splitlines()] == ["org/b"]
    first, last = told.decode().splitlines()
    assert first.startswith("unreadable: ")
    assert last == f"{run} has ended: 1 pair"


async def test_a_run_without_a_pair_is_exit_code_1(tmp_path: Path) -> None:
    run = tmp_path / "run"
    async with session(run) as store:
        await put(store, won("org/a"), won("org/a", 1))
    async with following(run) as process:
        out, told = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert told.decode() == (
        f"{run} has ended: 0 pairs; `headrace pairs {run} --out DIR` counts the reasons\n"
    )


async def test_a_run_with_too_long_a_name_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot be read: File name too long"):
        await anext(follow(tmp_path / ("a" * 300)))
    run = tmp_path / ("a" * 300)
    async with following(run) as process:
        assert process.stderr is not None
        told = await process.stderr.readline()
        assert told.decode() == f"waiting up to 30 s for {run} to begin\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["r", "--out", "x", "--overwrite"], "writes no folder; leave out --out, --overwrite"),
        (["r", "--gamma", "0.9"], "leave out --gamma"),
        (["r", "--allow-mixed-policies"], "leave out --allow-mixed-policies"),
        (["r", "--format", "trl"], "expected --format jsonl or index, found trl"),
        (["r", "s"], "expected one run, found 2"),
    ],
)
def test_what_goes_with_a_folder_is_refused(arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["pairs", "--follow", *arguments])
    assert isinstance(done.exception, UsageError)
    assert told in str(done.exception)


def test_a_folder_or_following_is_asked_for() -> None:
    done = CliRunner().invoke(app, ["pairs", "r"])
    assert isinstance(done.exception, UsageError)
    assert "--out DIR" in str(done.exception)
