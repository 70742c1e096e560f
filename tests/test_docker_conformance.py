"""The docker provider keeps the contract of every provider."""

import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from headrace.sandbox.conformance import SandboxConformance
from headrace.sandbox.docker import DockerProvider, available, socket_path


@pytest.mark.docker
@pytest.mark.timeout(120)
class TestDocker(SandboxConformance):
    """A container and its episode's label are gone when the sandbox is closed."""

    @pytest_asyncio.fixture
    async def provider(self) -> AsyncIterator[DockerProvider]:
        reason = await available()
        if reason is not None:
            pytest.skip(f"{reason}; then export the DOCKER_HOST it prints")
        async with DockerProvider(run_id="conformance") as provider:
            yield provider

    async def leftovers(self, episode: str) -> list[str]:
        filters = json.dumps({"label": [f"dev.headrace.episode={episode}"]})
        url = f"http://docker/containers/json?all=1&filters={filters}"
        connector = aiohttp.UnixConnector(socket_path())
        async with aiohttp.ClientSession(connector=connector) as session, session.get(url) as got:
            containers = [str(container["Names"]) for container in await got.json()]
        return containers + await super().leftovers(episode)
