"""Who gets the signals of a run."""

import asyncio
import signal
import threading

from headrace.engine.shutdown import Shutdown, Stop, signals


async def test_a_signal_is_a_request_and_its_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    shutdown, heard = Shutdown(), asyncio.Event()
    shutdown.listener = heard.set
    with signals(shutdown):
        signal.raise_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            await heard.wait()
    assert (shutdown.stop, shutdown.reason) == (Stop.FINISH, "SIGTERM")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_in_another_thread_leaves_signals_alone() -> None:
    ended: list[Stop] = []

    async def use() -> None:
        shutdown = Shutdown()
        with signals(shutdown):
            ended.append(shutdown.stop)

    thread = threading.Thread(target=lambda: asyncio.run(use()))
    thread.start()
    thread.join(10)
    assert ended == [Stop.NONE]
