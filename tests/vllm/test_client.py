"""The completion client against a small HTTP server that misbehaves on purpose."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from headrace.errors import PolicyError, ServerGone
from headrace.policies.client import CompletionClient, Request, read_metrics

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
REQUEST = Request(model="m", prompt=[1, 2], max_tokens=4, temperature=1.0, top_p=1.0, top_k=0)


def answer(**changes: Any) -> dict[str, Any]:
    choice = {
        "text": "hi",
        "finish_reason": "stop",
        "token_ids": [7, 8],
        "prompt_token_ids": [1, 2],
        "logprobs": {"token_logprobs": [-0.5, None], "tokens": ["a", "b"]},
    }
    return {"id": "x", "choices": [{**choice, **changes}], "usage": {}}


@asynccontextmanager
async def serving(handler: Handler, **options: Any) -> AsyncIterator[CompletionClient]:
    app = web.Application()
    app.router.add_post("/v1/completions", handler)
    app.router.add_get("/health", handler)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        async with CompletionClient(f"http://{host}:{port}/v1/", **options) as client:
            yield client
    finally:
        await runner.cleanup()


async def test_a_completion_comes_back_with_ids_and_logprobs() -> None:
    seen: list[tuple[dict[str, Any], str | None]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append((await request.json(), request.headers.get("X-Session-ID")))
        return web.json_response(answer())

    async with serving(handler) as client:
        found = await client.complete(REQUEST, session_id="s1")
    assert (found.text, found.token_ids, found.logprobs) == ("hi", (7, 8), (-0.5, 0.0))
    ((body, session_id),) = seen
    assert session_id == "s1"
    assert body["prompt"] == [1, 2]
    assert body["return_token_ids"] is True
    assert body["logprobs"] == 0
    assert body["repetition_penalty"] == 1.0
    assert "seed" not in body


async def test_a_refusal_is_told_and_not_tried_again() -> None:
    calls = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        return web.json_response({"error": {"message": "context length is 4"}}, status=400)

    async with serving(handler) as client:
        with pytest.raises(PolicyError, match="refused with 400.*context length is 4"):
            await client.complete(REQUEST)
    assert calls == 1


async def test_a_call_that_failed_before_anything_came_is_tried_again() -> None:
    calls = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        if calls == 1:
            assert request.transport is not None
            request.transport.close()
        if calls < 3:
            return web.Response(status=503)
        return web.json_response(answer())

    async with serving(handler) as client:
        assert (await client.complete(REQUEST)).text == "hi"
    assert calls == 3


@pytest.mark.parametrize(("health", "error"), [(200, PolicyError), (503, ServerGone)])
async def test_errors_of_a_server_whose_engine_died_mean_the_server_is_gone(
    health: int, error: type[PolicyError]
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=500 if request.method == "POST" else health)

    async with serving(handler, retries=0) as client:
        with pytest.raises(PolicyError, match="refused with 500") as raised:
            await client.complete(REQUEST)
    assert isinstance(raised.value, ServerGone) == (error is ServerGone)


async def test_an_answer_that_breaks_off_is_not_asked_for_again() -> None:
    calls = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"choices"')
        assert request.transport is not None
        request.transport.close()
        return response

    async with serving(handler) as client:
        with pytest.raises(ServerGone, match="stopped answering"):
            await client.complete(REQUEST)
    assert calls == 1


async def test_no_server_is_told_as_such() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response()

    async with serving(handler) as client:
        base_url = client.base_url
    async with CompletionClient(base_url, retries=1) as client:
        with pytest.raises(ServerGone, match=base_url):
            await client.complete(REQUEST)
        assert not await client.healthy()
        with pytest.raises(ServerGone, match="expected a model server"):
            await client.models()


async def test_a_call_has_a_deadline() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(handler, timeout_s=0.2) as client:
        with pytest.raises(PolicyError, match="expected an answer within 0 s"):
            await client.complete(REQUEST)


async def test_cancelling_closes_the_connection() -> None:
    arrived, left = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        arrived.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        raise AssertionError

    async with serving(handler) as client, asyncio.timeout(10), asyncio.TaskGroup() as group:
        call = group.create_task(client.complete(REQUEST))
        await arrived.wait()
        call.cancel()
        await left.wait()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt_token_ids": [1]}, "expected the server to see the 2 prompt tokens"),
        ({"prompt_token_ids": [1, 3]}, "expected the server to see the 2 prompt tokens"),
        ({"token_ids": None}, "expected token ids and log-probabilities"),
        ({"logprobs": None}, "expected token ids and log-probabilities"),
        ({"logprobs": {"token_logprobs": [-1.0]}}, "found 1 for 2 tokens"),
    ],
)
async def test_an_answer_that_is_not_exact_is_refused(changes: dict[str, Any], said: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response(answer(**changes))

    async with serving(handler) as client:
        with pytest.raises(PolicyError, match=said):
            await client.complete(REQUEST)


async def test_a_body_that_is_no_completion_is_refused() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(text=json.dumps({"choices": "?"}))

    async with serving(handler) as client:
        with pytest.raises(PolicyError, match="expected a completion"):
            await client.complete(REQUEST)


async def test_three_hundred_calls_are_in_flight_at_once() -> None:
    waiting, everyone = 0, asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal waiting
        waiting += 1
        if waiting == 300:
            everyone.set()
        await everyone.wait()
        return web.json_response(answer())

    async with serving(handler) as client, asyncio.timeout(30), asyncio.TaskGroup() as group:
        for _ in range(300):
            group.create_task(client.complete(REQUEST))


def test_metrics_are_summed_over_labels_without_buckets() -> None:
    text = (
        "# HELP vllm:n x\n"
        'vllm:n{engine="0"} 2.0\n'
        'vllm:n{engine="1"} 3.0\n'
        'vllm:t_bucket{le="1"} 9\n'
        "vllm:t_sum 1.5\n"
        "odd\n"
    )
    assert read_metrics(text) == {"vllm:n": 5.0, "vllm:t_sum": 1.5}
