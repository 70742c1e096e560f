"""Both providers keep the contract of a terminal."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from headrace.sandbox.conformance import TerminalConformance
from headrace.sandbox.docker import DockerProvider
from headrace.sandbox.namespace import NamespaceProvider

RUN = "terminals"


def _skip_without(name: str, unavailable: dict[str, str | None]) -> None:
    if unavailable[name] is not None:
        pytest.skip(f"{name}: {unavailable[name]}")


@pytest.mark.docker
class TestDockerTerminal(TerminalConformance):
    """An exec session with a terminal."""

    @pytest_asyncio.fixture
    async def provider(self, unavailable: dict[str, str | None]) -> AsyncIterator[DockerProvider]:
        _skip_without("docker", unavailable)
        async with DockerProvider(run_id=RUN) as provider:
            yield provider


@pytest.mark.namespace
class TestNamespaceTerminal(TerminalConformance):
    """A pseudo-terminal of the sandbox's own."""

    @pytest_asyncio.fixture
    async def provider(
        self, unavailable: dict[str, str | None]
    ) -> AsyncIterator[NamespaceProvider]:
        _skip_without("namespace", unavailable)
        async with NamespaceProvider(run_id=RUN) as provider:
            yield provider
