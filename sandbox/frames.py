"""Output of a channel, cut at frames: the byte work under both shells.

Rule: bytes between frames pass unchanged, whatever they are, and memory stays bounded. A frame
counts only if its token is one the caller expects now; anything else that looks like one is
output. Nothing here knows about shells, commands or time.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

START = b"\x1ehr"
STOP = b"\x1e"
_MAX_FRAME = 160
MAX_DIGITS = 20


class Capture:
    """The first and last bytes of a stream, at most `keep` together."""

    __slots__ = ("_head", "_head_room", "_tail", "_tail_keep", "_tail_size", "total")

    def __init__(self, keep: int) -> None:
        self._head = bytearray()
        self._head_room = keep - keep // 2
        self._tail: deque[bytes] = deque()
        self._tail_keep = keep // 2
        self._tail_size = 0
        self.total = 0
        """Bytes seen."""

    def add(self, data: bytes) -> None:
        self.total += len(data)
        if self._head_room:
            head = data[: self._head_room]
            self._head += head
            self._head_room -= len(head)
            data = data[len(head) :]
        if data:
            self._tail.append(data)
            self._tail_size += len(data)
            while self._tail_size - len(self._tail[0]) >= self._tail_keep:
                self._tail_size -= len(self._tail.popleft())

    def extend(self, later: "Capture") -> None:
        """Append what a later capture of the same stream holds."""
        kept, cut = later.bytes_and_cut()
        self.add(kept)
        self.total += cut

    def bytes_and_cut(self) -> tuple[bytes, int]:
        """What was kept, and how many bytes are missing from its middle."""
        if not self._tail:
            return bytes(self._head), 0
        over = max(0, self._tail_size - self._tail_keep)
        first, *rest = self._tail
        # In one copy: what an artifact brings may be hundreds of megabytes.
        kept = b"".join((self._head, memoryview(first)[over:], *rest))
        return kept, self.total - len(kept)


class Stream:
    """One direction of a channel. `feed` it; it calls `on_frame(fields)` between outputs."""

    __slots__ = ("_carry", "_on_frame", "capture", "tokens")

    def __init__(self, on_frame: Callable[[list[bytes]], None], keep: int) -> None:
        self._on_frame = on_frame
        self._carry = b""
        self.tokens: set[bytes] = set()
        """Tokens of the frames that count."""
        self.capture = Capture(keep)

    def take(self, keep: int) -> Capture:
        """The output so far; a new capture of `keep` bytes takes its place."""
        taken, self.capture = self.capture, Capture(keep)
        return taken

    def feed(self, data: bytes) -> None:
        if self._carry:
            data = self._carry + data
            self._carry = b""
        at = 0
        while True:
            start = data.find(START, at)
            if start < 0:
                break
            stop = data.find(STOP, start + len(START), start + _MAX_FRAME)
            if stop < 0:
                if len(data) - start < _MAX_FRAME and self._may_be_frame(data[start:]):
                    self._output(data, at, start)
                    self._carry = data[start:]
                    return
                self._output(data, at, start + 1)
                at = start + 1
                continue
            fields = data[start + len(START) : stop].split(b" ")
            if fields[0] in self.tokens:
                self._output(data, at, start)
                at = stop + 1
                self._on_frame(fields)
            else:
                self._output(data, at, stop)
                at = stop
        tail = 2 if data.endswith(START[:2]) else 1 if data.endswith(START[:1]) else 0
        tail = min(tail, len(data) - at)
        self._output(data, at, len(data) - tail)
        self._carry = data[len(data) - tail :] if tail else b""

    def _may_be_frame(self, part: bytes) -> bool:
        head = part[len(START) :].split(b" ", 1)
        if len(head) > 1:
            return head[0] in self.tokens
        return any(token.startswith(head[0]) for token in self.tokens)

    def _output(self, data: bytes, start: int, stop: int) -> None:
        if stop > start:
            self.capture.add(data if stop - start == len(data) else data[start:stop])


def are_numbers(fields: Sequence[bytes], *places: int) -> bool:
    """Whether a frame has these fields, each empty or a number of a size that the system gives.

    The agent can read a token where it is root, and send a frame of its own.
    """
    return len(fields) > max(places) and all(
        len(fields[at]) < MAX_DIGITS and (not fields[at] or fields[at].isdigit()) for at in places
    )


class Latch:
    """Set once, or failed once; waiting on it may be given up and begun again."""

    __slots__ = ("_done", "_error", "_waiter")

    def __init__(self) -> None:
        self._done = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_set(self) -> bool:
        return self._done

    def set(self, error: Exception | None = None) -> None:
        if not self._done:
            self._done, self._error = True, error
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    async def wait_for(self, timeout_s: float) -> None:
        """`wait` with a deadline; at a fifth of the cost of `asyncio.timeout`."""
        if not self._done:
            loop = asyncio.get_running_loop()
            self._waiter = waiter = loop.create_future()
            timer = loop.call_later(timeout_s, _give_up, waiter)
            try:
                await waiter
            finally:
                timer.cancel()
        if self._error is not None:
            raise self._error

    async def wait(self) -> None:
        """Return when it is set; raise the error it was set with."""
        if not self._done:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._error is not None:
            raise self._error


def _give_up(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
