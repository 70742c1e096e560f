"""Conformance of the walls: what the spec gives, what the limits hold, what stays outside."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from headrace.errors import ImageError, SandboxError
from headrace.sandbox.base import Limits, Sandbox
from headrace.sandbox.conformance_suite import Suite, answers, execute, mark, run, says


class Spec(Suite):
    """What the spec asks for is what the shell sees."""

    async def test_variables_of_the_spec_are_seen_as_they_are(self) -> None:
        env = {"A": 'it\'s $HOME `x` "q" = 1', "B": "two\nlines ü", "EMPTY": ""}
        async with self.open(env=env) as sandbox:
            told = await says(sandbox, 'printf "%s|" "$A" "$B" "$EMPTY" "${EMPTY+set}"')
            assert told == f"{env['A']}|{env['B']}||set|"

    async def test_variables_of_the_spec_are_exported(self) -> None:
        async with self.open(env={"SEEN": "yes"}) as sandbox:
            assert await says(sandbox, "sh -c 'echo $SEEN'") == "yes\n"

    async def test_variables_of_the_host_are_not_seen(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HEADRACE_HOST_SECRET", "leaked")
        async with self.open() as other:
            for box in (sandbox, other):
                assert "leaked" not in await says(box, "env; cat /proc/[0-9]*/environ 2>&1; true")

    async def test_the_shell_starts_in_the_folder_of_the_spec(self) -> None:
        async with self.open(workdir="/usr/lib") as sandbox:
            assert await says(sandbox, "pwd") == "/usr/lib\n"

    async def test_a_folder_that_is_missing_is_made(self) -> None:
        async with self.open(workdir="/made/for this/task") as sandbox:
            assert await says(sandbox, "pwd; touch here && ls") == "/made/for this/task\nhere\n"

    async def test_the_shell_runs_as_the_user_of_the_spec(self) -> None:
        async with self.open(user="nobody") as sandbox:
            assert await says(sandbox, "id -un; id -u") == "nobody\n65534\n"
            assert (await run(sandbox, "touch /etc/mine")).exit_code != 0
            assert (await run(sandbox, "sleep 1000", timeout_s=0.5)).timed_out
            await run(sandbox, "exit 3")
            assert await says(sandbox, "id -un") == "nobody\n"

    async def test_the_shell_runs_as_root_by_default(self, sandbox: Sandbox) -> None:
        assert await says(sandbox, "id -u; touch /etc/mine && chown nobody /etc/mine") == "0\n"

    async def test_root_can_become_another_user(self, sandbox: Sandbox) -> None:
        told = await says(sandbox, "su -s /bin/sh nobody -c 'id -un'")
        assert told == "nobody\n"

    async def test_the_usual_places_are_there(self, sandbox: Sandbox) -> None:
        await says(sandbox, "echo x >/dev/null && echo x >/tmp/x && head -c 4 /dev/urandom | wc -c")
        await says(sandbox, "test -w /dev/shm && test -r /proc/self/status && test -d /proc/1")
        await says(sandbox, "echo <(echo x) >/dev/null && cat <(echo substituted)")
        assert await says(sandbox, "stat -c %a /tmp; stat -c %F /dev/null") == (
            "1777\ncharacter special file\n"
        )

    async def test_an_image_that_is_missing_is_an_error(self) -> None:
        with pytest.raises((SandboxError, ImageError)):
            async with self.open(image="headrace/none:none"):
                pass


class Bounds(Suite):
    """Limits hold, and the sandbox lives on."""

    async def test_a_memory_hog_is_killed_and_the_sandbox_answers(self) -> None:
        async with self.open(limits=Limits(memory_mb=128)) as sandbox:
            await says(sandbox, "cd /tmp; kept=1")
            hog = await run(sandbox, "python3 -c 'x = bytearray(600 << 20)'")
            assert hog.exit_code not in (0, None)
            await answers(sandbox)
            assert await says(sandbox, "pwd; echo $kept") == "/tmp\n1\n"

    async def test_memory_within_the_limit_is_given(self) -> None:
        async with self.open(limits=Limits(memory_mb=512)) as sandbox:
            await says(sandbox, "python3 -c 'x = bytearray(256 << 20)'")

    async def test_no_more_processes_than_the_limit_start(self) -> None:
        async with self.open(limits=Limits(pids=64)) as sandbox:
            code = (
                "import os, signal, time\n"
                "pids = []\n"
                "try:\n"
                "    for i in range(200):\n"
                "        pid = os.fork()\n"
                "        if not pid: time.sleep(1000)\n"
                "        pids.append(pid)\n"
                "except OSError: pass\n"
                "print(len(pids))\n"
                "for pid in pids: os.kill(pid, signal.SIGKILL)\n"
            )
            assert 40 < int(await says(sandbox, f"python3 -c '{code}'")) <= 64
            await answers(sandbox)


class Walls(Suite):
    """Nothing of the host or of another sandbox is visible."""

    async def test_there_is_no_network_but_loopback(self, sandbox: Sandbox) -> None:
        devices = await says(sandbox, "tail -n +3 /proc/net/dev | cut -d: -f1")
        assert devices.split() == ["lo"]

    async def test_loopback_is_up(self, sandbox: Sandbox) -> None:
        code = (
            "import socket,threading; s=socket.create_server(('127.0.0.1',0));"
            "c=socket.create_connection(s.getsockname()); a,_=s.accept(); c.send(b'hi');"
            "print(a.recv(2).decode())"
        )
        assert await says(sandbox, f'python3 -c "{code}"') == "hi\n"

    async def test_a_port_of_the_host_is_not_reached(self, sandbox: Sandbox) -> None:
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            assert (await run(sandbox, f"echo </dev/tcp/127.0.0.1/{port}")).exit_code != 0

    async def test_only_its_own_processes_are_in_proc(self, sandbox: Sandbox) -> None:
        told = await run(sandbox, "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; done; echo")
        lines = told.stdout.decode()
        assert "pytest" not in lines
        assert int(await says(sandbox, "ls -d /proc/[0-9]* | wc -l")) < 20

    async def test_a_program_has_no_descriptor_but_its_own(self, sandbox: Sandbox) -> None:
        """Not ours for commands and verdicts, nor a file of the host."""
        look = "ls /proc/self/fd"  # the last is of the look itself
        assert await says(sandbox, look) == "0\n1\n2\n3\n"
        assert (await execute(sandbox, look)).stdout == b"0\n1\n2\n3\n"
        async with self.open(user="nobody") as other:
            assert await says(other, look) == "0\n1\n2\n3\n"

    async def test_files_of_the_host_are_not_visible(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        (tmp_path / "secret").write_text("leaked")
        paths = f"{tmp_path}/secret /proc/1/root{tmp_path}/secret {__file__}"
        assert (await run(sandbox, f"cat {paths}")).stdout == b""
        assert (await execute(sandbox, f"cat {tmp_path}/secret")).exit_code != 0

    async def test_a_command_cannot_mount_or_change_the_host(self, sandbox: Sandbox) -> None:
        before = os.uname().nodename
        for command in (
            "mount -t tmpfs none /mnt",
            "mount --bind / /mnt",
            "echo 1 >/proc/sys/kernel/sysrq",
            "echo x >/proc/sysrq-trigger",
            "mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk",
            "nsenter -t 1 -m -- true && cat /proc/1/root/etc/hostname && false",
        ):
            assert (await run(sandbox, command)).exit_code != 0, command
        assert os.uname().nodename == before

    async def test_a_device_of_the_host_keeps_its_mode_and_its_times(
        self, sandbox: Sandbox
    ) -> None:
        before = os.stat("/dev/full")
        await run(sandbox, "chmod 640 /dev/full; touch -d 2001-01-01 /dev/full")
        after = os.stat("/dev/full")
        assert (after.st_mode, after.st_mtime) == (before.st_mode, before.st_mtime)
        told = await run(sandbox, "echo x >/dev/full")
        assert b"No space left" in told.stderr

    async def test_no_file_of_the_host_can_be_written_through_a_descriptor(
        self, sandbox: Sandbox
    ) -> None:
        """Root inside may open again what any process inside has open."""
        command = (
            'for f in /proc/[0-9]*/fd/*; do [ -f $f ] && ! [ -e "$(readlink $f)" ] &&'
            " (echo '#' >>$f) 2>/dev/null && readlink $f; done; true"
        )
        assert await says(sandbox, command) == ""

    async def test_two_sandboxes_do_not_see_each_other(self, sandbox: Sandbox) -> None:
        word = mark()
        async with self.open() as other:
            await says(sandbox, f"bash -c 'sleep 1000; :' {word} & echo x >/tmp/{word}; echo")
            seen = f"ls /tmp; grep -al '[c]{word[1:]}' /proc/[0-9]*/cmdline 2>/dev/null; true"
            assert await says(other, seen) == ""
            assert word in await says(sandbox, seen)

    async def test_a_fresh_sandbox_has_nothing_of_the_last(self) -> None:
        async with self.open() as first:
            await says(first, "touch /etc/changed; rm -f /bin/ls; export X=1")
        async with self.open() as second:
            assert await says(second, "ls /bin/ls; echo [$X]") == "/bin/ls\n[]\n"
            assert (await run(second, "ls /etc/changed")).exit_code != 0


CALLS: tuple[Callable[[Sandbox], Awaitable[object]], ...] = (
    lambda sandbox: sandbox.run("true", timeout_s=5),
    lambda sandbox: sandbox.exec("true", timeout_s=5),
    lambda sandbox: sandbox.read("/etc/passwd"),
    lambda sandbox: sandbox.write("/tmp/x", b""),
)


class Close(Suite):
    """Closing is final, idempotent and complete."""

    async def test_nothing_is_left_after_close(self) -> None:
        episode = mark()
        async with self.open(episode=episode) as sandbox:
            await says(sandbox, f"bash -c 'sleep 1000; :' {episode} & (setsid sleep 1000 &)")
            await execute(sandbox, f"bash -c 'trap \"\" TERM; sleep 1000; :' {episode} &")
            assert await self.leftovers(episode) != []  # or it would find nothing below either
        assert await self.leftovers(episode) == []

    async def test_nothing_is_left_when_the_block_is_cancelled_in_a_command(self) -> None:
        episode = mark()

        async def endless() -> None:
            async with self.open(episode=episode) as sandbox:
                opened.set()
                await run(sandbox, f"bash -c 'sleep 1000; :' {episode}", timeout_s=1000)

        opened = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(endless())
            await opened.wait()
            task.cancel()
        assert await self.leftovers(episode) == []

    async def test_nothing_is_left_when_opening_is_cancelled(self) -> None:
        async def opened(episode: str) -> None:
            async with self.open(episode=episode):
                pass

        for turns in (0, 1, 3, 10, 30):
            episode = mark()
            async with asyncio.TaskGroup() as group:
                task = group.create_task(opened(episode))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
            assert await self.leftovers(episode) == [], turns

    async def test_an_error_in_the_block_closes_and_is_raised(self) -> None:
        episode = mark()
        with pytest.raises(ZeroDivisionError):
            async with self.open(episode=episode):
                raise ZeroDivisionError
        assert await self.leftovers(episode) == []

    async def test_close_is_idempotent(self) -> None:
        async with self.open() as sandbox:
            await sandbox.aclose()
            await sandbox.aclose()

    async def test_close_twice_at_once_is_one_close(self) -> None:
        async with self.open() as sandbox, asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(sandbox.aclose())

    async def test_use_after_close_is_an_error(self) -> None:
        async with self.open() as sandbox:
            await answers(sandbox)
        for call in CALLS:
            with pytest.raises(SandboxError):
                await call(sandbox)

    async def test_close_ends_the_command_that_runs(self) -> None:
        async def ended(sandbox: Sandbox) -> None:
            with pytest.raises(SandboxError):
                await run(sandbox, "sleep 1000", timeout_s=1000)

        async with self.open() as sandbox, asyncio.TaskGroup() as group:
            group.create_task(ended(sandbox))
            await asyncio.sleep(0)
            await sandbox.aclose()
