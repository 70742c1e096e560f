"""What does the engine itself cost per turn, and does that grow with the number of live episodes?

Every part is the shipped one but the policy and the sandbox, which answer from memory: scheduler,
driver, episode loop, transcripts, the task's verifier, and the store with its fsyncs. An episode
has 20 turns and 2,000 tokens. The turns asked for per second are the same at every size, so that
what differs is the number of episodes alone; CPU is that of the whole process, all threads.

With `--http` the policy is behind HTTP: the real client against a stub server in another process.
Each size runs in a process of its own, for its memory to be its own.

    python -m bench.engine [--sizes 100 1000 5000] [--turns-per-s 400] [--json FILE]
"""

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import uvloop
from bench.report import report

from headrace.aio import background
from headrace.configs.models import StoreConfig
from headrace.engine.driver import Driver
from headrace.engine.events import ignore
from headrace.engine.limits import EpisodeLimits
from headrace.engine.meters import Meters
from headrace.engine.parts import Parts, Planned
from headrace.engine.scheduler import Bounds
from headrace.engine.shutdown import Shutdown
from headrace.engine.store import Store
from headrace.policies.fake import FakePolicy
from headrace.sandbox.base import Limits
from headrace.sandbox.fake import FakeProvider
from headrace.types import AgentRecipe, EnvironmentRecipe, Task, VerifierRecipe
from headrace.verifiers.harbor import HarborVerifier

TURNS = 20
TOKENS_A_TURN = 100
LIMITS = EpisodeLimits(
    max_turns=TURNS,
    max_tokens=None,
    agent_timeout_s=3600.0,
    command_timeout_s=30.0,
    verifier_timeout_s=60,
)


def verifies(command: str) -> bytes:
    """What the sandbox answers to the verifier."""
    if "headrace-ran" in command:
        return b"headrace-ran\nfile /logs/verifier/reward.txt\n--\n"
    return b"headrace-brought\n" if "headrace-brought" in command else b""


def planned(episodes: int, group: int = 8) -> list[Planned]:
    return [
        Planned(
            id=f"{n:016x}",
            task=Task(
                name=f"task-{n // group}",
                digest=f"digest-{n // group}",
                path="/nowhere",
                format="harbor",
                instruction="Write a word to a file.",
                environment=EnvironmentRecipe(),
                agent=AgentRecipe(),
                verifier=VerifierRecipe(),
            ),
            sample=n % group,
            limits=LIMITS,
            sandbox=Limits(),
            network=False,
        )
        for n in range(episodes)
    ]


async def one_size(live: int, turns_per_s: float, rounds: float) -> dict[str, float]:
    """`live` episodes at once, `rounds` times as many in all."""
    episodes = int(live * rounds)
    provider = FakeProvider(
        exec_script=verifies, files={"/logs/verifier/reward.txt": b"1\n"}, record=False
    )
    policy = FakePolicy(
        turns=TURNS,
        prompt_tokens=TOKENS_A_TURN // 2,
        sampled_tokens=TOKENS_A_TURN // 2,
        think_s=live / turns_per_s,
    )
    meters = Meters()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        async with Store(Path(folder), StoreConfig()) as store, policy, provider:
            driver = Driver(
                planned(episodes),
                Parts(provider=provider, policy=policy, verifier=HarborVerifier()),
                Bounds(live=live, preparing=64, verifying=64, tries=1),
                sink=store,
                meters=meters,
                shutdown=Shutdown(),
                grace_s=5.0,
                on_event=ignore,
            )
            async with background(meters.watch_loop()):
                await driver.drive()
    if driver.finished != episodes:
        raise SystemExit(f"expected {episodes} finished episodes, found {driver.finished}")
    lag = meters.loop_lag_s.percentile(0.99)
    return {
        "live": live,
        "most_live": provider.most_live,
        "turns": meters.turns,
        "wall_s": meters.wall_s,
        "cpu_ms_per_turn": 1000 * meters.cpu_s / meters.turns,
        "loop_lag_p99_ms": 1000 * (lag or 0.0),
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_a_process(live: int, turns_per_s: float, rounds: float) -> dict[str, float]:
    line = [sys.executable, "-m", "bench.engine", "--one", str(live)]
    line += ["--turns-per-s", str(turns_per_s), "--rounds", str(rounds)]
    done = subprocess.run(line, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--turns-per-s", type=float, default=400.0)
    parser.add_argument("--rounds", type=float, default=1.0)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write {bench, commit, machine, metrics} here")
    arguments = parser.parse_args()
    if arguments.one:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            print(
                json.dumps(
                    runner.run(one_size(arguments.one, arguments.turns_per_s, arguments.rounds))
                )
            )
        return
    metrics: dict[str, float | None] = {}
    for live in arguments.sizes:
        found = in_a_process(live, arguments.turns_per_s, arguments.rounds)
        print(found, file=sys.stderr)
        metrics[f"cpu_ms_per_turn_{live}"] = found["cpu_ms_per_turn"]
    report("engine", metrics, arguments.json)


if __name__ == "__main__":
    main()
