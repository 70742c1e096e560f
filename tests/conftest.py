"""What every test may rely on: which real parts this machine has."""

import asyncio
from collections.abc import Callable, Mapping
from importlib import import_module

import pytest
import uvloop


def _reason(provider: str) -> str | None:
    """Why a provider cannot be used here, or None."""
    module = import_module(f"headrace.sandbox.{provider}")
    reason: str | None = asyncio.run(module.available())
    return reason


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the loop that runs use."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def unavailable() -> dict[str, str | None]:
    """By provider: why it cannot be used here, or None."""
    return {name: _reason(name) for name in ("docker", "namespace")}


NAMESPACE = pytest.param("namespace", marks=pytest.mark.namespace)
DOCKER = pytest.param("docker", marks=pytest.mark.docker)


def _usable(request: pytest.FixtureRequest, unavailable: dict[str, str | None]) -> str:
    name: str = request.param
    reason = unavailable[name]
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return name


@pytest.fixture(params=[NAMESPACE, DOCKER])
def provider(request: pytest.FixtureRequest, unavailable: dict[str, str | None]) -> str:
    """Each provider's name in turn; skipped with the reason where it cannot run."""
    return _usable(request, unavailable)


@pytest.fixture(params=[NAMESPACE])
def only_namespace(request: pytest.FixtureRequest, unavailable: dict[str, str | None]) -> str:
    """The name of that provider; skipped with the reason where it cannot run."""
    return _usable(request, unavailable)


@pytest.fixture(params=[DOCKER])
def only_docker(request: pytest.FixtureRequest, unavailable: dict[str, str | None]) -> str:
    """The name of that provider; skipped with the reason where it cannot run."""
    return _usable(request, unavailable)
