"""One engine process as the one that starts it sees it: its line, its log, its end.

Rule: it is gone when the block that started it is left, however that ends; its last words are kept.
"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from headrace import errors
from headrace.aio import in_thread, run_shielded
from headrace.engine.wire import FromWorker, Line, Now, Places, ToWorker, Trouble, starters_end
from headrace.errors import ContractError, InfrastructureError

COMMAND: Final = (sys.executable, "-P", "-m", "headrace.engine.worker")
LAST_LOOK_S = 2.0
"""To read what it said, had we only not listened."""
END_S = 60.0
"""For a process that is asked to end, its sandboxes included."""
TAIL_BYTES = 500


class Worker:
    """One engine process, as it is seen from here."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.line: Line[ToWorker, FromWorker] | None = None
        self.now: Now | None = None
        self.places: Places | None = None
        self.over = False
        """It is gone, or said its last word."""
        self.orderly = False

    def send(self, message: ToWorker) -> None:
        if self.line is not None and not self.over:
            self.line.send(message)


def error_of(worker: int, trouble: Trouble) -> Exception:
    """What ended a process, as the error that it was there."""
    kind = getattr(errors, trouble.kind, None)
    if isinstance(kind, type) and issubclass(kind, errors.HeadraceError):
        return kind(trouble.message)
    return ContractError(f"engine process {worker} ended by an error:\n{trouble.message}")


@asynccontextmanager
async def started(
    command: Sequence[str], log: Path, locks: Sequence[int]
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Line[ToWorker, FromWorker]]]:
    """An engine process and its line. It is gone when the block is left, however that ends."""
    ours, its = socket.socketpair()
    try:
        with await in_thread(log.open, "ab") as file:
            process = await asyncio.create_subprocess_exec(
                *command,
                *map(str, (its.fileno(), *locks)),
                pass_fds=(its.fileno(), *locks),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C is the starting process's to act on
            )
    except OSError as e:
        ours.close()
        raise InfrastructureError(f"an engine process could not be started: {e}") from e
    finally:
        its.close()
    try:
        line = await starters_end(ours)
        try:
            yield process, line
        finally:
            line.close()
    finally:
        await run_shielded(_end(process))


async def heard(line: Line[ToWorker, FromWorker], silent_s: float) -> FromWorker | None:
    """The next message; None at the end of the line. Raises `TimeoutError` after such a silence.

    It is this process that may have stood still (Ctrl-Z): what was said meanwhile lies there then.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(silent_s):
            return await line.receive()
    async with asyncio.timeout(LAST_LOOK_S):
        return await line.receive()


async def _end(process: asyncio.subprocess.Process) -> None:
    """It has seen the end of its line; it closes its sandboxes. Not for ever."""
    try:
        async with asyncio.timeout(END_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def how_it_ended(worker: int, code: int | None, log: Path) -> str:
    how = f"exit code {code}" if code is None or code >= 0 else f"signal {-code}"
    said = log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()
    return f"engine process {worker} has ended ({how})" + (
        f"; its log ends: {said}" if said else ""
    )


def drop_if_empty(log: Path) -> None:
    with suppress(OSError):
        if log.stat().st_size == 0:
            log.unlink()
