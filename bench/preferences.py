"""How long do pairs and exports take out of a large run, and does memory stay flat?

A run of 100,000 stored episodes of 20 turns, four attempts at each task, made here through the
store as it ships. Each command is a process of its own, as a user gives it: seconds and most memory
are the system's word on that process. MB/s are bytes written over seconds, reading and choosing
included. The floor is reading every episode once, in this process.

    python -m bench.preferences [--episodes 100000] [--json FILE]
"""

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from bench.report import report
from bench.trajectories import make_episode

from headrace.configs.models import RunConfig
from headrace.engine.reader import latest_episodes
from headrace.engine.resume import episode_id
from headrace.engine.run_folder import RunFolder
from headrace.engine.store import Store
from headrace.types import Episode, TestOutcome, Verdict

ATTEMPTS, TURNS, TESTS = 4, 20, 8
DISTINCT = 400
"""Trajectories that differ in every token; the others repeat them under other names."""
SMALL = 10
"""A run of so many times fewer episodes shows whether memory grows with them."""
TOGETHER = 64
VERSION = "bench"
HEADRACE = "from headrace.cli import main; main()"
MESSAGES = ("trl", "litecoder", "ms-swift")


@dataclass(frozen=True)
class Done:
    """One command."""

    seconds: float
    peak_mb: float
    written_mb: float

    @property
    def mb_s(self) -> float:
        return self.written_mb / self.seconds


def episodes(number: int) -> Iterator[Episode]:
    """`number` attempts, four at a task, each with a share of its tests passed."""
    made = [make_episode(i, TURNS) for i in range(min(DISTINCT, number))]
    for i in range(number):
        task, sample = divmod(i, ATTEMPTS)
        digest = f"{task:064x}"
        passed = (task * 7 + sample * 5) % (TESTS + 1)
        yield msgspec.structs.replace(
            made[i % len(made)],
            id=episode_id(digest, VERSION, sample),
            task=f"bench/task-{task}",
            task_digest=digest,
            sample=sample,
            policy_version=VERSION,
            opening=made[i % len(made)].instruction,
            verdict=Verdict(
                reward=passed / TESTS,
                tests=tuple(
                    TestOutcome(name=f"test_{t}", status="passed" if t < passed else "failed")
                    for t in range(TESTS)
                ),
            ),
        )


async def make_run(folder: Path, number: int) -> None:
    """A run folder with `number` episodes."""
    tasks = {f"bench/task-{t}": f"{t:064x}" for t in range(-(-number // ATTEMPTS))}
    rest = episodes(number)
    with RunFolder.open(
        folder,
        RunConfig(attempts=ATTEMPTS),
        tasks=tasks,
        policy="vllm",
        policy_version=VERSION,
        provider="namespace",
    ):
        async with Store(folder) as store, asyncio.TaskGroup() as group:
            for _ in range(TOGETHER):
                group.create_task(_append(store, rest))


async def _append(store: Store, rest: Iterator[Episode]) -> None:
    for episode in rest:
        await store.append(episode)


def headrace(*arguments: str | Path, out: Path) -> Done:
    """A command of the command line that writes `out`, which is removed again."""
    words = [sys.executable, "-c", HEADRACE, *map(str, arguments), "--out", str(out)]
    began = time.perf_counter()
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    pid = os.posix_spawn(sys.executable, words, os.environ, file_actions=quiet)
    _, status, used = os.wait4(pid, 0)
    seconds = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"headrace {' '.join(words[3:])} failed: no figure")
    written = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    shutil.rmtree(out)
    return Done(seconds, used.ru_maxrss / 1024, written / 1e6)


def exact_mb(run: Path) -> float:
    """What an exact export holds before it is compressed: ids and log-probabilities."""
    segments = (segment for e in latest_episodes(run) for segment in e.segments)
    return sum(len(s.token_ids) + len(s.logprobs) for s in segments) / 1e6


def measure(folder: Path, number: int) -> dict[str, float | None]:
    run, small = folder / "run", folder / "small"
    began = time.perf_counter()
    asyncio.run(make_run(run, number))
    made_s = time.perf_counter() - began
    asyncio.run(make_run(small, number // SMALL))
    began = time.perf_counter()
    streams_mb = exact_mb(run)
    read_s = time.perf_counter() - began
    pairs = headrace("pairs", run, out=folder / "pairs")
    pairs_small = headrace("pairs", small, out=folder / "pairs")
    exact = headrace("export", run, "--format", "exact", out=folder / "exact")
    exact_small = headrace("export", small, "--format", "exact", out=folder / "exact")
    written = {
        name: headrace(
            "export", run, "--format", name, "--select", "everything", out=folder / "rows"
        )
        for name in MESSAGES
    }
    selected = headrace("export", run, "--format", "trl", out=folder / "rows")
    return {
        "episodes": number,
        "made_s": made_s,
        "read_floor_s": read_s,
        "pairs_s": pairs.seconds,
        "pairs_over_read": pairs.seconds / read_s,
        "peak_mb": pairs.peak_mb,
        "peak_mb_tenth": pairs_small.peak_mb,
        "exact_s": exact.seconds,
        "exact_mb_s": streams_mb / exact.seconds,
        "exact_peak_mb": exact.peak_mb,
        "exact_peak_mb_tenth": exact_small.peak_mb,
        "messages_mb_s": min(done.mb_s for done in written.values()),
        **{f"{name.replace('-', '_')}_mb_s": done.mb_s for name, done in written.items()},
        "messages_peak_mb": max(done.peak_mb for done in written.values()),
        "selected_s": selected.seconds,
        "selected_eps_s": number / selected.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--episodes", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="make the runs here, and leave them")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="headrace-bench-"))
    try:
        metrics = measure(folder, options.episodes)
    finally:
        if options.keep is None:
            shutil.rmtree(folder)
    report("preferences", metrics, options.json)


if __name__ == "__main__":
    main()
