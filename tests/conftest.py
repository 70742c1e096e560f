"""What every test may rely on: which real parts this machine has."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
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


@pytest.fixture(
    params=[
        pytest.param("namespace", marks=pytest.mark.namespace),
        pytest.param("docker", marks=pytest.mark.docker),
    ]
)
def provider(request: pytest.FixtureRequest, unavailable: dict[str, str | None]) -> Iterator[str]:
    """Each provider's name in turn; skipped with the reason where it cannot run."""
    reason = unavailable[request.param]
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    yield request.param
