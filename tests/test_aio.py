"""Structured helpers: nothing outlives its block, nothing is swallowed."""

import asyncio

import pytest

from headrace.aio import background, fan_out, first_of, run_shielded, unwrap


async def test_fan_out_keeps_the_order_of_the_items() -> None:
    gates = [asyncio.Event() for _ in range(3)]

    async def call(i: int) -> int:
        if i < 2:
            await gates[i + 1].wait()
        gates[i].set()
        return i * 10

    assert await fan_out(call, range(3), limit=3) == [0, 10, 20]


async def test_fan_out_never_runs_more_than_its_limit() -> None:
    running = most = 0

    async def call(i: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1

    await fan_out(call, range(20), limit=4)
    assert most == 4


async def test_an_error_ends_the_siblings_of_a_fan_out() -> None:
    ended: list[int] = []

    async def call(i: int) -> None:
        if i == 1:
            raise ValueError("one")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(i)

    with pytest.raises(ValueError, match="one"):
        async with asyncio.timeout(5):
            await fan_out(call, range(3), limit=3)
    assert sorted(ended) == [0, 2]


async def test_an_error_ends_a_fan_out_that_is_still_handing_out_items() -> None:
    async def call(i: int) -> None:
        if i == 0:
            raise ValueError("early")

    with pytest.raises(ValueError, match="early"):
        async with asyncio.timeout(5):
            await fan_out(call, range(1000), limit=2)


async def test_cancelling_the_caller_ends_the_tasks_of_a_fan_out() -> None:
    started = asyncio.Event()
    ended = asyncio.Event()

    async def call(i: int) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(fan_out(call, [1], limit=1))
        await started.wait()
        task.cancel()
    assert ended.is_set()


async def test_a_fan_out_over_nothing_is_empty() -> None:
    async def call(i: int) -> int:
        return i

    assert await fan_out(call, [], limit=1) == []


async def test_shielded_work_finishes_before_the_cancellation_is_delivered() -> None:
    begun, gate, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def teardown() -> None:
        begun.set()
        await gate.wait()
        finished.set()

    async def caller() -> None:
        await run_shielded(teardown())

    async with asyncio.TaskGroup() as group:
        task = group.create_task(caller())
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0)
        assert not finished.is_set()
        gate.set()
    assert finished.is_set()
    assert task.cancelled()


async def test_an_error_of_shielded_work_reaches_the_caller() -> None:
    async def teardown() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await run_shielded(teardown())


async def test_background_work_ends_with_its_block() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with background(work()):
        await asyncio.sleep(0)
    assert ended.is_set()


async def test_an_error_in_background_work_ends_the_block_and_comes_out_bare() -> None:
    async def work() -> None:
        raise ValueError("behind")

    with pytest.raises(ValueError, match="behind"):
        async with asyncio.timeout(5), background(work()):
            await asyncio.Event().wait()


async def test_the_first_event_is_enough() -> None:
    never, now = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(first_of(never, now))
        await asyncio.sleep(0)
        now.set()


@pytest.mark.parametrize("steps", range(7))
async def test_first_of_is_cancelled_at_whatever_moment_it_is(steps: int) -> None:
    """Also while it ends what it still waits for."""
    never, now = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        waiting = group.create_task(first_of(never, now))
        await asyncio.sleep(0)
        now.set()
        for _ in range(steps):
            await asyncio.sleep(0)
        ended = waiting.done()
        waiting.cancel()
    assert waiting.cancelled() is not ended


def test_a_group_of_several_errors_stays_a_group() -> None:
    group = ExceptionGroup("both", [ValueError("a"), KeyError("b")])
    assert unwrap(ExceptionGroup("outer", [group])) is group
