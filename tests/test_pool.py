"""The pool: sandboxes opened ahead, each handed out once, none left behind."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ContractError, SandboxError
from headrace.sandbox.base import Egress, SandboxSpec
from headrace.sandbox.fake import FakeProvider
from headrace.sandbox.pool import WARM, Pool
from headrace.types import EnvironmentRecipe, NetworkPolicy


def spec(image: str = "a", episode: str = "e") -> SandboxSpec:
    return SandboxSpec(image=image, episode=episode)


def specs(images: str) -> list[SandboxSpec]:
    return [spec(image, f"e{n}") for n, image in enumerate(images)]


@asynccontextmanager
async def pool_of(provider: FakeProvider, most: int = 4, opening: int = 4) -> AsyncIterator[Pool]:
    async with provider, Pool(provider, most=most, opening=opening) as pool:
        yield pool


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the pool tells nobody
            await asyncio.sleep(0)


async def test_what_is_expected_is_open_before_it_is_asked_for() -> None:
    provider = FakeProvider()
    async with pool_of(provider) as pool:
        pool.expect(specs("ab"))
        await until(lambda: provider.live == 2)
        provider.open_gate = asyncio.Event()  # nothing opens any more
        async with pool.open(spec("b")) as sandbox:
            assert (await sandbox.run("true", timeout_s=1)).exit_code == 0
        assert (pool.hits, pool.misses) == (1, 0)
    assert provider.live == 0


async def test_a_used_sandbox_is_closed_and_never_handed_out_again() -> None:
    provider = FakeProvider()
    async with pool_of(provider) as pool:
        pool.expect(specs("a"))
        async with pool.open(spec()) as first:
            pass
        assert provider.live == 0
        async with pool.open(spec()) as second:
            assert second is not first


async def test_one_that_is_on_its_way_is_waited_for_not_started_twice() -> None:
    provider = FakeProvider()
    provider.open_gate = asyncio.Event()
    async with pool_of(provider) as pool, asyncio.TaskGroup() as group:
        pool.expect(specs("a"))

        async def use() -> None:
            async with pool.open(spec()):
                pass

        group.create_task(use())
        await asyncio.sleep(0)
        provider.open_gate.set()
    assert provider.opened == 1


async def test_never_more_than_the_bound_are_kept() -> None:
    provider = FakeProvider()
    async with pool_of(provider, most=3) as pool:
        pool.expect(specs("aaaabbbb"))
        await until(lambda: provider.live == 3)
        assert pool.warm == 3


async def test_so_many_open_at_once_as_told() -> None:
    provider = FakeProvider()
    provider.open_gate = asyncio.Event()
    async with pool_of(provider, most=4, opening=2) as pool:
        pool.expect(specs("abcd"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert provider.opened <= 2
        provider.open_gate.set()
        await until(lambda: provider.live == 4)


async def test_what_nobody_expects_any_more_is_closed() -> None:
    provider = FakeProvider()
    async with pool_of(provider) as pool:
        pool.expect(specs("ab"))
        await until(lambda: provider.live == 2)
        pool.expect(specs("b"))
        await until(lambda: provider.live == 1)
        async with pool.open(spec("b")):
            pass
        assert pool.hits == 1


async def test_a_failure_ahead_costs_nobody_a_try() -> None:
    provider = FakeProvider()
    provider.open_errors.append(SandboxError("no room"))
    async with pool_of(provider) as pool:
        pool.expect(specs("a"))
        async with pool.open(spec()):
            pass
        assert (pool.hits, pool.misses) == (0, 1)


async def test_after_a_failure_nothing_is_opened_ahead_until_one_was_needed() -> None:
    provider = FakeProvider()
    provider.open_errors.append(SandboxError("no room"))
    async with pool_of(provider) as pool:
        pool.expect(specs("a"))
        await until(lambda: not provider.open_errors)
        for _ in range(10):
            pool.expect(specs("a"))
            await asyncio.sleep(0)
        assert (provider.opened, pool.warm) == (0, 0)
        async with pool.open(spec()):
            pass
        pool.expect(specs("a"))
        await until(lambda: provider.live == 1)


async def test_whoever_is_cancelled_while_waiting_leaves_nothing_behind() -> None:
    provider = FakeProvider()
    provider.open_gate = asyncio.Event()
    async with pool_of(provider) as pool:
        pool.expect(specs("a"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), pool.open(spec()):
                raise AssertionError("it opened")
        provider.open_gate.set()
        await until(lambda: provider.opened == provider.closed)
    assert provider.live == 0


async def test_a_sandbox_of_an_episodes_own_is_not_opened_ahead() -> None:
    provider = FakeProvider()
    async with pool_of(provider) as pool:
        own = SandboxSpec(image="a", episode="e", egress=Egress(NetworkPolicy()))
        pool.expect([own])
        await asyncio.sleep(0)
        assert pool.warm == 0


async def test_labels_of_what_is_opened_ahead_name_no_episode() -> None:
    provider = FakeProvider()
    async with pool_of(provider) as pool:
        pool.expect(specs("a"))
        await until(lambda: provider.live == 1)
        assert {call.episode for call in provider.calls} <= {WARM}


async def test_leaving_it_does_not_wait_for_what_is_being_opened() -> None:
    provider = FakeProvider()
    provider.open_gate = asyncio.Event()
    async with asyncio.timeout(5), pool_of(provider) as pool:
        pool.expect(specs("ab"))
        await asyncio.sleep(0)
    assert provider.live == 0


def test_bounds_without_sense_are_refused() -> None:
    for most, opening in ((-1, 1), (1, 0)):
        with pytest.raises(ContractError):
            Pool(FakeProvider(), most=most, opening=opening)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=20), st.integers(0, 5))
def test_whatever_is_asked_for_each_sandbox_has_one_user_and_an_end(
    asked: list[tuple[str, bool]], most: int
) -> None:
    async def play() -> None:
        provider = FakeProvider(record=False)
        seen: set[int] = set()
        kept = []
        async with pool_of(provider, most=most, opening=2) as pool:
            images = "".join(image for image, _ in asked)
            for n, (image, expected) in enumerate(asked):
                if expected:
                    pool.expect(specs(images[n : n + 4]))
                async with pool.open(spec(image)) as sandbox:
                    kept.append(sandbox)  # alive: ids are not used again
                    assert id(sandbox) not in seen
                    seen.add(id(sandbox))
                assert pool.warm <= most
        assert provider.live == 0

    asyncio.run(play())


async def test_an_image_is_made_once_for_a_run_and_again_when_no_sandbox_can_be_had() -> None:
    provider, recipe = FakeProvider(), EnvironmentRecipe(image="a")
    async with pool_of(provider) as pool:
        for _ in range(3):
            assert await pool.prepare(recipe) == "a"
        assert provider.prepared == [recipe]
        provider.open_errors.append(SandboxError("no such image"))
        with pytest.raises(SandboxError):
            async with pool.open(spec("a")):
                raise AssertionError("it opened")
        await pool.prepare(recipe)
    assert provider.prepared == [recipe, recipe]
