"""A command that cannot be killed alone: what the shell asks of whoever holds the sandbox.

Over a real shell on this machine, without a sandbox around it.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from headrace.errors import SandboxError, SandboxFull
from headrace.sandbox.control import Control
from headrace.sandbox.scripts import first_process
from headrace.sandbox.shell import Shell


class Holder:
    """A shell's process, with no way in that could kill a command."""

    def __init__(self, refusal: SandboxError) -> None:
        self._refusal = refusal
        self.asked: list[bool] = []
        self.shell: Shell

    async def killer(self) -> Control:
        raise self._refusal

    async def rescue(self, full: bool) -> None:
        """Write down what was asked and end the command, as a restart would."""
        self.asked.append(full)
        for child in children(self.shell.pid):
            os.kill(child, signal.SIGKILL)


class Refuses(Holder):
    """One that finds no reason to end everything."""

    async def rescue(self, full: bool) -> None:
        self.asked.append(full)
        raise SandboxError("the sandbox has processes left")


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


@asynccontextmanager
async def shell_of(holder: Holder) -> AsyncIterator[Shell]:
    process = await asyncio.create_subprocess_exec(
        *first_process(""),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    shell = holder.shell = Shell(process.stdin.write, killer=holder.killer, rescue=holder.rescue)

    async def feed(number: int, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None
        while data := await stream.read(65536):
            shell.feed(number, data)

    try:
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(feed(1, process.stdout))
            group.create_task(feed(2, process.stderr))
            await shell.start()
            try:
                yield shell
            finally:
                os.killpg(process.pid, signal.SIGKILL)
    finally:
        await process.wait()


@pytest.mark.parametrize(
    ("refusal", "full"),
    [(SandboxFull("its processes keep ours out"), True), (SandboxError("no answer"), False)],
    ids=["for want of processes", "for another reason"],
)
async def test_the_rescue_is_told_whether_there_was_no_process_left(
    refusal: SandboxError, full: bool
) -> None:
    holder = Holder(refusal)
    async with shell_of(holder) as shell:
        result = await shell.run("sleep 1000", timeout_s=0.2)
        assert (result.timed_out, holder.asked) == (True, [full])
        after = await shell.run("echo alive", timeout_s=10)
        assert after.stdout == b"alive\n"


async def test_a_command_that_nobody_can_end_closes_the_shell_with_the_reason() -> None:
    holder = Refuses(SandboxError("no answer"))
    async with shell_of(holder) as shell:
        with pytest.raises(SandboxError, match=r"a command could not be killed: no answer"):
            await shell.run("sleep 1000", timeout_s=0.2)
        assert holder.asked == [False]
        with pytest.raises(SandboxError, match="could not be killed"):
            await shell.run("true", timeout_s=1)
