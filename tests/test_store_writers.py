"""Several writers in one run: one row of numbers, one order, and what a dead one leaves."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.aio import in_thread
from headrace.configs.models import StoreConfig
from headrace.engine import shards
from headrace.engine.reader import (
    find,
    finished_ids,
    iter_ids,
    latest_episodes,
    list_shards,
    read_episodes,
)
from headrace.engine.shards import may_be_torn, shard_name
from headrace.engine.store import SharedShards, Store
from headrace.errors import RunFolderError
from headrace.types import Episode, StopReason, Verdict, VerdictFault

DEADLINE_S = 50
CONFIG = StoreConfig(fsync=False)


def episode(id: str, *, owed: bool = False) -> Episode:
    fault = VerdictFault.INFRASTRUCTURE if owed else None
    verdict = Verdict(reward=None if owed else 1.0, fault=fault, reason="lost" if owed else "")
    return Episode(
        id=id,
        task="a/b",
        task_digest="d",
        sample=0,
        policy="scripted",
        policy_version="1",
        provider="namespace",
        instruction="Do it.",
        stop_reason=StopReason.DONE,
        verdict=verdict,
    )


async def fill(run: Path, writer: int, *episodes: Episode) -> None:
    async with asyncio.timeout(DEADLINE_S), Store(run, CONFIG, writer=writer) as store:
        for one in episodes:
            await store.append(one)


def names(run: Path) -> list[str]:
    return [path.name for path in list_shards(run / "shards")]


async def test_writers_at_the_same_time_share_one_row_of_numbers(tmp_path: Path) -> None:
    async with SharedShards(tmp_path, CONFIG), asyncio.TaskGroup() as group:
        for writer in (1, 2, 3):
            group.create_task(fill(tmp_path, writer, episode(f"{writer}a"), episode(f"{writer}b")))
    assert [shards.shard_number(p) for p in list_shards(tmp_path / "shards")] == [0, 1, 2]
    assert {shards.shard_writer(p) for p in list_shards(tmp_path / "shards")} == {1, 2, 3}
    assert sorted(iter_ids(tmp_path)) == ["1a", "1b", "2a", "2b", "3a", "3b"]


async def test_the_newest_record_counts_whoever_wrote_it(tmp_path: Path) -> None:
    async with SharedShards(tmp_path, CONFIG):
        await fill(tmp_path, 2, episode("x", owed=True))
    async with SharedShards(tmp_path, CONFIG):
        await fill(tmp_path, 1, episode("x"))
    assert names(tmp_path) == ["000000-2.hrs", "000001-1.hrs"]
    assert finished_ids(tmp_path) == {"x"}
    assert [e.verdict.reward for e in latest_episodes(tmp_path)] == [1.0]
    found = find(tmp_path, "x")
    assert found is not None and found.verdict.reward == 1.0


async def test_a_run_of_one_process_goes_on_after_several(tmp_path: Path) -> None:
    async with SharedShards(tmp_path, CONFIG):
        await fill(tmp_path, 1, episode("a"))
        await fill(tmp_path, 2, episode("b"))
    await fill(tmp_path, 0, episode("c"))
    assert names(tmp_path) == ["000000-1.hrs", "000001-2.hrs", "000002.hrs"]
    assert [e.id for e in read_episodes(tmp_path)] == ["a", "b", "c"]


async def test_nobody_writes_beside_the_writers_of_another_run(tmp_path: Path) -> None:
    async with SharedShards(tmp_path, CONFIG):
        with pytest.raises(RunFolderError, match="in use"):
            await fill(tmp_path, 0, episode("c"))


def torn(run: Path, name: str, *, keep: int) -> None:
    """As a kill leaves it: some bytes of the shard, no index."""
    path = run / "shards" / name
    path.write_bytes(path.read_bytes()[:keep])


async def test_the_torn_ends_of_several_writers_are_cut_and_their_episodes_owed(
    tmp_path: Path,
) -> None:
    async with SharedShards(tmp_path, CONFIG):
        await fill(tmp_path, 1, episode("a"))
        await fill(tmp_path, 2, episode("b"))
    for name in names(tmp_path):
        whole = (tmp_path / "shards" / name).stat().st_size
        torn(tmp_path, name, keep=whole - 90)
    before = {e.id for e in read_episodes(tmp_path)}
    async with SharedShards(tmp_path, CONFIG):
        await fill(tmp_path, 1, episode("c"))
    assert {e.id for e in read_episodes(tmp_path)} == before | {"c"}


async def test_an_empty_shard_before_others_stays_and_is_sealed(tmp_path: Path) -> None:
    async with SharedShards(tmp_path, CONFIG):
        await fill(tmp_path, 1, episode("a"))
        await fill(tmp_path, 2, episode("b"))
    torn(tmp_path, "000000-1.hrs", keep=10)
    assert [e.id for e in read_episodes(tmp_path)] == ["b"]
    async with SharedShards(tmp_path, CONFIG):
        pass
    assert names(tmp_path) == ["000000-1.hrs", "000001-2.hrs"]
    assert shards.read_index(tmp_path / "shards" / "000000-1.hrs") == ()
    assert [e.id for e in read_episodes(tmp_path)] == ["b"]


async def test_an_empty_last_shard_is_removed(tmp_path: Path) -> None:
    async with SharedShards(tmp_path, CONFIG):
        await fill(tmp_path, 1, episode("a"))
        await fill(tmp_path, 2, episode("b"))
    torn(tmp_path, "000001-2.hrs", keep=3)
    async with SharedShards(tmp_path, CONFIG):
        pass
    assert names(tmp_path) == ["000000-1.hrs"]


_WRITER = """
import asyncio, sys
from pathlib import Path
from headrace.engine.store import Store
from tests_support import episode

async def main() -> None:
    async with Store(Path(sys.argv[1]), writer=2) as store:
        for n in range(100_000):
            await store.append(episode(f"b{n}"))
            print(n, flush=True)

asyncio.run(main())
"""


def killed_writer(code: Path, run: Path) -> list[int]:
    """A writer in a process of its own, killed as it writes: what it had acknowledged. Blocking."""
    (code / "tests_support.py").write_text(Path(__file__).read_text())
    (code / "writer.py").write_text(_WRITER)
    line = [sys.executable, str(code / "writer.py"), str(run)]
    with subprocess.Popen(line, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline()) for _ in range(20)]
        process.kill()
        return acknowledged + [int(line) for line in process.stdout.read().split()]


async def test_what_a_killed_writer_acknowledged_is_found_while_others_write(
    tmp_path: Path,
) -> None:
    run, code = tmp_path / "run", tmp_path / "code"
    code.mkdir()
    run.mkdir()
    async with SharedShards(run, CONFIG) as held:
        acknowledged = await in_thread(killed_writer, code, run)
        async with Store(run, CONFIG, writer=1) as store:
            await store.append(episode("a"))
            asked = {f"b{n}" for n in (*acknowledged, 10**6)}
            left = await held.left_by(2, asked)
            await store.append(episode("c"))
    assert {e.id for e in left} == {f"b{n}" for n in acknowledged}
    assert {"a", "c"} <= finished_ids(run)


async def test_what_an_earlier_session_stored_is_not_what_a_dead_writer_left(
    tmp_path: Path,
) -> None:
    async with SharedShards(tmp_path, CONFIG):
        await fill(tmp_path, 1, episode("x", owed=True))
    async with SharedShards(tmp_path, CONFIG) as held:
        assert await held.left_by(1, {"x"}) == []


@given(st.lists(st.integers(0, 3), max_size=12))
def test_at_most_one_shard_of_each_writer_may_be_torn(writers: list[int]) -> None:
    paths = [Path(shard_name(n, writer)) for n, writer in enumerate(writers)]
    found = may_be_torn(paths)
    assert (paths[-1:] == []) or paths[-1] in found
    of = [shards.shard_writer(path) for path in found]
    assert len(of) == len(set(of))
    assert 0 not in of or of == [0]
