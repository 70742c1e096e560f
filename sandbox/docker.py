"""The `docker` provider: each sandbox is a container of the engine behind a Unix socket.

Rule: an episode costs the engine four calls: create, attach, start, remove; one more per channel
of ours that is used. Everything created carries labels that say who owns it (`docker_sweep`).
It bounds nothing itself: how many start at once is the caller's.

The parts: `docker_engine` (the client and its errors), `docker_container` (what is created),
`docker_stream` (attach and exec), `docker_sandbox` (one container), `docker_images` and
`docker_context` (images), `docker_sweep` (owners and removal).
"""

import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from headrace.aio import run_shielded
from headrace.configs.models import ImagesConfig
from headrace.errors import SandboxError
from headrace.sandbox.base import SandboxSpec
from headrace.sandbox.docker_container import config
from headrace.sandbox.docker_engine import EngineClient, available, socket_path
from headrace.sandbox.docker_images import Images, Progress
from headrace.sandbox.docker_sandbox import DockerSandbox
from headrace.sandbox.docker_sweep import labels, remove, sweep
from headrace.sandbox.scripts import AGENT
from headrace.types import EnvironmentRecipe, Task

__all__ = ["DockerProvider", "available", "socket_path"]

_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_.-]")


class DockerProvider:
    """See `headrace.sandbox.base.Provider`. Raises `UsageError` for an address it cannot use."""

    name = "docker"

    def __init__(
        self,
        *,
        socket: str | None = None,
        run_id: str = "",
        progress: Progress | None = None,
        images: ImagesConfig = ImagesConfig(),  # noqa: B008 - frozen
    ) -> None:
        self._engine = EngineClient(socket_path(socket))
        self._images = Images(self._engine, run_id=run_id, progress=progress, config=images)
        self._run_id = run_id
        self._left_behind: list[str] = []

    async def __aenter__(self) -> "DockerProvider":
        await self._engine.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            if self._left_behind:
                await run_shielded(self._remove_left_behind())
        finally:
            await self._engine.__aexit__(*exc)

    async def prepare(self, recipe: EnvironmentRecipe) -> str:
        return await self._images.ensure(recipe)

    async def refuses(self, task: Task, *, network: bool) -> str | None:
        """See `Provider.refuses`."""
        return None

    @asynccontextmanager
    async def open(self, spec: SandboxSpec) -> AsyncIterator[DockerSandbox]:
        image = await self._images.facts(spec.image)
        body = config(
            spec,
            command=["sh", "-c", AGENT, "sh", spec.user or image.user, ""],
            labels=labels(self._run_id, spec.episode),
        )
        sandbox = DockerSandbox(
            self._engine,
            f"headrace-{_NOT_IN_A_NAME.sub('', spec.episode)[:16]}-{secrets.token_hex(4)}",
            spec,
            workdir=spec.workdir or image.workdir,
            image_user=image.user,
            on_left_behind=self._left_behind.append,
        )
        try:
            await sandbox.start(body)
            yield sandbox
        finally:
            await sandbox.aclose()

    async def sweep(self) -> list[str]:
        return await sweep(self._engine)

    async def _remove_left_behind(self) -> None:
        for container in self._left_behind:
            try:
                await remove(self._engine, container)
            except SandboxError:
                return  # reported when it happened; a sweep finds it by its labels
