"""Which provider is chosen, and what the user reads."""

from pathlib import Path

import pytest

from headrace.configs.models import SandboxConfig
from headrace.errors import UsageError
from headrace.sandbox.docker import available as docker_available
from headrace.sandbox.namespace import available as namespace_available
from headrace.sandbox.providers import choose


async def test_docker_by_name_without_an_engine_is_refused_with_the_reason(tmp_path: Path) -> None:
    config = SandboxConfig(provider="docker", docker_socket=str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"(?s)'docker'.*there is no socket .*docker-engine.sh up"):
        await choose(config)


@pytest.mark.namespace
async def test_auto_without_an_engine_takes_namespace_and_says_why(tmp_path: Path) -> None:
    reason = await namespace_available()
    if reason is not None:
        pytest.skip(reason)
    chosen = await choose(SandboxConfig(docker_socket=str(tmp_path / "none")))
    assert chosen.provider.name == "namespace"
    assert chosen.reason.startswith("namespace: docker cannot be used: no Docker engine")
    assert "\n" not in chosen.reason


@pytest.mark.docker
async def test_auto_takes_the_engine_that_answers_and_opens_it() -> None:
    reason = await docker_available()
    if reason is not None:
        pytest.skip(f"{reason}; then export the DOCKER_HOST it prints")
    async with await choose(SandboxConfig()) as chosen:
        assert chosen.provider.name == "docker"
        assert chosen.reason.startswith("docker: its engine answers on /")
        assert isinstance(await chosen.provider.sweep(), list)


@pytest.mark.namespace
async def test_namespace_by_name_does_not_look_for_an_engine(tmp_path: Path) -> None:
    reason = await namespace_available()
    if reason is not None:
        pytest.skip(reason)
    config = SandboxConfig(provider="namespace", docker_socket=str(tmp_path / "none"))
    chosen = await choose(config)
    assert (chosen.provider.name, chosen.reason) == ("namespace", "namespace: as configured")
