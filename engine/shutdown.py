"""Two-stage shutdown: the first request finishes what is nearly done, the second cancels.

Rule: signal handlers are installed for the length of the block and put back after it. A request
only sets flags and wakes whoever drives; what it means for an episode is the driver's business.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum


class Stop(IntEnum):
    """How much of a stop was asked for."""

    NONE = 0
    FINISH = 1
    """Admit nothing more; what is nearly done may end within the grace period."""
    CANCEL = 2
    """Cancel everything now."""


class Shutdown:
    """What was asked for so far; it only ever grows."""

    def __init__(self) -> None:
        self.stop = Stop.NONE
        self.reason = ""
        self.listener: Callable[[], object] | None = None
        """Told of every request while episodes run. None: nothing can be finished yet."""

    def request(self, stop: Stop, reason: str) -> None:
        """Ask for at least `stop`."""
        self.reason = self.reason or reason
        self.stop = max(self.stop, stop)
        if self.listener is not None:
            self.listener()


@contextmanager
def signals(shutdown: Shutdown) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into requests while the block runs in the main thread.

    Without a listener (before the first and after the last episode) a signal cancels the task
    that entered the block, as Ctrl-C would. In another thread signals are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def received(name: str) -> None:
        shutdown.request(Stop.FINISH if shutdown.stop is Stop.NONE else Stop.CANCEL, name)
        if shutdown.listener is None:
            task.cancel()

    names = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
    before = {signum: signal.getsignal(signum) for signum in names}
    for signum, name in names.items():
        loop.add_signal_handler(signum, received, name)
    try:
        yield
    finally:
        for signum, handler in before.items():
            loop.remove_signal_handler(signum)
            signal.signal(signum, handler)
