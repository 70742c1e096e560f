"""The contract of a sandbox provider, as tests to inherit.

    from headrace.sandbox.conformance import SandboxConformance

    class TestMine(SandboxConformance):
        @pytest_asyncio.fixture
        async def provider(self) -> AsyncIterator[MyProvider]:
            async with MyProvider() as provider:
                yield provider

Every named behaviour of `base.py` is a test; a provider passes all of them. The subclass may set
`recipe` (the image: bash, coreutils, tar and python3 are needed in it) and `deadline_s`, and extend
`leftovers` with what its provider could leave on the machine. Each test opens a sandbox of its own.

`TerminalConformance` is the same for `Sandbox.terminal`; its image needs `less` and `top` too.

Needs pytest and pytest-asyncio, which headrace itself does not: only tests import this. It measures
no speed.
"""

import pytest

_PARTS = ("suite", "shell", "deadline", "exec", "files", "terminal", "walls")
pytest.register_assert_rewrite(*(f"headrace.sandbox.conformance_{part}" for part in _PARTS))

from headrace.sandbox.conformance_deadline import (  # noqa: E402 - after the line above
    Cancellation,
    Deadlines,
    OneAtATime,
)
from headrace.sandbox.conformance_exec import Exec, Wrecked  # noqa: E402
from headrace.sandbox.conformance_files import Archives, Files  # noqa: E402
from headrace.sandbox.conformance_shell import Commands, ShellEnd, ShellState  # noqa: E402
from headrace.sandbox.conformance_suite import Suite  # noqa: E402
from headrace.sandbox.conformance_terminal import TerminalConformance  # noqa: E402
from headrace.sandbox.conformance_walls import Bounds, Close, Spec, Walls  # noqa: E402

__all__ = ["SandboxConformance", "Suite", "TerminalConformance"]


class SandboxConformance(
    ShellState,
    Commands,
    ShellEnd,
    Deadlines,
    Cancellation,
    OneAtATime,
    Exec,
    Wrecked,
    Files,
    Archives,
    Spec,
    Bounds,
    Walls,
    Close,
):
    """Every behaviour a provider owes. Subclass it with a fixture `provider`."""
