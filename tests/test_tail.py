"""Following the shards of a run that goes on: no gap, no repetition, whoever writes or dies."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.aio import in_thread
from headrace.configs.models import StoreConfig
from headrace.engine import shards
from headrace.engine.locks import FolderLock, holding
from headrace.engine.reader import Place, list_shards, read_episodes
from headrace.engine.resume import is_owed
from headrace.engine.shards import Damage, ShardWriter, recover, shard_number, shard_writer
from headrace.engine.store import SharedShards, Store
from headrace.engine.tail import Tail, session
from headrace.errors import RunFolderError
from headrace.types import Episode, StopReason, Verdict, VerdictFault

DEADLINE_S = 50
CONFIG = StoreConfig(fsync=False)


def episode(id: str, *, owed: bool = False, text: str = "Do it.") -> Episode:
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
        instruction=text,
        stop_reason=StopReason.DONE,
        verdict=verdict,
    )


def news(tail: Tail) -> list[str]:
    """The ids of everything that is new."""
    found: list[str] = []
    while records := tail.read():
        found += [one.id for _, one in records]
    return found


async def fill(run: Path, *ids: str, writer: int = 0) -> None:
    async with asyncio.timeout(DEADLINE_S), Store(run, CONFIG, writer=writer) as store:
        for id in ids:
            await store.append(episode(id))


# --- one writer -----------------------------------------------------------------------------


async def test_a_record_is_told_once_as_soon_as_it_is_acknowledged(tmp_path: Path) -> None:
    with Tail(tmp_path) as tail:
        assert news(tail) == []
        async with asyncio.timeout(DEADLINE_S), Store(tmp_path, CONFIG) as store:
            assert news(tail) == []
            for id in ("a", "b", "c"):
                await store.append(episode(id))
                assert news(tail) == [id]
            assert news(tail) == []
        assert news(tail) == []  # sealing brings no record


async def test_what_is_stored_before_the_tail_begins_is_told_too(tmp_path: Path) -> None:
    await fill(tmp_path, "a", "b")
    await fill(tmp_path, "c")
    with Tail(tmp_path) as tail:
        assert news(tail) == ["a", "b", "c"]


async def test_the_place_is_where_the_record_lies(tmp_path: Path) -> None:
    await fill(tmp_path, "a")
    await fill(tmp_path, "b")
    with Tail(tmp_path) as tail:
        ((first, _),) = tail.read()
        ((second, _),) = tail.read()
    assert first < second
    assert [first.shard, second.shard] == [0, 1]


async def test_a_read_is_one_block(tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), Store(tmp_path, CONFIG) as store:
        await store.append(episode("first"))
        async with asyncio.TaskGroup() as group:
            for n in range(20):
                group.create_task(store.append(episode(str(n))))
        commits = store.snapshot().commits
    with Tail(tmp_path) as tail:
        reads = list(iter(tail.read, []))
    assert len(reads) == commits < 21
    assert sum(map(len, reads)) == 21


async def test_a_record_that_is_stored_again_comes_again_in_a_later_place(tmp_path: Path) -> None:
    with Tail(tmp_path) as tail:
        async with asyncio.timeout(DEADLINE_S), Store(tmp_path, CONFIG) as store:
            await store.append(episode("a", owed=True))
        ((first, failed),) = tail.read()
        await fill(tmp_path, "a")
        assert tail.read() == []
        ((second, counted),) = tail.read()
    assert is_owed(failed)
    assert not is_owed(counted)
    assert first < second


# --- writers that die, and those that come after --------------------------------------------


def begin(run: Path, number: int, writer: int = 0) -> ShardWriter:
    (run / "shards").mkdir(parents=True, exist_ok=True)
    return ShardWriter(run / "shards", number, level=3, fsync=False, writer=writer)


def record(id: str) -> tuple[str, bool, bytes]:
    return id, False, msgspec.msgpack.encode(episode(id))


def test_half_a_frame_is_no_damage_and_is_read_again_when_it_is_whole(tmp_path: Path) -> None:
    writer = begin(tmp_path, 0)
    writer.append([record("a")])
    half = writer.offset
    writer.append([record("b")])
    whole = writer.path.read_bytes()
    with Tail(tmp_path) as tail:
        for size in range(len(whole)):
            writer.path.write_bytes(whole[:size])
            assert news(tail) == (["a"] if size == half else [])
        writer.path.write_bytes(whole)
        assert news(tail) == ["b"]
    writer.close()


def test_a_resumed_run_cuts_the_torn_tail_and_its_records_follow(tmp_path: Path) -> None:
    dead = begin(tmp_path, 0)
    dead.append([record("a")])
    dead.append([record("lost")])
    os.truncate(dead.path, dead.offset - 1)
    dead.close()
    with Tail(tmp_path) as tail:
        assert news(tail) == ["a"]
        recover(dead.path, level=3, fsync=False)
        assert news(tail) == []
        after = begin(tmp_path, 1)
        after.append([record("lost")])
        assert news(tail) == ["lost"]
        after.close()


def test_a_shard_without_a_record_is_removed_and_its_number_comes_again(tmp_path: Path) -> None:
    dead = begin(tmp_path, 0)
    dead.close()
    with dead.path.open("ab") as file:
        file.write(b"torn" * 100)
    with Tail(tmp_path) as tail:
        assert news(tail) == []
        recover(dead.path, level=3, fsync=False)
        assert news(tail) == []
        again = begin(tmp_path, 0)
        again.append([record("a")])
        assert news(tail) == ["a"]
        again.seal()
        assert news(tail) == []


_WRITER = """
import asyncio, sys
from pathlib import Path
from headrace.engine.store import Store
from tests_support import episode

async def main() -> None:
    async with Store(Path(sys.argv[1])) as store:
        for n in range(100_000):
            await store.append(episode(str(n)))
            print(n, flush=True)

asyncio.run(main())
"""


def killed_writer(code: Path, run: Path, tail: Tail) -> tuple[list[str], int]:
    """A process that writes, followed and then killed: what was told, what it acknowledged."""
    code.mkdir()
    (code / "tests_support.py").write_text(Path(__file__).read_text())
    (code / "writer.py").write_text(_WRITER)
    told: list[str] = []
    line = [sys.executable, str(code / "writer.py"), str(run)]
    with subprocess.Popen(line, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for n in range(20):
            process.stdout.readline()
            told += news(tail)
            assert str(n) in told
        process.kill()
        rest = process.stdout.read().split()
    return told + news(tail), 20 + len(rest)


async def test_all_that_a_killed_writer_acknowledged_is_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Tail(run) as tail:
        told, acknowledged = await in_thread(killed_writer, tmp_path / "code", run, tail)
        await fill(run, "after")
        told += news(tail)
    assert told[:acknowledged] == [str(n) for n in range(acknowledged)]
    assert told == [one.id for one in read_episodes(run)]


# --- several writers ------------------------------------------------------------------------


async def test_several_writers_are_followed_at_the_same_time(tmp_path: Path) -> None:
    with Tail(tmp_path) as tail:
        async with asyncio.timeout(DEADLINE_S), SharedShards(tmp_path, CONFIG):
            async with Store(tmp_path, CONFIG, writer=1) as one:
                await one.append(episode("1a"))
                assert news(tail) == ["1a"]
                async with Store(tmp_path, CONFIG, writer=2) as two:
                    await two.append(episode("2a"))
                    await one.append(episode("1b"))
                    assert news(tail) == ["1b", "2a"]
                assert news(tail) == []
                await one.append(episode("1c"))
                assert news(tail) == ["1c"]


# --- damage ---------------------------------------------------------------------------------


async def spoilt(run: Path) -> Path:
    """Two sealed shards, of which the first has a damaged block between two others."""
    await fill(run, "a", "b", "c")
    await fill(run, "d")
    path = list_shards(run / "shards")[0]
    index = shards.read_index(path)
    assert index is not None
    data = bytearray(path.read_bytes())
    data[index[2].offset - 1] ^= 1
    path.write_bytes(data)
    return path


async def test_damage_is_told_once_and_what_is_around_it_is_read(tmp_path: Path) -> None:
    path = await spoilt(tmp_path)
    damages: list[Damage] = []
    with Tail(tmp_path, on_damage=damages.append) as tail:
        assert news(tail) == ["a", "c", "d"]
        assert news(tail) == []
    assert [(d.shard, d.ids) for d in damages] == [(str(path), ("b",))]


async def test_damage_is_raised_where_nobody_is_to_be_told(tmp_path: Path) -> None:
    await spoilt(tmp_path)
    with Tail(tmp_path) as tail:
        assert [one.id for _, one in tail.read()] == ["a"]
        with pytest.raises(RunFolderError, match="damaged block"):
            tail.read()


def test_a_missing_shard_is_no_end_of_the_run(tmp_path: Path) -> None:
    begin(tmp_path, 0).seal()
    begin(tmp_path, 2).seal()
    with Tail(tmp_path) as tail, pytest.raises(RunFolderError, match=r"000001\.hrs is missing"):
        tail.read()


def test_a_shard_that_looks_as_it_did_is_not_read_again(tmp_path: Path) -> None:
    writer = begin(tmp_path, 0)
    writer.append([record("a")])
    with Tail(tmp_path) as tail:
        assert news(tail) == ["a"]
        was = writer.path.stat()
        writer.path.write_bytes(b"?" * was.st_size)  # a read would say that this is no shard
        os.utime(writer.path, ns=(was.st_atime_ns, was.st_mtime_ns))
        assert news(tail) == []
    writer.close()


# --- whether anybody writes -----------------------------------------------------------------


def test_a_session_goes_on_as_long_as_its_lock_is_held(tmp_path: Path) -> None:
    assert session(tmp_path) is None
    lock = FolderLock(tmp_path / "run.lock")
    first = session(tmp_path)
    assert first is not None
    assert session(tmp_path) == first
    lock.close()
    assert session(tmp_path) is None


def test_another_session_has_another_number(tmp_path: Path) -> None:
    found = set()
    for _ in range(3):
        lock = FolderLock(tmp_path / "run.lock")
        found.add(session(tmp_path))
        lock.close()
        os.utime(lock_file := tmp_path / "run.lock", ns=(1, lock_file.stat().st_mtime_ns - 10**9))
    assert len(found) == 3


def test_a_process_that_inherited_the_lock_is_still_a_session(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "run.lock")
    line = [sys.executable, "-c", "input()"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, pass_fds=(lock.fileno(),)) as child:
        lock.close()
        assert session(tmp_path) is not None
        child.communicate(b"\n")
    assert session(tmp_path) is None


def test_who_asks_for_the_holder_keeps_no_run_from_starting(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    FolderLock(path).close()
    asking = (
        "import sys, time\nfrom pathlib import Path\nfrom headrace.engine.locks import holding\n"
    )
    asking += "print('on', flush=True)\nwhile True: time.sleep(1e-3); holding(Path(sys.argv[1]))\n"
    line = [sys.executable, "-c", asking, str(path)]
    with subprocess.Popen(line, stdout=subprocess.PIPE) as asks:
        assert asks.stdout is not None
        asks.stdout.readline()
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            FolderLock(path).close()
        asks.kill()


# --- any order ------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "append", "read", "seal", "die", "resume"]),
        st.integers(1, 3),
    ),
    max_size=40,
)


class Runs:
    """A run whose writers append, seal and die as they are told."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.open: dict[int, ShardWriter] = {}
        self.stored = 0

    def step(self, what: str, writer: int) -> None:
        match what:
            case "append":
                self._of(writer).append([record(str(self.stored + n)) for n in range(writer)])
                self.stored += writer
            case "seal" if writer in self.open:
                self.open.pop(writer).seal()
            case "die" if writer in self.open:
                self._die(self.open.pop(writer))
            case "resume":
                self._resume()

    def _of(self, writer: int) -> ShardWriter:
        if writer not in self.open:
            with shards.next_number(self.run / "shards") as number:
                self.open[writer] = begin(self.run, number, writer)
        return self.open[writer]

    def _die(self, dying: ShardWriter) -> None:
        """In the middle of a frame; another process closes what it left, as the fleet does."""
        dying.close()
        with dying.path.open("ab") as file:
            file.write(dying.path.read_bytes()[-20:])
        for path in list_shards(self.run / "shards"):
            if shard_writer(path) == shard_writer(dying.path):
                recover(path, level=3, fsync=False, keep=True)

    def _resume(self) -> None:
        """All die, and the next session recovers what they left."""
        for left in self.open.values():
            left.close()
            with left.path.open("ab") as file:
                file.write(b"\0" * left.offset)
        self.open.clear()
        paths = list_shards(self.run / "shards")
        torn = shards.may_be_torn(paths)
        for path in reversed(paths):
            if path in torn:
                recover(path, level=3, fsync=False, keep=shard_number(path) < len(paths) - 1)

    def close(self) -> None:
        for left in self.open.values():
            left.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("tails")


@settings(deadline=None)
@given(steps)
def test_in_any_order_every_record_is_told_once(folders: Path, todo: list[tuple[str, int]]) -> None:
    run = folders / f"{len(list(folders.iterdir()))}"
    (run / "shards").mkdir(parents=True)
    runs = Runs(run)
    told: list[tuple[Place, str]] = []
    with Tail(run) as tail:
        for what, writer in todo:
            runs.step(what, writer)
            if what == "read":
                told += [(place, one.id) for place, one in tail.read()]
        # The first read may only end a pass that began before the last step.
        while records := [*tail.read(), *tail.read()]:
            told += [(place, one.id) for place, one in records]
    runs.close()
    assert [id for _, id in sorted(told)] == [one.id for one in read_episodes(run)]
    assert sorted(int(id) for _, id in told) == list(range(runs.stored))
    for shard in {place.shard for place, _ in told}:
        places = [place for place, _ in told if place.shard == shard]
        assert places == sorted(places)


def test_no_lock_file_is_no_session(tmp_path: Path) -> None:
    assert holding(tmp_path / "run.lock") is None
