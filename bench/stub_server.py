"""A completion server that samples nothing: what the engine costs is measured against it.

It speaks as much of vLLM's API as the client uses: `/health`, `/v1/models`, `/metrics`,
`/reset_prefix_cache` (there is none), and `/v1/completions` with one token prompt, which is
answered after a while with the ids of a fixed text. It prints its port and ends with its standard
input.

    python -m bench.stub_server --ids 5,6,7 --text "```bash..." [--think-s 0.5] [--context 8192]
"""

import argparse
import asyncio
import random
from typing import Any

import msgspec
import uvloop
from aiohttp import web
from bench.serving import serve

METRICS = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running {running}
vllm:num_requests_waiting 0
vllm:kv_cache_usage_perc {use}
"""


class _Body(msgspec.Struct):
    model: str
    prompt: list[int]
    max_tokens: int


class Stub:
    """Answers every call alike."""

    def __init__(self, text: str, ids: list[int], *, think_s: float, context: int) -> None:
        self._think_s = think_s
        self._context = context
        self._read = msgspec.json.Decoder(_Body).decode
        self._choice: dict[str, Any] = {
            "index": 0,
            "text": text,
            "finish_reason": "stop",
            "token_ids": ids,
            "logprobs": {"token_logprobs": [-0.5] * len(ids)},
        }
        self._running = 0
        self._chance = random.Random(0)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/reset_prefix_cache", self._health)
        return app

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "stub", "max_model_len": self._context}]})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=METRICS.format(running=self._running, use=0.1))

    async def _complete(self, request: web.Request) -> web.Response:
        body = self._read(await request.read())
        self._running += 1
        try:
            await asyncio.sleep(self._think_s * (0.5 + self._chance.random()))
        finally:
            self._running -= 1
        choice = {**self._choice, "prompt_token_ids": body.prompt}
        answer = {"id": "stub", "object": "text_completion", "model": "stub", "choices": [choice]}
        return web.Response(
            body=msgspec.json.encode(answer), headers={"Content-Type": "application/json"}
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", required=True)
    parser.add_argument("--ids", required=True, help="its token ids, with commas")
    parser.add_argument("--think-s", type=float, default=0.0)
    parser.add_argument("--context", type=int, default=8192)
    arguments = parser.parse_args()
    from headrace.engine.preflight import raise_files

    raise_files(20_000)
    stub = Stub(
        arguments.text,
        [int(token) for token in arguments.ids.split(",")],
        think_s=arguments.think_s,
        context=arguments.context,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(serve(stub.app()))


if __name__ == "__main__":
    main()
