"""Two real servers of the small model behind one policy, and one of them dies in the middle."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.configs.models import SamplingConfig, ServerConfig, VllmConfig
from headrace.policies.base import Budget
from headrace.policies.client import CompletionClient, Request
from headrace.policies.server import VllmServer
from headrace.policies.server_command import vllm_build
from headrace.policies.vllm import VllmPolicy
from headrace.types import CommandResult, Task

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

TURNS = 3


async def episode(policy: VllmPolicy, task: Task, sample: int) -> int:
    """Some turns of one session; the number of tokens that were sampled."""
    tokens, results = 0, list[CommandResult]()
    async with policy.session(task, sample) as session:
        for _ in range(TURNS):
            action = await session.act(results, Budget())
            assert action.sample is not None
            tokens += len(action.sample.token_ids)
            results = [CommandResult(exit_code=0, stdout=b"done\n") for _ in action.commands[:1]]
    return tokens


async def running(server: VllmServer, wanted: int) -> None:
    """Once the server works on so many requests; no event tells of it."""
    async with asyncio.timeout(100), CompletionClient(server.base_url) as client:
        found = -1.0
        while found != wanted:
            await asyncio.sleep(0.05)
            found = (await client.metrics())["vllm:num_requests_running"]


async def metric(server: VllmServer, name: str) -> float:
    async with CompletionClient(server.base_url) as client:
        return (await client.metrics())[f"vllm:{name}_total"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_two_servers_share_the_sessions_and_one_that_dies_loses_no_call(
    small_model: Path,
    small_server: Callable[..., ServerConfig],
    a_task: Callable[..., Task],
    tmp_path: Path,
) -> None:
    if vllm_build() != "cpu":
        pytest.skip("vLLM for CPUs is not installed: extra `cpu`")
    config = VllmConfig(
        model=str(small_model),
        protocol="shell-block",
        sampling=SamplingConfig(max_tokens=24),
        server=small_server(replicas=2, restarts=1, start_timeout_s=400.0),
    )
    async with VllmPolicy(config, seed=3, log_path=tmp_path / "vllm.log") as policy:
        first, second = policy.servers.started
        assert names(tmp_path) == ["vllm-0.log", "vllm-1.log"]

        # siblings spread, and each turn finds the prefix of the turn before
        async with asyncio.TaskGroup() as group:
            work = [group.create_task(episode(policy, a_task(), n)) for n in range(4)]
        assert all(found.result() > 0 for found in work)
        for server in (first, second):
            assert await metric(server, "request_success") == 2 * TURNS
            assert await metric(server, "prefix_cache_hits") > 0
        load = await policy.load()
        assert load is not None
        assert load.running == 0

        # a call in flight at the one that dies is answered by the other
        address = first.base_url
        async with asyncio.TaskGroup() as group:
            calls = [
                group.create_task(policy.sample(endless(small_model.name), f"s{n}"))
                for n in range(2)
            ]
            for server in (first, second):
                await running(server, 1)
            assert first.pid is not None
            os.kill(first.pid, signal.SIGKILL)
            await running(second, 2)
            assert await episode(policy, a_task(), 9) > 0
            for call in calls:
                call.cancel()

        # it comes back in the background, where it was, and gets sessions again
        assert await first.ready() == address
        assert first.restarts == 1
        async with asyncio.timeout(100):
            while policy.servers.replicas.up != [0, 1]:  # noqa: ASYNC110 - a look each 2 s
                await asyncio.sleep(0.05)
        for n in range(2):
            await episode(policy, a_task(), n)
        assert await metric(first, "request_success") == TURNS


def endless(model: str) -> Request:
    """A structure keeps the model talking for minutes."""
    return Request(
        model=model,
        prompt=[1, 4093, 198, 5345],
        max_tokens=1500,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        structured_outputs={"regex": "[a-z ]{1500,1600}"},
    )
