"""What do several engine processes add?

Two figures, each for one process as every run has it, and for `engine.processes` of 2 and more:

* turns per second of the engine alone, as fast as it can: policy and sandbox answer from memory,
  everything else is shipped (scheduler, episode loop, verifier, store with its fsyncs);
* episodes per second of real sandboxes of the provider `namespace`.

The rounds take turns, and a ratio is of neighbours in time. More processes than processors are not
measured: the run would not start them.

    python -m bench.fleet [--processes 2] [--live 400] [--rounds 3] [--json FILE]
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop
from bench.engine import OUTPUT, TOKENS_A_TURN, TURNS, one_size, planned, verifies
from bench.report import report

from headrace.aio import in_thread
from headrace.configs.models import (
    EngineConfig,
    NoopConfig,
    RunConfig,
    SandboxConfig,
    ScriptedConfig,
    TasksConfig,
)
from headrace.engine import fleet, runner
from headrace.engine.events import EpisodeFinished, EpisodeStarted, Event, TurnFinished
from headrace.engine.measured import Merged
from headrace.engine.parts import Parts
from headrace.engine.scheduler import Bounds
from headrace.engine.shutdown import Shutdown
from headrace.engine.wire import Begin
from headrace.engine.worker import main as work_on
from headrace.policies.fake import FakePolicy
from headrace.sandbox.fake import FakeProvider
from headrace.sandbox.pool import Pool
from headrace.verifiers.harbor import HarborVerifier

AT_ONCE = 1e9
"""Turns asked for per second: as many as can be."""
WORKER = (sys.executable, "-c", "from bench.fleet import work; work()")


def provider() -> FakeProvider:
    return FakeProvider(
        lambda command: OUTPUT,
        exec_script=verifies,
        files={"/logs/verifier/reward.txt": b"1\n"},
        record=False,
    )


@asynccontextmanager
async def fakes(begin: Begin, config: RunConfig) -> AsyncIterator[Parts]:
    """Parts in memory, in place of `worker.opened`."""
    policy = FakePolicy(
        turns=TURNS, prompt_tokens=TOKENS_A_TURN // 2, sampled_tokens=TOKENS_A_TURN // 2
    )
    async with provider() as ours, Pool(ours, most=0) as pool, policy:
        yield Parts(provider=pool, policy=policy, verifier=HarborVerifier())


def work() -> None:
    """An engine process of this measurement."""
    work_on(fakes)


async def in_processes(number: int, live: int, rounds: float) -> dict[str, float]:
    """Turns per second, and the processors' milliseconds of all processes for each."""
    meters, moments = Merged(), array("d")

    def seen(event: Event) -> None:
        if isinstance(event, TurnFinished):
            moments.append(time.monotonic())

    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        await in_thread(Path(folder, "logs").mkdir)
        async with provider() as ours:
            driven = fleet.Fleet(
                planned(int(live * rounds)),
                RunConfig(policy=NoopConfig()),
                Path(folder),
                Bounds(live=live, preparing=64, verifying=64, tries=1),
                number=number,
                label="bench",
                warm=0,
                opening=1,
                provider=ours,
                meters=meters,
                shutdown=Shutdown(),
                on_event=seen,
                command=WORKER,
            )
            await driven.drive()
    if driven.error is not None or driven.finished != int(live * rounds):
        raise SystemExit(f"{driven.finished} of {int(live * rounds)} episodes: {driven.error}")
    # a process starts in about a second: what counts is the time in which turns were made
    return {
        "turns_per_s": len(moments) / (moments[-1] - moments[0]),
        "cpu_ms_per_turn": 1000 * meters.cpu_s / meters.turns,
    }


async def sandboxes(number: int, attempts: int, live: int) -> float:
    """Episodes per second, from the first start to the last record."""
    config = RunConfig(
        policy=ScriptedConfig(commands=("echo one", "echo two", "echo three")),
        sandbox=SandboxConfig(provider="namespace"),
        tasks=TasksConfig(limit=4),
        engine=EngineConfig(live=live, preparing=8, verifying=8, processes=number),
        attempts=attempts,
    )
    moments = array("d")

    def seen(event: Event) -> None:
        if isinstance(event, EpisodeStarted | EpisodeFinished):
            moments.append(time.monotonic())

    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        summary = await runner.run(config, Path(folder, "run"), on_event=seen)
    if summary.owed:
        raise SystemExit(f"{summary.owed} episodes are owed")
    return summary.episodes / (moments[-1] - moments[0])


async def measure(arguments: argparse.Namespace) -> dict[str, float | None]:
    numbers = [n for n in arguments.processes if n <= fleet.usable_cpus()]
    seen: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        one = await one_size(arguments.live, AT_ONCE, arguments.times)
        alone = one["turns"] / one["wall_s"]
        seen.setdefault("turns_per_s_1", []).append(alone)
        seen.setdefault("cpu_ms_per_turn_1", []).append(one["cpu_ms_per_turn"])
        for n in numbers:
            found = await in_processes(n, arguments.live, arguments.times)
            for name, value in found.items():
                seen.setdefault(f"{name}_{n}", []).append(value)
            seen.setdefault(f"turns_ratio_{n}", []).append(found["turns_per_s"] / alone)
        single = await sandboxes(1, arguments.attempts, arguments.sandboxes)
        seen.setdefault("sandbox_episodes_per_s_1", []).append(single)
        for n in numbers:
            several = await sandboxes(n, arguments.attempts, arguments.sandboxes)
            seen.setdefault(f"sandbox_episodes_per_s_{n}", []).append(several)
            seen.setdefault(f"sandbox_ratio_{n}", []).append(several / single)
        print(json.dumps({name: round(values[-1], 3) for name, values in seen.items()}))
    return {name: statistics.median(values) for name, values in seen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--live", type=int, default=400, help="of the engine alone")
    parser.add_argument("--times", type=float, default=10.0, help="as many episodes as are live")
    parser.add_argument("--sandboxes", type=int, default=16, help="live ones")
    parser.add_argument("--attempts", type=int, default=20, help="of four tasks, in sandboxes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write {bench, commit, machine, metrics} here")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        report("fleet", loop.run(measure(arguments)), arguments.json)


if __name__ == "__main__":
    main()
