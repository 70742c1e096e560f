"""How fast and how small is the store, against JSON lines of the same records in the same run?

The records are 30-turn trajectories (`bench/trajectories.py`). JSON lines are written as people
write them: `json.dumps`, token ids as integers, log-probabilities as floats, output as text, no
fsync. `read_vs_jsonl` is against `json.loads` of each line; the store's side is decoded into
`Episode`. `msgspec.json` over the same lines is shown beside it. Sizes are of files whose blocks
hold one record each (`alone`), the worst case for us; appends that wait together share a block.

    python -m bench.store [--records 400] [--json FILE]
"""

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import zstandard
from bench.report import report
from bench.trajectories import make_episode

from headrace.engine.reader import read_episodes
from headrace.engine.store import Store
from headrace.types import Episode

TOGETHER = 64
ROUNDS = 3


def as_people_store_it(episode: Episode) -> dict[str, Any]:
    """The same record for `json.dumps`."""
    record = msgspec.to_builtins(episode, builtin_types=(bytes,))
    for turn in record["turns"]:
        for result in turn["results"]:
            result["stdout"] = result["stdout"].decode(errors="replace")
            result["stderr"] = result["stderr"].decode(errors="replace")
    for stored, segment in zip(record["segments"], episode.segments, strict=True):
        stored["token_ids"] = segment.tokens().tolist()
        stored["logprobs"] = segment.token_logprobs().tolist()
    return record


def write_jsonl(path: Path, episodes: list[Episode]) -> float:
    began = time.perf_counter()
    with path.open("w") as file:
        for episode in episodes:
            file.write(json.dumps(as_people_store_it(episode)) + "\n")
    return time.perf_counter() - began


async def write_store(run: Path, episodes: list[Episode], together: int) -> tuple[float, int]:
    """Seconds until the last record is durable, and the number of commits."""
    rest: Iterator[Episode] = iter(episodes)

    async def appender(store: Store) -> None:
        for episode in rest:
            await store.append(episode)

    began = time.perf_counter()
    async with Store(run) as store:
        async with asyncio.TaskGroup() as group:
            for _ in range(together):
                group.create_task(appender(store))
        seconds = time.perf_counter() - began
        commits = store.snapshot().commits
    return seconds, commits


def best(read: Callable[[], int], expected: int) -> float:
    """Seconds of the best of a few rounds; the files are in the page cache for both sides."""
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        if read() != expected:
            raise SystemExit("a reader lost records: no figure")
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def read_lines(path: Path, loads: Callable[[bytes], Any]) -> int:
    with path.open("rb") as file:
        return sum(loads(line) is not None for line in file)


def size(run: Path) -> int:
    return sum(f.stat().st_size for f in (run / "shards").glob("*.hrs"))


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def memory_growth_mb(run: Path, records: int) -> float:
    """Growth of this process between a tenth of the way through a reading and its end."""
    start = 0.0
    for number, _ in enumerate(read_episodes(run)):
        if number == records // 10:
            start = resident_mb()
    return resident_mb() - start


def measure(folder: Path, records: int) -> dict[str, float | None]:
    episodes = [make_episode(number) for number in range(records)]
    mb = sum(len(msgspec.msgpack.encode(e)) for e in episodes) / 1e6
    lines, alone, together = folder / "run.jsonl", folder / "alone", folder / "together"
    lines_write_s = write_jsonl(lines, episodes)
    alone_write_s, _ = asyncio.run(write_store(alone, episodes, 1))
    write_s, commits = asyncio.run(write_store(together, episodes, TOGETHER))
    episodes.clear()

    read_s = best(lambda: sum(1 for _ in read_episodes(alone)), records)
    together_read_s = best(lambda: sum(1 for _ in read_episodes(together)), records)
    lines_read_s = best(lambda: read_lines(lines, json.loads), records)
    msgspec_read_s = best(lambda: read_lines(lines, msgspec.json.decode), records)
    packed = len(zstandard.ZstdCompressor(level=3).compress(lines.read_bytes()))
    return {
        "write_mb_s": mb / write_s,
        "write_records_s": records / write_s,
        "write_alone_records_s": records / alone_write_s,
        "records_per_commit": records / commits,
        "read_mb_s": mb / read_s,
        "read_records_s": records / read_s,
        "read_together_records_s": records / together_read_s,
        "jsonl_write_records_s": records / lines_write_s,
        "jsonl_read_records_s": records / lines_read_s,
        "jsonl_msgspec_read_records_s": records / msgspec_read_s,
        "read_vs_jsonl": lines_read_s / read_s,
        "read_vs_jsonl_msgspec": msgspec_read_s / read_s,
        "size_vs_jsonl": lines.stat().st_size / size(alone),
        "size_vs_jsonl_together": lines.stat().st_size / size(together),
        "size_vs_jsonl_zstd": packed / size(alone),
        "record_kb": mb * 1e3 / records,
        "jsonl_record_kb": lines.stat().st_size / 1e3 / records,
        "read_memory_growth_mb": memory_growth_mb(together, records),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
    try:
        metrics = measure(folder, options.records)
    finally:
        shutil.rmtree(folder)
    report("store", metrics, options.json)


if __name__ == "__main__":
    main()
