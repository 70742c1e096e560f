"""Which provider a run uses, and why.

Rule: `auto` never falls from one provider to the other in silence: the reason is a sentence that
the run stores and shows. What was asked for by name is used or refused, never replaced.
"""

from collections.abc import Callable

from headrace.configs.models import ImagesConfig, SandboxConfig
from headrace.errors import UsageError
from headrace.sandbox import docker, namespace
from headrace.sandbox.base import Provider

Progress = Callable[[str], None]


class Chosen:
    """A provider and the sentence that says why. `async with` opens and closes the provider."""

    def __init__(self, provider: Provider, reason: str) -> None:
        self.provider = provider
        self.reason = reason

    async def __aenter__(self) -> "Chosen":
        await self.provider.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.provider.__aexit__(*exc)


async def choose(
    config: SandboxConfig,
    *,
    images: ImagesConfig = ImagesConfig(),  # noqa: B008 - frozen
    run_id: str = "",
    progress: Progress | None = None,
) -> Chosen:
    """The provider for `config`, not opened yet. Raises `UsageError` when there is none."""
    wanted, socket = config.provider, config.docker_socket
    no_docker = no_namespace = None
    if wanted != "namespace":
        no_docker = await docker.available(socket)
        if no_docker is None:
            why = "as configured" if wanted == "docker" else "its engine answers on "
            why += "" if wanted == "docker" else docker.socket_path(socket)
            engine = docker.DockerProvider(
                socket=socket, run_id=run_id, progress=progress, images=images
            )
            return Chosen(engine, f"docker: {why}")
    if wanted != "docker":
        no_namespace = await namespace.available()
        if no_namespace is None:
            why = f"docker cannot be used: {no_docker}" if no_docker else "as configured"
            spaces = namespace.NamespaceProvider(run_id=run_id, progress=progress, images=images)
            return Chosen(spaces, f"namespace: {why}")
    raise UsageError(_nothing(wanted, {"docker": no_docker, "namespace": no_namespace}))


def _nothing(wanted: str, reasons: dict[str, str | None]) -> str:
    expected = "a provider that can run here" if wanted == "auto" else "that it can run here"
    lines = [f"  {name}: {reason}" for name, reason in reasons.items() if reason]
    return "\n".join([f"sandbox.provider = {wanted!r}: expected {expected}, found:", *lines])


async def sweep_all(socket: str | None = None) -> list[str]:
    """What each provider that can be used here removed; a line for each thing."""
    lines: list[str] = []
    if await docker.available(socket) is None:
        async with docker.DockerProvider(socket=socket) as engine:
            lines += await engine.sweep()
    if await namespace.available() is None:
        async with namespace.NamespaceProvider() as spaces:
            lines += await spaces.sweep()
    return lines
