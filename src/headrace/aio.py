"""The only file with raw tasks: structured helpers over asyncio.

Rules it keeps: a task never outlives the block that started it; an error or a cancellation ends
its siblings; teardown is finished even when the caller is cancelled. It does not retry, log or
swallow anything.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from asyncio_pool import AioPool

T = TypeVar("T")
R = TypeVar("R")


async def fan_out(
    call: Callable[[T], Coroutine[Any, Any, R]], items: Iterable[T], *, limit: int
) -> list[R]:
    """Await `call(item)` for every item, at most `limit` at a time; results in item order.

    The first error, or a cancellation of the caller, cancels what still runs, waits for it to
    end, and is raised. `asyncio_pool` bounds the work; by itself it cancels nothing and its tasks
    have no parent, which is why it is only used here.
    """
    pool = AioPool(size=limit)
    futures: list[asyncio.Future[R]] = []
    failed: list[BaseException] = []

    async def one(item: T) -> R:
        try:
            return await call(item)
        except BaseException as error:
            failed.append(error)
            raise

    try:
        for item in items:
            futures.append(await pool.spawn(one(item)))
            if failed:
                break
        if futures:
            await asyncio.wait(futures, return_when=asyncio.FIRST_EXCEPTION)
        if failed:
            raise failed[0]
        return [future.result() for future in futures]
    finally:
        if not pool.is_empty:
            await run_shielded(_end(pool))
        for future in futures:
            if future.done() and not future.cancelled():
                future.exception()  # retrieved, so that asyncio does not report it again


async def _end(pool: AioPool) -> None:
    # A task that is cancelled before its first step would never give its place back.
    await asyncio.sleep(0)
    if not pool.is_empty:
        await pool.cancel()


async def run_shielded(work: Coroutine[Any, Any, R]) -> R:
    """Await `work` to its end even if the caller is cancelled; then deliver the cancellation.

    For teardown only: the caller bounds `work` with a deadline of its own.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as e:
            if task.cancelled():
                raise
            cancelled = e
        except BaseException:
            break
    if cancelled is not None:
        if not task.cancelled():
            task.exception()
        raise cancelled
    return task.result()


@asynccontextmanager
async def background(work: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """Run `work` beside the block; it is cancelled and awaited when the block ends.

    An error in `work` ends the block as a task group does: the block is cancelled and the error
    is raised, unwrapped if it is the only one.
    """
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            try:
                yield task
            finally:
                task.cancel()
    except BaseExceptionGroup as group_error:
        raise unwrap(group_error) from None


def unwrap(error: BaseException) -> BaseException:
    """The single leaf of an exception group, or the group itself when it has several."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def first_of(*events: asyncio.Event) -> None:
    """Return as soon as any of the events is set."""
    if any(event.is_set() for event in events):
        return
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await run_shielded(asyncio.wait(tasks))  # not by awaiting each: theirs and ours look alike


async def in_thread(call: Callable[..., R], *args: Any) -> R:
    """Run blocking work in the default thread pool. The thread is not stopped on cancellation."""
    return await asyncio.to_thread(call, *args)
