"""What a channel into a container is made of: its stdin, and the session that is open now.

Rule: a channel outlives its sessions. What the agent wrecks is replaced by a fresh session when it
is needed next; whether it was wrecked is found out by asking, once the agent has run something.
"""

import asyncio
from typing import Protocol

from headrace.errors import SandboxError
from headrace.sandbox.control import Control, Span

ANSWER_S = 2.0


class Stream(Protocol):
    """What carries a channel's stdin."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class Pipe:
    """Stdin of a stream that may not be open yet: what is written early is sent first."""

    def __init__(self) -> None:
        self._early: list[bytes] = []
        self._stream: Stream | None = None

    @property
    def connected(self) -> bool:
        return self._stream is not None

    def write(self, data: bytes) -> None:
        if self._stream is None:
            self._early.append(data)
        else:
            self._stream.write(data)

    def connect(self, stream: Stream) -> None:
        self._stream = stream
        for data in self._early:
            stream.write(data)
        self._early.clear()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


class Channel:
    """One of our two channels: the session that is open now, if one is."""

    def __init__(self) -> None:
        self.control: Control | None = None
        self.pipe = Pipe()
        self.commands_before = 0
        """How many commands the agent had run when it was last used."""

    def close(self) -> None:
        if self.control is not None:
            self.control.closed("this channel was replaced")
            self.control = None
        self.pipe.close()


async def answers(control: Control) -> bool:
    """Whether a channel still does. The agent may run as root: it can kill or stop it."""
    try:
        async with asyncio.timeout(ANSWER_S):
            await control.window(Span(0))
    except (TimeoutError, SandboxError):
        return False
    return True
