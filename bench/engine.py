"""What does the engine itself cost per turn, and does that grow with the number of live episodes?

Every part is the shipped one but the policy and the sandbox, which answer from memory: scheduler,
driver, episode loop, transcripts, the task's verifier, and the store with its fsyncs. An episode
has 20 turns and 2,000 tokens. The turns asked for per second are the same at every size, so that
what differs is the number of episodes alone; CPU is that of the whole process, all threads.

With `--http` the policy is behind HTTP: the real client against a stub server in another process.
A long run of short episodes tells whether memory stays: it is looked at from a fifth of the way on.
The store alone, given the same episodes at once, is beside the rate at which the run made them.
Each run is in a process of its own, for its memory to be its own.

    python -m bench.engine [--sizes 100 1000 5000] [--turns-per-s 1000] [--json FILE]
"""

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import islice
from pathlib import Path
from statistics import linear_regression

import uvloop
from bench.report import report
from bench.store import resident_mb

from headrace.aio import background, fan_out, in_thread
from headrace.configs.models import SamplingConfig, StoreConfig, VllmConfig
from headrace.engine import collector
from headrace.engine.driver import Driver
from headrace.engine.events import ignore
from headrace.engine.limits import EpisodeLimits
from headrace.engine.meters import Meters, Reservoir
from headrace.engine.parts import Parts, Planned
from headrace.engine.preflight import raise_files
from headrace.engine.reader import latest_episodes
from headrace.engine.scheduler import Bounds
from headrace.engine.shutdown import Shutdown
from headrace.engine.store import Store
from headrace.policies.base import Policy
from headrace.policies.fake import FakePolicy
from headrace.policies.rendering import Chat
from headrace.policies.vllm import VllmPolicy
from headrace.policies.weights import SMALL_MODEL, ready_model
from headrace.sandbox.base import Limits
from headrace.sandbox.fake import FakeProvider
from headrace.types import AgentRecipe, EnvironmentRecipe, Task, VerifierRecipe
from headrace.verifiers.harbor import HarborVerifier

TURNS = 20
TOKENS_A_TURN = 100
LAG_LIVE = 4000
STORED, TOGETHER = 2000, 256
"""Episodes for the store alone, and how many of them wait at a time."""
LONG_TURNS, LONG_LIVE = 2, 200
"""Of the episodes that show whether memory stays."""
LATE_S = 0.02
"""Slept again and again beside a run: how late it is woken is the machine's own lag."""
STEADY = 0.2
"""Of them, until memory is looked at."""
STEADY_ROUNDS = 20
"""A run of fewer is never steady: all begin and end together."""
OUTPUT = b"-rw-r--r-- 1 root root 220 Mar 27 2022 notes\n" * 2
"""Of each command; with the prompt it makes about 2,000 tokens of an episode."""
GRADED = b"headrace-brought\nheadrace-ran\ntext /logs/verifier/reward.txt\n1\n\0--\n"
LIMITS = EpisodeLimits(
    max_turns=TURNS,
    max_tokens=None,
    agent_timeout_s=3600.0,
    command_timeout_s=30.0,
    verifier_timeout_s=60,
)


def verifies(command: str) -> bytes:
    """What the sandbox answers to the verifier, which brings, runs and looks in one request."""
    return GRADED if "headrace-ran" in command else b""


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


@contextmanager
def stub(chat: Chat, think_s: float) -> Iterator[str]:
    """A stub completion server in a process of its own; gives its address."""
    words = "Look at the folder and count what is there. " * 4
    text = f"{words}\n```bash\ntrue\n```"
    ids = chat.vocabulary.encode_trusted(text)[: TOKENS_A_TURN // 2]
    line = [sys.executable, "-m", "bench.stub_server", "--text", text]
    line += ["--ids", ",".join(map(str, ids)), "--think-s", str(think_s)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None and server.stdout is not None
        try:
            yield f"http://127.0.0.1:{json.loads(server.stdout.readline())['port']}"
        finally:
            server.stdin.close()  # its sign to end
            server.wait(30)


@asynccontextmanager
async def policy_of(think_s: float, turns: int, *, http: bool) -> AsyncIterator[Policy]:
    """In memory, or the real one behind HTTP."""
    if not http:
        yield FakePolicy(
            turns=turns,
            prompt_tokens=TOKENS_A_TURN // 2,
            sampled_tokens=TOKENS_A_TURN // 2,
            think_s=think_s,
        )
        return
    folder = await ready_model(SMALL_MODEL)
    with stub(await in_thread(Chat, folder), think_s) as address:
        config = VllmConfig(
            model=str(folder),
            base_url=address,
            protocol="shell-block",
            sampling=SamplingConfig(max_tokens=TOKENS_A_TURN),
        )
        async with VllmPolicy(config) as policy:
            yield policy


async def one_size(
    live: int, turns_per_s: float, rounds: float, turns: int = TURNS, *, http: bool = False
) -> dict[str, float]:
    """`live` episodes at once, `rounds` times as many in all."""
    episodes = int(live * rounds)
    raise_files(live * 2 + 1000)
    provider = FakeProvider(
        lambda command: OUTPUT,
        exec_script=verifies,
        record=False,
    )
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        async with (
            Store(Path(folder), StoreConfig()) as store,
            policy_of(live / turns_per_s, turns, http=http) as policy,
            provider,
        ):
            meters = Meters()
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
            seen: list[tuple[int, float]] = []
            async with background(meters.watch_loop()), background(watch_memory(driver, seen)):
                with collector.seldom():
                    await driver.drive()
            wall_s, cpu_s = meters.wall_s, meters.cpu_s
            rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        tokens = await in_thread(tokens_of, Path(folder))
        store_s = await store_alone(Path(folder), Path(folder, "again"))
    passed = meters.outcomes["passed"]
    if not passed == driver.finished == episodes or meters.turns != episodes * turns:
        raise SystemExit(
            f"expected {episodes} passed episodes of {turns} turns, found {driver.finished} and "
            f"{meters.turns} turns: {meters.outcomes}"
        )
    return {
        "live": live,
        "most_live": provider.most_live,
        "turns": meters.turns,
        "wall_s": wall_s,
        "cpu_ms_per_turn": 1000 * cpu_s / meters.turns,
        "tokens_per_episode": tokens / episodes,
        "loop_lag_p99_ms": 1000 * (meters.loop_lag_s.percentile(0.99) or 0.0),
        "rss_mb": rss_mb,
        "growth_mb_per_100k": growth(seen, episodes) if rounds >= STEADY_ROUNDS else 0.0,
        "store_over_run": wall_s / episodes / store_s,
    }


async def watch_memory(driver: Driver, seen: list[tuple[int, float]]) -> None:
    """Write down `(finished episodes, MB)` each second, until cancelled."""
    while True:
        seen.append((driver.finished, resident_mb()))
        await asyncio.sleep(1.0)


def growth(seen: list[tuple[int, float]], episodes: int) -> float:
    """MB that 100,000 episodes add, by a straight line through the later part of the run."""
    steady = [one for one in seen if one[0] >= STEADY * episodes]
    if len({finished for finished, _ in steady}) < 3:
        return 0.0  # all ended at once: nothing to see
    return 1e5 * linear_regression(*zip(*steady, strict=True)).slope


async def store_alone(run: Path, again: Path) -> float:
    """Seconds that a store takes for the episodes of `run`, as many waiting as it lets."""
    episodes = await in_thread(lambda: list(islice(latest_episodes(run), STORED)))
    async with Store(again, StoreConfig()) as store:
        begun = time.perf_counter()
        await fan_out(store.append, episodes, limit=TOGETHER)
        return (time.perf_counter() - begun) / len(episodes)


def tokens_of(run: Path) -> int:
    return sum(len(s.token_ids) // 4 for e in latest_episodes(run) for s in e.segments)


def in_a_process(live: int, turns_per_s: float, *more: str) -> dict[str, float]:
    line = [sys.executable, "-m", "bench.engine", "--one", str(live)]
    line += ["--turns-per-s", str(turns_per_s), *more]
    late = Reservoir()
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:  # its answer fits into the pipe
            begun = time.monotonic()
            time.sleep(LATE_S)
            late.add(time.monotonic() - begun - LATE_S)
        assert process.stdout is not None
        answer = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"the run of {live} live episodes ended with {process.returncode}")
    found: dict[str, float] = json.loads(answer)
    found["machine_lag_p99_ms"] = 1000 * (late.percentile(0.99) or 0.0)
    print("  ".join(f"{name} {value:.4g}" for name, value in found.items()), file=sys.stderr)
    return found


def measure(arguments: argparse.Namespace) -> dict[str, float | None]:
    """Every figure, each in a process of its own."""
    metrics: dict[str, float | None] = {}
    for live in arguments.sizes:
        found = in_a_process(live, arguments.turns_per_s)
        metrics[f"cpu_ms_per_turn_{live}"] = found["cpu_ms_per_turn"]
        metrics[f"rss_mb_{live}"] = found["rss_mb"]
    found = in_a_process(arguments.http_live, arguments.http_turns_per_s, "--http")
    metrics["http_cpu_ms_per_turn"] = found["cpu_ms_per_turn"]
    found = in_a_process(LAG_LIVE, arguments.turns_per_s)
    metrics["loop_lag_p99_ms"] = found["loop_lag_p99_ms"]
    metrics["machine_lag_p99_ms"] = found["machine_lag_p99_ms"]
    metrics["store_over_run"] = found["store_over_run"]
    long = ["--turns", str(LONG_TURNS), "--rounds", str(arguments.episodes / LONG_LIVE)]
    found = in_a_process(LONG_LIVE, 10 * arguments.turns_per_s, *long)
    metrics["growth_mb_per_100k"] = found["growth_mb_per_100k"]
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--turns-per-s", type=float, default=1000.0)
    parser.add_argument("--rounds", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=TURNS, help="with --one: of an episode")
    parser.add_argument("--episodes", type=int, default=100_000, help="of the long run")
    parser.add_argument("--http", action="store_true", help="with --one: the policy behind HTTP")
    parser.add_argument("--http-live", type=int, default=1000)
    parser.add_argument("--http-turns-per-s", type=float, default=300.0)
    parser.add_argument("--one", type=int, metavar="LIVE", help="one size only, as JSON")
    parser.add_argument("--json", type=Path, help="write {bench, commit, machine, metrics} here")
    arguments = parser.parse_args()
    if arguments.one:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(
                one_size(
                    arguments.one,
                    arguments.turns_per_s,
                    arguments.rounds,
                    arguments.turns,
                    http=arguments.http,
                )
            )
        print(json.dumps(found))
        return
    report("engine", measure(arguments), arguments.json)


if __name__ == "__main__":
    main()
