"""The model calls of a run, read back from its episodes and made again without a rollout around.

Rule: a call of the replay has the recorded call's new prompt tokens, number of sampled tokens and
sampling parameters. What stands before them is what the replay itself was answered: the server
then finds its own prefixes again, as it did in the rollout. Calls of an episode follow one
another; so many episodes are under way as were live. Nothing is parsed, run or stored, so what a
replay reaches is what the server can.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from headrace.aio import fan_out
from headrace.configs.models import SamplingConfig
from headrace.engine.reader import latest_episodes
from headrace.types import Episode

CALL_S = 1800.0
DEVELOPMENT = {"VLLM_SERVER_DEV_MODE": "1"}
"""For a server whose prefix cache can be emptied."""


class Call(msgspec.Struct, frozen=True, gc=False):
    """One call of an episode."""

    added: tuple[int, ...]
    """Prompt tokens after the last sample, or all of them."""
    sampled: int
    fresh: bool
    """It begins a stream of its own."""


Chain = tuple[Call, ...]
"""The calls of an episode, in order."""


class Replayed(msgspec.Struct, frozen=True):
    """What a replay came to."""

    wall_s: float
    tokens: int
    """Sampled."""


def read_chains(run: Path) -> list[Chain]:
    """Of every episode that called a model, in the order in which they began. Blocking."""
    episodes = sorted(latest_episodes(run), key=lambda episode: episode.started_at)
    return [chain for chain in map(_chain, episodes) if chain]


def _chain(episode: Episode) -> Chain:
    calls = []
    for segment in episode.segments:
        tokens, before = segment.tokens(), 0
        for span in segment.spans:
            added = tuple(tokens[before : span.start])
            calls.append(Call(added, span.end - span.start, before == 0))
            before = span.end
    return tuple(calls)


def possible_hits(chains: Iterable[Chain]) -> int:
    """Prompt tokens that a cache of tokens, without an end, would not have to read again.

    Within an episode all that stood before; at its begin the longest beginning that an episode
    before it had too. A server caches blocks and reads the last token always: it stays below.
    """
    hits, seen = 0, set[int]()
    for chain in chains:
        length = 0
        for call in chain:
            if call.fresh:
                length = 0
                hits += _shared(call.added, seen)
            else:
                hits += length
            length += len(call.added) + call.sampled
    return hits


def _shared(opening: Sequence[int], seen: set[int]) -> int:
    """The tokens of the longest known beginning of `opening`; its own become known."""
    shared, digest = 0, 0
    for at, token in enumerate(opening[:-1], 1):
        digest = hash((digest, token))
        if digest in seen:
            shared = at
        seen.add(digest)
    return shared


async def forget(base_url: str) -> None:
    """Empty the server's prefix cache. It must run with the variable in `DEVELOPMENT` set."""
    timeout = aiohttp.ClientTimeout(total=60)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(f"{base_url}/reset_prefix_cache") as response,
    ):
        found = await response.read()
        if response.status != 200 or b"false" in found:
            raise SystemExit(f"the prefix cache was not emptied: {response.status} {found[:200]!r}")


class Replay:
    """Makes recorded calls of one server."""

    def __init__(self, base_url: str, model: str, sampling: SamplingConfig) -> None:
        self._url = f"{base_url}/v1/completions"
        self._fixed: dict[str, Any] = {
            "model": model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "ignore_eos": True,  # so long as it was, whatever it says now
            "logprobs": 0,
            "return_token_ids": True,
            "add_special_tokens": False,
            "repetition_penalty": 1.0,
            "min_p": 0.0,
        }

    async def run(self, chains: Sequence[Chain], live: int) -> Replayed:
        """Make every call, those of `live` episodes at a time."""
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=CALL_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

            async def one(numbered: tuple[int, Chain]) -> int:
                number, chain = numbered
                return await self._chain(session, chain, number)

            begun = time.perf_counter()
            tokens = await fan_out(one, list(enumerate(chains)), limit=live)
            return Replayed(time.perf_counter() - begun, sum(tokens))

    async def _chain(self, session: aiohttp.ClientSession, chain: Chain, number: int) -> int:
        stream: list[int] = []
        tokens = 0
        for turn, call in enumerate(chain):
            if call.fresh:
                stream = []
            stream.extend(call.added)
            answer = await self._call(session, stream, call.sampled, (number << 16) + turn)
            if len(answer) != call.sampled:
                raise SystemExit(f"expected {call.sampled} tokens, found {len(answer)}: no figure")
            stream.extend(answer)
            tokens += len(answer)
        return tokens

    async def _call(
        self, session: aiohttp.ClientSession, prompt: list[int], n: int, seed: int
    ) -> list[int]:
        body = {**self._fixed, "prompt": prompt, "max_tokens": n}
        if self._fixed["temperature"] > 0:
            body["seed"] = seed
        headers = {"Content-Type": "application/json"}
        data = msgspec.json.encode(body)
        async with session.post(self._url, data=data, headers=headers) as response:
            found = await response.read()
            if response.status != 200:
                raise SystemExit(f"{self._url}: refused with {response.status}: {found[:300]!r}")
        return msgspec.json.decode(found, type=_Answer).choices[0].token_ids


class _Choice(msgspec.Struct):
    token_ids: list[int]


class _Answer(msgspec.Struct):
    choices: list[_Choice]
