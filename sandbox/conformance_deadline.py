"""Conformance at deadlines and cancellation: what is killed, what lives on."""

import asyncio
from collections.abc import Awaitable

import pytest

from headrace.errors import ContractError
from headrace.sandbox.base import Limits, Sandbox
from headrace.sandbox.conformance_suite import (
    SOON_S,
    Suite,
    alive,
    answers,
    execute,
    mark,
    run,
    says,
)

SLEEPER = "bash -c 'sleep 1000; :' {}"
"""A process that can be found by a word on its command line."""
WAITS = (
    "while :; do :; done",
    "while :; do sleep 1; done",
    "until false; do true; done",
    "f() { while :; do read -t 1 x; done; }; f",
    "sleep 1000 & wait",
    "sleep 1000 | cat",
    "x=$(sleep 1000)",
    "(sleep 1000)",
    "read -r x <p",
    "echo x >q",
    "kill -STOP $BASHPID & sleep 1000",
)
STARTS = (
    SLEEPER,
    f"{SLEEPER} | cat",
    f"{SLEEPER} & wait",
    f"setsid {SLEEPER}",
    f"setsid {SLEEPER} & sleep 1000",
    f"(setsid {SLEEPER} &) ; sleep 1000",
    f"nohup {SLEEPER}",
    "bash -c 'trap \"\" INT TERM HUP; while :; do sleep 1; done' {}",
    'bash -c \'trap "" INT TERM; setsid -w bash -c "sleep 1000; :" $0; :\' {}',
    "python3 -c 'import os, time; os.fork() or os.setsid(); time.sleep(1000)' {}",
)
BOMBS = (
    "b() { b | b; }; b",
    "b() { b | b & }; b; sleep 1000",
    "while :; do sleep 99 & done",
)


async def cancelled(call: Awaitable[object]) -> None:
    """Awaits `call` for a while and cancels it from outside."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await call


class Deadlines(Suite):
    """A command that takes too long is killed; its shell is not."""

    async def test_a_timed_out_command_says_so_and_has_no_exit_code(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "sleep 1000", timeout_s=0.5)
        assert (result.timed_out, result.exit_code, result.shell_lost) == (True, None, False)
        assert 0.5 <= result.duration_s < 0.5 + SOON_S

    async def test_a_timed_out_command_leaves_directory_and_variables(
        self, sandbox: Sandbox
    ) -> None:
        await says(sandbox, "mkdir /tmp/w && cd /tmp/w; kept=1; f() { echo f; }")
        result = await run(sandbox, "late=2; sleep 1000", timeout_s=0.5)
        assert (result.timed_out, result.shell_lost) == (True, False)
        assert await says(sandbox, "pwd; echo $kept $late; f") == "/tmp/w\n1 2\nf\n"

    async def test_output_before_the_deadline_is_kept(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "echo out; echo err >&2; sleep 1000", timeout_s=1)
        assert (result.timed_out, result.stdout) == (True, b"out\n")
        assert result.stderr.startswith(b"err\n")

    async def test_a_timed_out_command_prints_nothing_into_the_next(self, sandbox: Sandbox) -> None:
        await run(sandbox, "while :; do echo spam; sleep 0.01; done", timeout_s=0.5)
        result = await run(sandbox, "echo clean")
        assert (result.stdout, result.stderr) == (b"clean\n", b"")

    async def test_the_shell_outlives_whatever_it_waits_in(self, sandbox: Sandbox) -> None:
        await says(sandbox, "cd /tmp; kept=1; mkfifo p q")
        for command in WAITS:
            result = await run(sandbox, command, timeout_s=0.3)
            assert (result.timed_out, result.shell_lost) == (True, False), command
            assert await says(sandbox, "pwd; echo $kept") == "/tmp\n1\n", command

    async def test_what_the_command_started_is_killed(self, sandbox: Sandbox) -> None:
        await says(sandbox, "cd /tmp; kept=1")
        for command in STARTS:
            word = mark()
            result = await run(sandbox, command.format(word), timeout_s=1)
            assert (result.timed_out, result.shell_lost) == (True, False), command
            assert not await alive(sandbox, word), command
            assert await says(sandbox, "pwd; echo $kept") == "/tmp\n1\n", command

    async def test_a_child_under_an_ignored_interrupt_is_killed_and_the_shell_lives(
        self, sandbox: Sandbox
    ) -> None:
        result = await run(sandbox, "cd /tmp; trap '' INT TERM; sleep 1000", timeout_s=0.5)
        assert (result.timed_out, result.shell_lost) == (True, False)
        assert await says(sandbox, "pwd") == "/tmp\n"

    async def test_a_shell_that_ignores_every_signal_in_a_loop_is_replaced(
        self, sandbox: Sandbox
    ) -> None:
        result = await run(sandbox, "trap '' INT TERM HUP; while :; do :; done", timeout_s=0.5)
        assert result.timed_out
        await run(sandbox, "true")
        assert await says(sandbox, "echo next") == "next\n"

    async def test_a_server_of_an_earlier_command_survives(self, sandbox: Sandbox) -> None:
        word = mark()
        await says(sandbox, f"{SLEEPER.format(word)} >/dev/null 2>&1 & server=$!")
        assert (await run(sandbox, "sleep 1000", timeout_s=0.5)).timed_out
        assert await alive(sandbox, word)
        assert await says(sandbox, "kill -0 $server && echo there") == "there\n"

    async def test_a_detached_server_of_an_earlier_command_survives(self, sandbox: Sandbox) -> None:
        word = mark()
        await says(sandbox, f"(setsid {SLEEPER.format(word)} >/dev/null 2>&1 &)")
        assert (await run(sandbox, "sleep 1000", timeout_s=0.5)).timed_out
        assert await alive(sandbox, word)

    async def test_timeouts_in_a_row_keep_the_shell(self, sandbox: Sandbox) -> None:
        await says(sandbox, "n=0")
        for _ in range(8):
            result = await run(sandbox, "n=$((n+1)); sleep 1000", timeout_s=0.1)
            assert (result.timed_out, result.shell_lost) == (True, False)
        assert await says(sandbox, "echo $n") == "8\n"

    async def test_a_very_short_deadline_keeps_the_shell(self, sandbox: Sandbox) -> None:
        await says(sandbox, "kept=1")
        for _ in range(8):
            await run(sandbox, "sleep 1000", timeout_s=0.001)
        assert await says(sandbox, "echo $kept") == "1\n"

    async def test_endless_output_is_killed_at_the_deadline(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "yes", timeout_s=1)
        assert result.timed_out
        assert result.stdout.startswith(b"y\ny\n")
        assert len(result.stdout) <= Limits().max_output_bytes
        assert await says(sandbox, "echo next") == "next\n"

    async def test_a_fork_bomb_is_stopped_at_the_deadline(self) -> None:
        async with self.open(limits=Limits(memory_mb=1024, pids=128)) as sandbox:
            for bomb in BOMBS:
                assert (await run(sandbox, bomb, timeout_s=2)).timed_out, bomb
                await answers(sandbox)
                await run(sandbox, "unset -f b")
                assert await says(sandbox, "sh -c 'echo next'") == "next\n", bomb


class Cancellation(Suite):
    """A cancelled command is killed as at a deadline."""

    async def test_a_cancelled_command_leaves_a_usable_shell(self, sandbox: Sandbox) -> None:
        word = mark()
        await says(sandbox, "cd /tmp; kept=1")
        await cancelled(run(sandbox, f"late=2; {SLEEPER.format(word)}", timeout_s=1000))
        assert not await alive(sandbox, word)
        result = await run(sandbox, "pwd; echo $kept $late")
        assert (result.stdout, result.stderr) == (b"/tmp\n1 2\n", b"")

    async def test_a_command_cancelled_at_once_leaves_a_usable_shell(
        self, sandbox: Sandbox
    ) -> None:
        await says(sandbox, "kept=1")
        for turns in range(4):
            async with asyncio.TaskGroup() as group:
                task = group.create_task(run(sandbox, "sleep 1000", timeout_s=1000))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
        assert await says(sandbox, "echo $kept") == "1\n"

    async def test_exec_works_after_a_cancelled_command(self, sandbox: Sandbox) -> None:
        await cancelled(run(sandbox, "while :; do :; done", timeout_s=1000))
        await answers(sandbox)

    async def test_a_cancelled_exec_is_killed_and_leaves_both_channels(
        self, sandbox: Sandbox
    ) -> None:
        word = mark()
        await says(sandbox, "kept=1")
        await cancelled(execute(sandbox, f"touch /tmp/began; {SLEEPER.format(word)}"))
        assert await sandbox.read("/tmp/began") == b""
        assert not await alive(sandbox, word)
        await answers(sandbox)
        assert await says(sandbox, "echo $kept") == "1\n"


class OneAtATime(Suite):
    """The contract of a shell: one command at a time."""

    async def test_a_second_command_at_once_is_refused_and_the_first_goes_on(
        self, sandbox: Sandbox
    ) -> None:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(run(sandbox, "sleep 0.5; echo first"))
            await asyncio.sleep(0)
            with pytest.raises(ContractError):
                await run(sandbox, "echo second")
        assert first.result().stdout == b"first\n"
        assert await says(sandbox, "echo third") == "third\n"
