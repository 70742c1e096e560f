"""`docker compose` as a process: one command, its document on stdin, a deadline.

Rule: it sees a small environment of its own (no variable of this process but where things are), it
reads nothing from the network, its memory is bounded, and it is killed with its children when its
time is up or its caller is cancelled.
"""

import asyncio
import os
import shutil
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress

from headrace.aio import run_shielded
from headrace.errors import InfrastructureError, SandboxError

GET_IT = (
    "install the compose plugin of Docker (`scripts/docker-compose.sh up` does), or leave such "
    "tasks out"
)
VERSION_S = 20.0
END_S = 10.0
AT_ONCE = 8
SAID_BYTES = 1500
MEMORY_KB = 4 << 20
"""Of address space: the YAML of a task must not take all of this machine's."""
_KEPT = ("PATH", "HOME", "DOCKER_CONFIG", "TMPDIR", "LANG")


class ComposeCli:
    """`docker compose` on the engine behind one socket."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._places = asyncio.Semaphore(AT_ONCE)
        self._asked = asyncio.Lock()
        self._lacks: str | None = None
        self._known = False

    async def lacks(self) -> str | None:
        """None if it can be used here, else why not and what to do. Looks once."""
        async with self._asked:
            if not self._known:
                try:
                    self._lacks = await self._look()
                except SandboxError as e:  # a busy machine: it is asked again
                    return f"{e}: {GET_IT}"
                self._known = True
            return self._lacks

    async def run(
        self,
        args: Sequence[str],
        *,
        doing: str,
        timeout_s: float,
        stdin: bytes = b"",
        variables: Mapping[str, str] = {},
        error: type[InfrastructureError] = SandboxError,
        waits: bool = False,
    ) -> bytes:
        """The stdout of `docker compose ARGS`. `waits`: it does little, for a long time."""
        reason = await self.lacks()
        if reason is not None:
            raise error(f"{doing}: {reason}")
        if waits:
            code, out, said = await self._process(args, stdin, variables, doing, timeout_s, error)
        else:
            async with self._places:
                code, out, said = await self._process(
                    args, stdin, variables, doing, timeout_s, error
                )
        if code != 0:
            raise error(f"{doing}: {_said(said) or f'docker compose ended with {code}'}")
        return out

    async def _look(self) -> str | None:
        if shutil.which("docker") is None:
            return f"the `docker` command line was not found: {GET_IT}"
        code, out, _ = await self._process(
            ("version", "--short"), b"", {}, "docker compose version", VERSION_S, SandboxError
        )
        if code != 0:
            return f"`docker compose` is not installed: {GET_IT}"
        if out.strip().startswith((b"1.", b"v1.")):
            return f"`docker compose` is too old ({out.decode().strip()}): {GET_IT}"
        return None

    async def _process(
        self,
        args: Sequence[str],
        stdin: bytes,
        variables: Mapping[str, str],
        doing: str,
        timeout_s: float,
        error: type[InfrastructureError],
    ) -> tuple[int, bytes, bytes]:
        started: list[Process] = []

        async def start() -> None:
            started.append(await self._started(args, stdin, variables))

        try:
            # Shielded: a start that is cancelled half way would leave a process nobody knows.
            await run_shielded(start())
            async with asyncio.timeout(timeout_s):
                out, said = await started[0].communicate()
        except TimeoutError:
            raise error(f"{doing}: docker compose was not done within {timeout_s:g} s") from None
        except OSError as e:
            raise error(f"{doing}: docker compose could not be started: {e}") from e
        finally:
            for process in started:
                await run_shielded(_end(process))
        return started[0].returncode or 0, out, said

    async def _started(
        self, args: Sequence[str], stdin: bytes, variables: Mapping[str, str]
    ) -> Process:
        limited = f'ulimit -v {MEMORY_KB}; exec docker compose "$@"'
        document = _in_memory(stdin)
        try:
            return await asyncio.create_subprocess_exec(
                "sh", "-c", limited, "headrace", *args,
                stdin=document, stdout=PIPE, stderr=PIPE, start_new_session=True,
                env={**variables, **self._environment()},
            )  # fmt: skip
        finally:
            os.close(document)

    def _environment(self) -> dict[str, str]:
        return {
            **{name: os.environ[name] for name in _KEPT if name in os.environ},
            "DOCKER_HOST": f"unix://{self._socket}",
            "COMPOSE_EXPERIMENTAL_GIT_REMOTE": "false",
            "COMPOSE_EXPERIMENTAL_OCI_REMOTE": "false",
            "COMPOSE_REMOVE_ORPHANS": "false",
            "COMPOSE_ANSI": "never",
            "COMPOSE_PROGRESS": "quiet",
        }


def _in_memory(data: bytes) -> int:
    """A file without a name: unlike a pipe, it asks nobody to read it."""
    file = os.memfd_create("headrace-compose")
    try:
        os.truncate(file, len(data))
        os.pwrite(file, data, 0)
    except BaseException:
        os.close(file)
        raise
    return file


async def _end(process: Process) -> None:
    """Its group goes, whether it has ended or not: `docker` runs the plugin as a child."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(END_S):
            await process.wait()


def _said(text: bytes) -> str:
    """The end of what it printed, without its notes on variables that are not set."""
    lines = [
        line
        for line in text.decode(errors="replace").splitlines()
        if line.strip() and "level=warning" not in line
    ]
    if any("out of memory" in line for line in lines[:3]):
        return "its files take more memory than they may: is there a YAML bomb in them?"
    return "; ".join(line.strip() for line in lines)[-SAID_BYTES:]
