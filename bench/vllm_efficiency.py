"""How much of a model server's speed does a rollout get, and how much of its prefix cache?

A rollout over the bundled tasks with the small model on a vLLM server that is ours, then the same
calls of the same server raw, as many at a time (`bench/recorded.py`). The metrics are medians of
the rounds; `prefix_hit_rate` is of the prompt tokens that a perfect cache would have found.

    python -m bench.vllm_efficiency [--live 16] [--rounds 3] [--json FILE]
"""

import argparse
import asyncio
import os
import tempfile
from pathlib import Path
from statistics import median

import msgspec
import uvloop
from bench.recorded import DEVELOPMENT, Call, Replay
from bench.report import report
from bench.rollout import Measured, Shape, measure

from headrace.configs.models import SamplingConfig, ServerConfig
from headrace.policies.server import VllmServer
from headrace.policies.weights import SMALL_MODEL, ready_model

SERVED = "bench"
BLOCK = "32"
"""Tokens of a block of the cache; a CPU takes 128 by itself, a quarter of a prompt here."""
WARM_UP = ((Call(tuple(range(100, 300)), 16, True),),) * 8
CONTEXT = 4096


def server_config(live: int) -> ServerConfig:
    return ServerConfig(
        max_model_len=CONTEXT, max_num_seqs=max(16, live), args=("--block-size", BLOCK)
    )


async def rounds(arguments: argparse.Namespace, folder: Path) -> list[Measured]:
    model = await ready_model(SMALL_MODEL)
    log = folder / "vllm.log"
    found = []
    async with VllmServer(server_config(arguments.live), model, SERVED, log) as server:
        sampling = SamplingConfig(temperature=0.7, max_tokens=arguments.max_tokens)
        await Replay(server.base_url, SERVED, sampling).run(WARM_UP, 8)
        for number in range(arguments.rounds):
            shape = Shape(
                provider=arguments.provider,
                live=arguments.live,
                episodes=arguments.episodes,
                tasks=arguments.tasks,
                turns=arguments.turns,
                sampling=sampling,
                seed=number,
            )
            one = await measure(
                shape,
                model=model,
                served=SERVED,
                base_url=server.base_url,
                out=folder / f"round-{number}",
            )
            print(msgspec.json.encode(one).decode())
            found.append(one)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--live", type=int, default=16, help="live episodes")
    parser.add_argument("--episodes", type=int, default=32, help="of a round")
    parser.add_argument("--tasks", type=int, default=8, help="that the episodes are of")
    parser.add_argument("--turns", type=int, default=8, help="of an episode")
    parser.add_argument("--max-tokens", type=int, default=64, help="sampled in a turn, at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--provider", choices=("namespace", "docker", "fake"), default="namespace")
    parser.add_argument("--json", type=Path, help="write {bench, commit, machine, metrics} here")
    arguments = parser.parse_args()
    os.environ.update(DEVELOPMENT)
    with (
        tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        found = runner.run(rounds(arguments, Path(folder)))
    names = Measured.__struct_fields__
    report(
        "vllm_efficiency",
        {name: median(getattr(one, name) for one in found) for name in names},
        arguments.json,
    )


if __name__ == "__main__":
    main()
