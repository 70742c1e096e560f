"""Builds that need BuildKit, by the `docker buildx` command line.

Rule: asked for once per provider whether it is there; a build has a deadline and is killed with
its children when it passes or when the caller is cancelled. The engine of the provider gets the
image (`--load`). BuildKit shares layers between builds by itself.
"""

import asyncio
import os
import shutil
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from headrace.aio import run_shielded
from headrace.errors import ImageError
from headrace.types import EnvironmentRecipe

VERSION_S = 20.0
LOG_TAIL_BYTES = 4000
_CHUNK_BYTES = 1 << 16


class Buildx:
    """`docker buildx` on the engine behind one socket."""

    def __init__(self, socket: str, *, program: str = "docker") -> None:
        self._socket = socket
        self._program = program
        self._lacks: str | None = None
        self._asked = asyncio.Lock()
        self._known = False

    async def lacks(self) -> str | None:
        """None if `docker buildx` can be used, else why not and what to do. Looks once."""
        async with self._asked:
            if not self._known:
                self._lacks = await self._look()
                self._known = True
            return self._lacks

    async def build(
        self,
        recipe: EnvironmentRecipe,
        context: str,
        name: str,
        labels: Mapping[str, str],
        progress: Callable[[str], None],
    ) -> None:
        """Build and load `name`. Raises `ImageError` with the end of the build's log."""
        assert recipe.dockerfile is not None
        command = build_command(recipe.dockerfile, context, name, labels)
        progress(f"{name} needs BuildKit: docker buildx builds it")
        code, tail = await self._run(command, recipe.build_timeout_s)
        if code is None:
            raise ImageError(
                f"could not build {recipe.dockerfile}: docker buildx was not done within "
                f"{recipe.build_timeout_s:g} s. The end of the build's log:\n{tail}"
            )
        if code != 0:
            raise ImageError(
                f"could not build {recipe.dockerfile}: docker buildx ended with exit code {code}."
                f" The end of the build's log:\n{tail}"
            )

    async def _look(self) -> str | None:
        if shutil.which(self._program) is None:
            return "`docker buildx` is not installed (there is no docker command line)"
        code, said = await self._run(("buildx", "version"), VERSION_S)
        if code == 0:
            return None
        return f"`docker buildx` is not installed ({said.splitlines()[-1] if said else code})"

    async def _run(self, arguments: Sequence[str], timeout_s: float) -> tuple[int | None, str]:
        """Exit code (None: out of time) and the end of what was said."""
        tail = bytearray()
        started: list[Process] = []

        async def start() -> None:
            started.append(await self._started(arguments))

        try:
            # Shielded: a start that is cancelled half way would leave a process nobody knows.
            await run_shielded(start())
            async with asyncio.timeout(timeout_s):
                code: int | None = await _followed(started[0], tail)
        except TimeoutError:
            code = None
        finally:
            for process in started:
                await run_shielded(_end(process))
        return code, tail.decode(errors="replace").strip()

    async def _started(self, arguments: Sequence[str]) -> Process:
        return await asyncio.create_subprocess_exec(
            self._program,
            *arguments,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            env={**os.environ, "DOCKER_HOST": f"unix://{self._socket}", "DOCKER_BUILDKIT": "1"},
            start_new_session=True,
        )


def build_command(
    dockerfile: str, context: str, name: str, labels: Mapping[str, str]
) -> tuple[str, ...]:
    """The arguments of `docker` for one build."""
    labelled = [f"--label={label}={value}" for label, value in sorted(labels.items())]
    return (
        *("buildx", "build", "--load", "--progress=plain", f"--tag={name}"),
        *(f"--file={dockerfile}", *labelled, context),
    )


async def _followed(process: Process, tail: bytearray) -> int:
    """Keep the end of what it says, to its end; its exit code."""
    assert process.stdout is not None
    while piece := await process.stdout.read(_CHUNK_BYTES):
        tail += piece
        del tail[:-LOG_TAIL_BYTES]
    return await process.wait()


async def _end(process: Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
