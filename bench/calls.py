"""How is vLLM best asked: one request per call, micro-batches, or its engine in our process?

The real small model on a CPU, the same closed loop of callers for each way:

* `one`: `/v1/completions` with one token prompt, not streamed: what the policy does.
* `batch`: callers that come within a few milliseconds share one streamed request of several token
  prompts; each is answered when its own prompt is. Chunks are as long as an answer may be, so that
  streaming costs as little as it can. All prompts of a request share one seed and one limit, which
  the policy could not live with: siblings would sample the same.
* `inside`: vLLM's `AsyncLLM` in this process, its engine core in one of its own as in the server.

Server and engine are both up the whole time; each way works alone, in turn; medians of the rounds.
CPU is that of this process alone, per call: with `inside` that includes what the server does
otherwise, on the loop that drives the episodes.

    python -m bench.calls [--live 32] [--calls 96] [--rounds 3] [--json FILE]
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvloop
from bench.report import report

from headrace.aio import background, fan_out
from headrace.configs.models import ServerConfig
from headrace.policies.client import CompletionClient, Request
from headrace.policies.server import VllmServer
from headrace.policies.server_command import server_environment
from headrace.policies.weights import SMALL_MODEL, ready_model

NAME = "small"
CONTEXT = 1024
PROMPT_TOKENS = 400
MAX_TOKENS = 48
LARGEST_BATCH = 16
LINGER_S = 0.005
"""How long the first caller of a batch waits for others."""
CONFIG = ServerConfig(
    device="cpu", kv_cache_gib=1, max_model_len=CONTEXT, max_num_seqs=64, start_timeout_s=900.0
)

Ask = Callable[[list[int], int], Awaitable[int]]
"""From a prompt and a seed to the number of tokens that came."""


def request(prompt: Any, seed: int) -> Request:
    return Request(
        model=NAME,
        prompt=prompt,
        max_tokens=MAX_TOKENS,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        seed=seed,
    )


# --- one request per call ---


@asynccontextmanager
async def one(base_url: str) -> AsyncIterator[Ask]:
    async with CompletionClient(base_url) as client:

        async def ask(prompt: list[int], seed: int) -> int:
            return len((await client.complete(request(prompt, seed))).token_ids)

        yield ask


# --- micro-batches ---


class _Choice(msgspec.Struct):
    index: int
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice]


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class Batches:
    """Callers that come together go together."""

    def __init__(self, base_url: str, session: aiohttp.ClientSession) -> None:
        self._url = f"{base_url}/v1/completions"
        self._session = session
        self._waiting: asyncio.Queue[tuple[list[int], int, asyncio.Future[int]]] = asyncio.Queue(
            10_000
        )

    async def ask(self, prompt: list[int], seed: int) -> int:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        await self._waiting.put((prompt, seed, answer))
        return await answer

    async def serve(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                batch = [await self._waiting.get()]
                await asyncio.sleep(LINGER_S)
                while len(batch) < LARGEST_BATCH and not self._waiting.empty():
                    batch.append(self._waiting.get_nowait())
                group.create_task(self._post(batch))

    async def _post(self, batch: list[tuple[list[int], int, asyncio.Future[int]]]) -> None:
        fields = msgspec.to_builtins(request([prompt for prompt, _, _ in batch], batch[0][1]))
        more = {"stream": True, "stream_interval": MAX_TOKENS, "logprobs": 0}
        body = msgspec.json.encode({**fields, **more, "return_token_ids": True})
        counts = [0] * len(batch)
        headers = {"Content-Type": "application/json"}
        async with self._session.post(self._url, data=body, headers=headers) as response:
            if response.status != 200:
                raise SystemExit(f"expected a stream, found {await response.text()}")
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                for choice in _decode_chunk(line[6:]).choices:
                    counts[choice.index] += len(choice.token_ids or ())
                    answer = batch[choice.index][2]
                    if choice.finish_reason is not None and not answer.done():
                        answer.set_result(counts[choice.index])


@asynccontextmanager
async def batch(base_url: str) -> AsyncIterator[Ask]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=2**20) as session:
        batches = Batches(base_url, session)
        async with background(batches.serve()):
            yield batches.ask


# --- the engine in this process ---


@asynccontextmanager
async def inside(folder: Path, scratch: Path) -> AsyncIterator[Ask]:
    os.environ.update(
        server_environment(CONFIG, device="cpu", scratch=scratch, inherited=os.environ)
    )
    # an engine of this process: importing it takes seconds, and only this way needs it
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(folder),
            dtype="bfloat16",
            enforce_eager=True,
            max_model_len=CONTEXT,
            max_num_seqs=CONFIG.max_num_seqs,
            enable_chunked_prefill=False,
        ),
        usage_context=UsageContext.OPENAI_API_SERVER,  # decides defaults: those of the server
    )
    number = 0

    async def ask(prompt: list[int], seed: int) -> int:
        nonlocal number
        number += 1
        params = SamplingParams(
            max_tokens=MAX_TOKENS,
            temperature=1.0,
            seed=seed,
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        tokens = 0
        async for found in engine.generate({"prompt_token_ids": prompt}, params, f"r{number}"):
            tokens = len(found.outputs[0].token_ids)
        return tokens

    try:
        yield ask
    finally:
        engine.shutdown()


# --- the measurement ---


async def closed_loop(ask: Ask, *, live: int, calls: int, seed: int) -> dict[str, float]:
    """`calls` calls by `live` callers, each with the next prompt once it has its answer."""
    chance = random.Random(seed)
    prompts = [[chance.randrange(1000, 40_000) for _ in range(PROMPT_TOKENS)] for _ in range(calls)]
    latencies: list[float] = []

    async def call(n: int) -> int:
        begun = time.perf_counter()
        tokens = await ask(prompts[n], seed * calls + n)
        latencies.append(time.perf_counter() - begun)
        return tokens

    wall_s, cpu_s = time.perf_counter(), time.process_time()
    tokens = sum(await fan_out(call, range(calls), limit=live))
    return {
        "tokens_s": tokens / (time.perf_counter() - wall_s),
        "cpu_ms_per_call": 1000 * (time.process_time() - cpu_s) / calls,
        "latency_p50_s": statistics.median(latencies),
    }


async def measure(live: int, calls: int, rounds: int) -> dict[str, float | None]:
    folder = await ready_model(SMALL_MODEL)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as place:
        scratch = Path(place)
        async with (
            VllmServer(CONFIG, folder, NAME, scratch / "vllm.log") as server,
            one(server.base_url) as by_one,
            batch(server.base_url) as by_batch,
            inside(folder, scratch) as by_inside,
        ):
            ways = {"one": by_one, "batch": by_batch, "inside": by_inside}
            found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
            for ask in ways.values():
                await closed_loop(ask, live=live, calls=live, seed=0)
            for n in range(1, rounds + 1):
                for name, ask in ways.items():
                    got = await closed_loop(ask, live=live, calls=calls, seed=10 * n + len(name))
                    found[name].append(got)
                    told = "  ".join(f"{key} {value:.4g}" for key, value in got.items())
                    print(f"round {n} {name:<7} {told}", file=sys.stderr)
    metrics: dict[str, float | None] = {
        f"{name}_{key}": statistics.median(got[key] for got in all_of)
        for name, all_of in found.items()
        for key in all_of[0]
    }
    for name in ("batch", "inside"):
        pairs = zip(found[name], found["one"], strict=True)
        metrics[f"{name}_over_one_tokens"] = statistics.median(
            a["tokens_s"] / b["tokens_s"] for a, b in pairs
        )
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--live", type=int, default=32)
    parser.add_argument("--calls", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write {bench, commit, machine, metrics} here")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        metrics = runner.run(measure(arguments.live, arguments.calls, arguments.rounds))
    report("calls", metrics, arguments.json)


if __name__ == "__main__":
    main()
