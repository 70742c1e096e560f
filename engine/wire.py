"""What an engine process and the one that started it say to each other.

Rule: frozen records in MessagePack, each behind four bytes of length, over a socket pair.
`ToWorker` goes down, `FromWorker` comes up. An end that is gone is the end of the messages, never
an error: what it means is decided by who reads (`fleet.py`, `worker.py`).
"""

import asyncio
import socket
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

import msgspec

from headrace.engine.events import Event
from headrace.engine.measured import Measured
from headrace.engine.parts import Planned
from headrace.engine.scheduler import Bounds
from headrace.engine.shutdown import Stop
from headrace.engine.status import Slow
from headrace.types import Record

MAX_BYTES: Final = 1 << 30
_LENGTH: Final = 4


# --- down -----------------------------------------------------------------------------------


class Begin(Record, frozen=True, kw_only=True, tag=True):
    """What a process needs to know before it opens its parts."""

    worker: int
    """From 1."""
    config: dict[str, Any]
    """Of the run, with the provider that was chosen and where the model answers."""
    folder: str
    """The run's."""
    label: str
    """What its sandboxes are named after."""
    opening: int
    """Sandboxes opened ahead at once."""
    kept: bool
    """The model server is the starting process's, which says when it is up (`Served`)."""


class Portion(Record, frozen=True, kw_only=True, tag=True):
    """More episodes, whole groups."""

    episodes: tuple[Planned, ...]
    tries: dict[str, int] = {}
    """Tries that other processes came to, by episode."""
    graded: dict[str, int] = {}
    """Episodes of a group that are graded already, by the task's digest."""


class Places(Record, frozen=True, kw_only=True, tag=True):
    """Its part of the run's bounds."""

    bounds: Bounds
    warm: int
    turn: int
    """Which of its bounds on the live ones this is; `Now` says it again."""


class Served(Record, frozen=True, kw_only=True, tag=True):
    """How the model server is."""

    up: bool
    gone: str | None = None
    """Why it will not be up again."""


class Halt(Record, frozen=True, kw_only=True, tag=True):
    """Finish what is nearly done, or cancel."""

    stop: Stop
    reason: str


class Finish(Record, frozen=True, kw_only=True, tag=True):
    """No more portions: end when nothing is left."""


ToWorker = Begin | Portion | Places | Served | Halt | Finish


# --- up -------------------------------------------------------------------------------------


class Ended(Record, frozen=True, kw_only=True):
    """An episode that is durable, or was let go."""

    id: str
    group: str
    graded: bool = False
    dropped: bool = False


class Told(Record, frozen=True, kw_only=True, tag=True):
    """What happened in the last moments."""

    events: tuple[Event, ...] = ()
    ended: tuple[Ended, ...] = ()


class Now(Record, frozen=True, kw_only=True, tag=True):
    """How it stands, each second."""

    stages: dict[str, int]
    live: int
    turn: int
    """Of the bounds that it keeps to."""
    wants: bool
    retries: int
    opened: int
    paused: bool
    """Its breaker: how often it opened, and whether it is open."""
    warm: int
    hits: int
    misses: int
    turns: int
    sampled_tokens: int
    started: int
    outcomes: dict[str, int]
    cpu_s: float
    start_s: float | None
    lag_s: float
    slowest: tuple[Slow, ...] = ()
    measured: Measured | None = None


class Trouble(Record, frozen=True, kw_only=True):
    """An error that ended it, or made it stop."""

    kind: str
    """Name of the class in `errors`; any other name is a bug."""
    message: str


class Bye(Record, frozen=True, kw_only=True, tag=True):
    """The last word of a process that ends in order."""

    last: Now | None = None
    trouble: Trouble | None = None


FromWorker = Told | Now | Bye

S = TypeVar("S", bound=ToWorker | FromWorker)
R = TypeVar("R", bound=ToWorker | FromWorker)


class Line(Generic[S, R]):
    """One end: sends `S`, receives `R`. `open` it on a connected socket, then `close`."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        receives: "msgspec.msgpack.Decoder[R]",
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = receives
        self._encoder = msgspec.msgpack.Encoder()
        self._gone = False
        self._length: int | None = None
        """Of the message that is on its way: a wait may be cancelled in the middle of it."""

    @property
    def gone(self) -> bool:
        """Nobody hears what is sent."""
        return self._gone or self._writer.is_closing()

    def send(self, message: S) -> None:
        """At once, or never when the other end is gone. Who sends much awaits `drained`."""
        if self.gone:
            return
        data = self._encoder.encode(message)
        self._writer.write(len(data).to_bytes(_LENGTH, "little") + data)

    async def drained(self) -> None:
        """The other end keeps up. Waits as long as it takes: its end is the deadline."""
        try:
            await self._writer.drain()
        except OSError:
            self._gone = True

    async def receive(self) -> R | None:
        """The next message; None when the other end is gone. Cancelling it loses nothing."""
        try:
            if self._length is None:
                self._length = int.from_bytes(await self._reader.readexactly(_LENGTH), "little")
            if self._length > MAX_BYTES:
                return None
            data = await self._reader.readexactly(self._length)
            self._length = None
            return self._decoder.decode(data)
        except (asyncio.IncompleteReadError, OSError):
            self._gone = True
            return None

    def close(self) -> None:
        """The other end sees it. Idempotent."""
        self._writer.close()

    async def closed(self) -> None:
        """What was sent has left, or nobody hears it."""
        with suppress(OSError):
            await self._writer.wait_closed()


async def workers_end(sock: socket.socket) -> Line[FromWorker, ToWorker]:
    """The line of an engine process."""
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    return Line(reader, writer, msgspec.msgpack.Decoder(ToWorker))


async def starters_end(sock: socket.socket) -> Line[ToWorker, FromWorker]:
    """The line of the process that starts them."""
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    return Line(reader, writer, msgspec.msgpack.Decoder(FromWorker))
