"""Several containers as one sandbox: a task's compose file, run for one episode.

Rule: `docker compose` normalises the file once per task and makes and starts the containers of each
episode; the agent's shell is attached through the engine as always. What is removed is found by
the episode's label, so that removal needs neither the file nor the plugin, and a sweep does the
same. Everything of one episode is its own: project, containers, networks, volumes, folders.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from headrace.aio import in_thread
from headrace.errors import ImageError, ProviderGone, SandboxError, SandboxFull, TaskError
from headrace.sandbox import compose_networks
from headrace.sandbox.base import Sandbox, SandboxSpec
from headrace.sandbox.compose import CONTAINER, IMAGE, base_document, refusal, variables, wanted
from headrace.sandbox.compose_cli import ComposeCli
from headrace.sandbox.compose_files import Scratch, scan
from headrace.sandbox.compose_project import (
    Names,
    copied_folders,
    image_of,
    limits_of,
    networks_of,
    project,
)
from headrace.sandbox.docker_buildx import Buildx
from headrace.sandbox.docker_context import pack
from headrace.sandbox.docker_engine import EngineClient
from headrace.sandbox.docker_images import LABEL, RUN_LABEL, Images
from headrace.sandbox.docker_sandbox import DockerSandbox
from headrace.sandbox.docker_sweep import PROJECT, labels, remove_project
from headrace.sandbox.egress_proxy import proxy_env
from headrace.sandbox.rootfs import BASE_IMAGE
from headrace.types import CommandResult, ComposeFile, EnvironmentRecipe, Record

CONFIG_S = 30.0
CREATE_S = 180.0
INSPECT_S = 60.0
HEALTH_POLL_S = 0.25
LOG_LINES = 20
_BUILD_CONTENT = ("args", "target", "labels", "extra_hosts", "network", "shm_size")
"""Of a service's `build`: what a plain build has none of and the content depends on."""
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9_-]")

log = logging.getLogger("headrace.sandbox.docker")


class Prepared(Record, frozen=True, kw_only=True):
    """A compose file that was read, judged, and whose images are there."""

    document: dict[str, Any]
    images: dict[str, str]
    timeout_s: float


class Compose:
    """The compose files of one provider."""

    def __init__(self, engine: EngineClient, images: Images, *, run_id: str) -> None:
        self._engine = engine
        self._images = images
        self._run_id = run_id
        self._cli = ComposeCli(engine.socket)
        self._buildx = Buildx(engine.socket)
        self._prepared: dict[ComposeFile, Prepared] = {}
        self._documents: dict[ComposeFile, dict[str, Any]] = {}
        self._failures: dict[ComposeFile, str] = {}
        self._locks: dict[ComposeFile, asyncio.Lock] = {}

    async def refuses(self, recipe: EnvironmentRecipe) -> str | None:
        """Why the compose file of `recipe` cannot be run here, or None. Reads it."""
        assert recipe.compose is not None
        lacks = await self._cli.lacks()
        if lacks is not None:
            return f"it has a compose file, and {lacks}"
        try:
            async with self._lock(recipe.compose):
                await self._document(recipe)
        except ImageError as e:
            return str(e)
        return None

    async def prepare(self, recipe: EnvironmentRecipe) -> str:
        """The name of the agent's image; those of the other services are there too.

        Raises `ImageError`, for the life of the provider the same one.
        """
        compose = recipe.compose
        assert compose is not None
        async with self._lock(compose):
            if compose in self._failures:
                raise ImageError(self._failures[compose])
            if compose not in self._prepared:
                try:
                    document = await self._document(recipe)
                    images = {
                        service: await self._image(recipe, document, service)
                        for service in document["services"]
                    }
                except ImageError as e:
                    self._failures[compose] = str(e)
                    raise
                self._prepared[compose] = Prepared(
                    document=document, images=images, timeout_s=recipe.build_timeout_s
                )
            return self._prepared[compose].images[compose.service]

    @asynccontextmanager
    async def open(
        self,
        spec: SandboxSpec,
        *,
        on_left_behind: Callable[[str], None],
    ) -> AsyncIterator["ComposeSandbox"]:
        """Every service started and healthy."""
        compose = spec.compose
        assert compose is not None
        await self.prepare(EnvironmentRecipe(image=spec.image, compose=compose, env=spec.env))
        prepared = self._prepared[compose]
        image = await self._images.facts(prepared.images[compose.service])
        name = f"headrace-{_NOT_IN_A_NAME.sub('', spec.episode.lower())[:16]}-"
        name += secrets.token_hex(4)
        own = {**labels(self._run_id, spec.episode), PROJECT: name}
        given = prepared.document["services"][compose.service]
        workdir = spec.workdir or given.get("working_dir") or image.workdir
        async with Scratch(name, spec.episode, copied_folders(prepared.document)) as folders:
            names = Names(
                project=name,
                networks={net: f"{name}_{net}" for net in networks_of(prepared.document)},
                folders=folders,
                labels=own,
            )
            document = project(
                prepared.document,
                spec,
                names,
                prepared.images,
                image_user=image.user,
                image_workdir=image.workdir,
                entrypoint=image.entrypoint,
                env=proxy_env(spec, beside=_known_as(prepared.document)),
            )
            sandbox = ComposeSandbox(
                self._engine,
                names.container(compose.service),
                _limited(spec, document["services"][compose.service]),
                workdir=str(workdir),
                image_user=given.get("user") or image.user,
                on_left_behind=on_left_behind,
                cli=self._cli,
                document=document,
                names=names,
                timeout_s=prepared.timeout_s,
            )
            try:
                await sandbox.start({})
                yield sandbox
            finally:
                await sandbox.aclose()

    # --- inside ---

    def _lock(self, compose: ComposeFile) -> asyncio.Lock:
        return self._locks.setdefault(compose, asyncio.Lock())

    async def _document(self, recipe: EnvironmentRecipe) -> dict[str, Any]:
        """The normalised file. Raises `ImageError` for one that cannot be read or is refused."""
        compose = recipe.compose
        assert compose is not None
        if compose not in self._documents:
            try:
                text = await in_thread(scan, compose)
            except (TaskError, OSError) as e:
                raise ImageError(f"its compose file cannot be used: {e}") from e
            out = await self._cli.run(
                ("-f", "-", "-f", compose.path, "--project-directory", compose.context,
                 "-p", CONTAINER, "config", "--format", "json"),
                doing=f"its compose file {compose.path} cannot be read",
                timeout_s=CONFIG_S,
                stdin=msgspec.json.encode(base_document(compose)),
                variables=wanted(variables(recipe), text),
                error=ImageError,
            )  # fmt: skip
            document = msgspec.json.decode(out)
            reason = await in_thread(refusal, document, compose)
            if reason is not None:
                raise ImageError(reason)
            self._documents[compose] = document
        return self._documents[compose]

    async def _image(
        self, recipe: EnvironmentRecipe, document: dict[str, Any], service: str
    ) -> str:
        compose = recipe.compose
        assert compose is not None
        build = document["services"][service].get("build")
        if build:
            return await self._built(recipe, service, build)
        name = image_of(document, service)
        if name != IMAGE:
            return await self._images.ensure(_plain(recipe, image=name))
        dockerfile = recipe.dockerfile or str(Path(compose.context) / "Dockerfile")
        if recipe.image is not None:
            return await self._images.ensure(_plain(recipe, image=recipe.image))
        if not await in_thread(os.path.isfile, dockerfile):
            raise ImageError(
                f"service {service} of {compose.path} names no image, and there is no {dockerfile}"
            )
        context = recipe.context or compose.context
        return await self._images.ensure(_plain(recipe, dockerfile=dockerfile, context=context))

    async def _built(self, recipe: EnvironmentRecipe, service: str, build: dict[str, Any]) -> str:
        context = build["context"]
        dockerfile = str(Path(context) / build.get("dockerfile", "Dockerfile"))
        if not await in_thread(os.path.isfile, dockerfile):
            raise ImageError(f"service {service}: expected a Dockerfile, found no {dockerfile}")
        if not any(build.get(key) for key in _BUILD_CONTENT):
            plain = _plain(recipe, dockerfile=dockerfile, context=context)
            return await self._images.ensure(plain)
        if BASE_IMAGE in await in_thread(_text, dockerfile):
            await self._images.ensure(_plain(recipe, image=BASE_IMAGE))
        return await self._build(recipe, service, build, dockerfile)

    async def _build(
        self, recipe: EnvironmentRecipe, service: str, build: dict[str, Any], dockerfile: str
    ) -> str:
        """A build with arguments or a target, by `docker compose build`; named by its content."""
        content = {key: build[key] for key in _BUILD_CONTENT if build.get(key)}
        with await in_thread(pack, build["context"], dockerfile) as packed:
            digest = hashlib.file_digest(packed.tar, "sha256")  # its bytes are repeatable
        digest.update(msgspec.json.encode(content, order="deterministic"))
        name = f"headrace/task:{digest.hexdigest()[:24]}"
        if await self._images.find(name) is None:
            own = {LABEL: digest.hexdigest(), RUN_LABEL: self._run_id}
            section = {
                **content,
                "context": build["context"],
                "dockerfile": dockerfile,
                "labels": {**(build.get("labels") or {}), **own},
            }
            document = {"services": {service: {"image": name, "build": section}}}
            await self._cli.run(
                ("-f", "-", "-p", "headrace-build", "build", service),
                doing=f"could not build service {service} from {dockerfile}",
                timeout_s=recipe.build_timeout_s,
                stdin=msgspec.json.encode(document),
                variables={"DOCKER_BUILDKIT": "0"} if await self._buildx.lacks() else {},
                error=ImageError,
            )
        return name


def _known_as(document: Mapping[str, Any]) -> list[str]:
    """The names by which services reach each other."""
    services = document["services"]
    own = [
        service["container_name"] for service in services.values() if "container_name" in service
    ]
    return [*services, *own]


def _plain(recipe: EnvironmentRecipe, **of: str) -> EnvironmentRecipe:
    return EnvironmentRecipe(**of, build_timeout_s=recipe.build_timeout_s)  # type: ignore[arg-type]


def _limited(spec: SandboxSpec, service: Mapping[str, Any]) -> SandboxSpec:
    """`spec` with the limits that a service has, which its file may have set."""
    return msgspec.structs.replace(spec, limits=limits_of(service, spec.limits))


def _text(path: str) -> str:
    return Path(path).read_text(errors="replace")


class ComposeSandbox(DockerSandbox):
    """The agent's service; removing it removes the project."""

    def __init__(
        self,
        engine: EngineClient,
        container: str,
        spec: SandboxSpec,
        *,
        workdir: str,
        image_user: str,
        on_left_behind: Callable[[str], None],
        cli: ComposeCli,
        document: dict[str, Any],
        names: Names,
        timeout_s: float,
    ) -> None:
        super().__init__(
            engine,
            container,
            spec,
            workdir=workdir,
            image_user=image_user,
            on_left_behind=on_left_behind,
        )
        self._cli = cli
        self._document = document
        self._names = names
        self._timeout_s = timeout_s
        self._sidecars: dict[str, Sidecar] = {}

    def service(self, name: str) -> Sandbox:
        """See `Sandbox.service`."""
        self._check()
        assert self._spec.compose is not None
        if name == self._spec.compose.service:
            return self
        services = self._document["services"]
        if name not in services:
            raise SandboxError(f"there is no service {name!r} beside {', '.join(services)}")
        if name not in self._sidecars:
            self._sidecars[name] = Sidecar(
                self._engine,
                self._names.container(name),
                _limited(self._spec, services[name]),
                workdir=str(services[name].get("working_dir") or ""),
                image_user=str(services[name].get("user") or ""),
                on_left_behind=lambda container: None,
            )
        return self._sidecars[name]

    async def pids(self) -> list[int]:
        """The first process of every container that runs."""
        states = await self._states()
        return [int(state["Pid"]) for state in states.values() if state.get("Running")]

    # --- in place of a single container's ---

    async def _create(self, body: Mapping[str, Any]) -> None:
        """Networks and containers, none of them started."""
        services = self._document["services"]
        for key, name in self._names.networks.items():
            hosts = sum(key in (service.get("networks") or ()) for service in services.values())
            await compose_networks.create(
                self._engine,
                name,
                hosts=hosts,
                network=self._spec.network,
                labels=self._names.labels,
            )
        await self._compose("create", timeout_s=CREATE_S)

    async def _begin(self) -> None:
        """Start in the order the file asks for; back when all with a health check are healthy."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._compose("start", timeout_s=self._timeout_s, waits=True)
                await self._healthy()
        except TimeoutError:
            raise SandboxError(
                f"start {self._names.project}: its services were not healthy within "
                f"{self._timeout_s:g} s{await self._what_they_say()}"
            ) from None
        except ProviderGone:
            raise
        except SandboxError as e:
            raise SandboxError(f"{e}{await self._what_they_say()}") from e

    async def _remove(self) -> None:
        for sidecar in self._sidecars.values():
            await sidecar.aclose()
        try:
            await remove_project(self._engine, self._names.project)
        except SandboxError as e:
            log.warning("%s was left behind: %s", self._names.project, e)
            self._on_left_behind(self._names.project)
        finally:
            self._close_pipes()

    # --- inside ---

    async def _compose(self, *args: str, timeout_s: float, waits: bool = False) -> None:
        doing = f"{args[0]} {self._names.project}"
        try:
            await self._cli.run(
                ("-f", "-", "-p", self._names.project, *args),
                doing=doing,
                timeout_s=timeout_s,
                stdin=msgspec.json.encode(self._document),
                waits=waits,
            )
        except SandboxError as e:
            lost = await self._engine.lost(doing, e)  # asks whether the engine still answers
            if isinstance(lost, ProviderGone):
                raise lost from e
            raise

    async def _healthy(self) -> None:
        """Wait until every container with a health check is. The caller has the deadline."""
        while True:
            states = await self._states()
            for service, state in states.items():
                if state.get("Health", {}).get("Status") == "unhealthy":
                    raise SandboxError(f"start {self._names.project}: {service} is unhealthy")
                if _failed(state):
                    raise SandboxError(
                        f"start {self._names.project}: {service} ended with exit code "
                        f"{state.get('ExitCode')}"
                    )
            if all(s.get("Health", {}).get("Status") != "starting" for s in states.values()):
                return
            await asyncio.sleep(HEALTH_POLL_S)

    async def _states(self) -> dict[str, dict[str, Any]]:
        found = {}
        for service in self._document["services"]:
            doing = f"inspect {self._names.container(service)}"
            async with self._engine.call(doing, timeout_s=INSPECT_S) as docker:
                container = docker.containers.container(self._names.container(service))
                found[service] = (await container.show())["State"]
        return found

    async def _what_they_say(self) -> str:
        """The end of the log of each service that failed, for an error."""
        said = ""
        with contextlib.suppress(SandboxError):
            for service, state in (await self._states()).items():
                health = state.get("Health") or {}
                if not _failed(state) and health.get("Status", "healthy") == "healthy":
                    continue
                checks = health.get("Log") or [{}]
                tail = checks[-1].get("Output", "").strip()[-300:]
                said += f"; {service}: {tail or await self._log_of(service)}"
        return said

    async def _log_of(self, service: str) -> str:
        if self._names.container(service) == self.container:
            return "no log"
        doing = f"read the log of {service}"
        async with self._engine.call(doing, timeout_s=INSPECT_S) as docker:
            container = docker.containers.container(self._names.container(service))
            lines = await container.log(stdout=True, stderr=True, tail=LOG_LINES)
        return "".join(lines).strip()[-500:] or "it printed nothing"


def _failed(state: Mapping[str, Any]) -> bool:
    return state.get("Status") in ("exited", "dead") and bool(state.get("ExitCode"))


class Sidecar(DockerSandbox):
    """Another service of the same project: our own channel only. Its container is not its own."""

    async def run(self, command: str, *, timeout_s: float) -> CommandResult:
        """Not for a sidecar: the agent has one shell."""
        raise SandboxError(f"{self.container} has no shell of the agent: use `exec`")

    async def _clear(self) -> None:
        raise SandboxFull(f"{self.container}: what runs in this service leaves us no process")

    async def _remove(self) -> None:
        self._close_pipes()
