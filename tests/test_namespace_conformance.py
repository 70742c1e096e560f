"""The `namespace` provider keeps the whole contract."""

from collections.abc import AsyncIterator

import pytest

from headrace.sandbox.conformance import SandboxConformance
from headrace.sandbox.namespace import NamespaceProvider

pytestmark = pytest.mark.namespace


class TestNamespace(SandboxConformance):
    @pytest.fixture
    async def provider(
        self, unavailable: dict[str, str | None]
    ) -> AsyncIterator[NamespaceProvider]:
        if unavailable["namespace"] is not None:
            pytest.skip(f"namespace: {unavailable['namespace']}")
        async with NamespaceProvider() as provider:
            yield provider
