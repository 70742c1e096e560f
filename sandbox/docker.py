"""The `docker` provider: each sandbox is a container of the engine behind a Unix socket.

Rule: an episode costs the engine four calls: create, attach, start, and a wait for its removal;
one more for the channel that kills, and for each of ours where the engine does not share our pipes.
Everything created carries labels that say who owns it (`docker_sweep`). It bounds nothing itself:
how many start at once is the caller's.

The parts: `docker_engine` (the client and its errors), `docker_container` (what is created),
`docker_stream` (attach and exec), `docker_pipes` (our channel without an exec), `docker_sandbox`
(one container), `docker_images` and `docker_context` (images), `docker_sweep` (owners and removal).
"""

import os
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import msgspec

from headrace.aio import in_thread, run_shielded
from headrace.configs.models import ImagesConfig
from headrace.errors import ProviderGone, SandboxError
from headrace.sandbox import leases
from headrace.sandbox.base import Footprint, SandboxSpec
from headrace.sandbox.compose_docker import Compose
from headrace.sandbox.docker_container import HOSTS, config
from headrace.sandbox.docker_engine import EngineClient, available, socket_path
from headrace.sandbox.docker_images import ImageFacts, Images, Progress
from headrace.sandbox.docker_pipes import PipeRooms
from headrace.sandbox.docker_sandbox import DockerSandbox
from headrace.sandbox.docker_storage import Storage
from headrace.sandbox.docker_sweep import labels, remove, remove_project, sweep
from headrace.sandbox.egress_proxy import lacks, proxied, proxy_env, wants_proxy
from headrace.sandbox.refusals import no_allow_list
from headrace.sandbox.scripts import KEEP_ALIVE, beside, first_process
from headrace.tasks.recipes import recipes_of
from headrace.types import EnvironmentRecipe, Task

__all__ = ["DockerProvider", "available", "socket_path"]

LOOK_S = 30.0
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_.-]")


class DockerProvider:
    """See `headrace.sandbox.base.Provider`. Raises `UsageError` for an address it cannot use."""

    name = "docker"
    footprint = Footprint(memory_bytes=5 << 20, processes=16, files=5)

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
        self._compose = Compose(self._engine, self._images, run_id=run_id)
        self._storage = Storage(self._engine)
        self.rooms = PipeRooms()
        """Where the channels into containers are opened."""
        self._run_id = run_id
        self._left_behind: list[str] = []
        self._projects_left: list[str] = []

    async def __aenter__(self) -> "DockerProvider":
        await self._engine.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            if self._left_behind or self._projects_left:
                await run_shielded(self._remove_left_behind())
        finally:
            await self.rooms.aclose()
            await self._engine.__aexit__(*exc)

    async def prepare(self, recipe: EnvironmentRecipe) -> str:
        if recipe.compose is not None:
            return await self._compose.prepare(recipe)
        return await self._images.ensure(recipe)

    async def refuses(self, task: Task, *, network: bool) -> str | None:
        """See `Provider.refuses`."""
        for recipe in recipes_of(task):
            if recipe.compose is not None:
                if reason := await self._compose.refuses(recipe):
                    return reason
        return no_allow_list(task, follow=network, lacks=lacks())

    @asynccontextmanager
    async def open(self, spec: SandboxSpec) -> AsyncIterator[DockerSandbox]:
        """See `Provider.open`."""
        async with AsyncExitStack() as stack:
            if spec.compose is not None:
                left = self._projects_left.append
                sandbox: DockerSandbox = await stack.enter_async_context(
                    self._compose.open(spec, on_left_behind=left)
                )
            else:
                sandbox = await stack.enter_async_context(self._open_one(spec))
            if wants_proxy(spec):
                await stack.enter_async_context(self._proxied(sandbox, spec))
            yield sandbox

    @asynccontextmanager
    async def _open_one(self, spec: SandboxSpec) -> AsyncIterator[DockerSandbox]:
        image = await self._images.facts(spec.image)
        body = config(
            msgspec.structs.replace(spec, env={**proxy_env(spec), **spec.env}),
            command=_command(spec, image),
            labels=labels(self._run_id, spec.episode),
            storage=await self._storage.enforced(spec),
        )
        sandbox = DockerSandbox(
            self._engine,
            f"headrace-{_NOT_IN_A_NAME.sub('', spec.episode)[:16]}-{secrets.token_hex(4)}",
            spec,
            workdir=spec.workdir or image.workdir,
            image_user=image.user,
            on_left_behind=self._left_behind.append,
            rooms=self.rooms,
        )
        try:
            await sandbox.start(body)
            yield sandbox
        finally:
            await sandbox.aclose()

    async def sweep(self) -> list[str]:
        """See `Provider.sweep`."""
        return [*await sweep(self._engine), *await in_thread(leases.sweep)]

    @asynccontextmanager
    async def _proxied(self, sandbox: DockerSandbox, spec: SandboxSpec) -> AsyncIterator[None]:
        """A proxy in each network of the sandbox, while it follows the spec's policy."""
        assert spec.egress is not None
        # Containers may share one: `network_mode: service:...`. One that has ended has none.
        networks = {_network_of(pid): pid for pid in await sandbox.pids()}
        networks.pop("", None)
        seen = await sandbox.exec("readlink /proc/self/ns/net", timeout_s=LOOK_S)
        if seen.stdout.decode(errors="replace").strip() not in networks:
            raise SandboxError(
                "the proxy of a sandbox could not be opened: the engine's processes are not "
                "visible from here (is it on another machine, or are we in a container?): run "
                "beside the engine, or set sandbox.network = 'none'"
            )
        async with proxied(spec.egress, list(networks.values())):
            yield

    async def _remove_left_behind(self) -> None:
        """Once more; what cannot be removed now was reported, and a sweep finds it."""
        for container in self._left_behind:
            try:
                await remove(self._engine, container)
            except ProviderGone:
                return
            except SandboxError:
                continue  # an engine that was killed may not know the state of one, but of others
        for project in self._projects_left:
            with suppress(SandboxError):
                await remove_project(self._engine, project)


def _command(spec: SandboxSpec, image: ImageFacts) -> list[str]:
    """The first process, with the image's entrypoint beside it where there is one."""
    entry = (*image.entrypoint, *KEEP_ALIVE) if image.entrypoint else ()
    command = first_process(spec.user or image.user, beside(image.workdir, image.user, entry))
    if entry:  # it starts before anything that the shell is sent
        command[2] = HOSTS + command[2]
    return command


def _network_of(pid: int) -> str:
    """The network namespace of a process, as `readlink` says it; empty when it is not there."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""
