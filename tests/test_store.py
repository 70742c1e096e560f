"""The store: durable before acknowledged, whatever happens next."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import tracemalloc
from array import array
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blockbuster import BlockingError, blockbuster_ctx
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.configs.models import StoreConfig
from headrace.engine.reader import (
    find,
    finished_ids,
    iter_ids,
    latest_episodes,
    list_shards,
    read_episodes,
)
from headrace.engine.shards import Damage, ShardWriter
from headrace.engine.store import Store
from headrace.errors import ContractError, RunFolderError, StoreError
from headrace.types import (
    Command,
    CommandResult,
    Episode,
    Segment,
    Span,
    StopReason,
    Turn,
    Verdict,
    VerdictFault,
)

DEADLINE_S = 50


def episode(id: str, **fields: Any) -> Episode:
    """An episode with one turn, unless told otherwise."""
    turn = Turn(
        text="{}",
        commands=(Command(text="ls"),),
        results=(CommandResult(exit_code=0, stdout=b"\xff\x00out", duration_s=0.5),),
    )
    plain: dict[str, Any] = {
        "task": "org/slug",
        "task_digest": "d" * 64,
        "sample": 0,
        "policy": "scripted",
        "policy_version": "v1",
        "provider": "namespace",
        "instruction": "Do it.",
        "turns": (turn,),
        "stop_reason": StopReason.DONE,
        "verdict": Verdict(reward=1.0),
    }
    return Episode(id=id, **(plain | fields))


def faulted(id: str) -> Episode:
    verdict = Verdict(reward=None, fault=VerdictFault.INFRASTRUCTURE, reason="lost: gone")
    return episode(id, verdict=verdict, stop_reason=StopReason.SANDBOX_ERROR)


def noise(id: str, size: int) -> Episode:
    """An episode whose record is `size` bytes that cannot be compressed."""
    return episode(id, segments=(segment(random.Random(id).randbytes(size)),))


def segment(token_ids: bytes) -> Segment:
    return Segment(token_ids=token_ids, logprobs=b"", spans=(Span(turn=0, start=0, end=1),))


async def fill(run: Path, episodes: list[Episode], **config: Any) -> None:
    async with asyncio.timeout(DEADLINE_S), Store(run, StoreConfig(**config)) as store:
        for item in episodes:
            await store.append(item)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# --- round trips ----------------------------------------------------------------------------

records = st.builds(
    Episode,
    id=st.text(max_size=20),
    task=st.text(max_size=20),
    task_digest=st.text(max_size=64),
    sample=st.integers(0, 2**40),
    policy=st.text(max_size=8),
    policy_version=st.text(max_size=8),
    provider=st.sampled_from(["docker", "namespace"]),
    instruction=st.text(),
    observations=st.lists(st.text(), max_size=3).map(tuple),
    turns=st.lists(
        st.builds(
            Turn,
            text=st.text(),
            commands=st.lists(st.builds(Command, text=st.text()), max_size=2).map(tuple),
            results=st.lists(
                st.builds(
                    CommandResult,
                    exit_code=st.none() | st.integers(0, 255),
                    stdout=st.binary(),
                    stderr=st.binary(),
                    duration_s=st.floats(0, 1e6),
                ),
                max_size=2,
            ).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
    segments=st.lists(
        st.builds(
            lambda ids: segment(array("I", ids).tobytes()), st.lists(st.integers(0, 2**32 - 1))
        ),
        max_size=2,
    ).map(tuple),
    stop_reason=st.sampled_from(StopReason),
    verdict=st.builds(
        Verdict,
        reward=st.none() | st.floats(0, 1),
        fault=st.none() | st.sampled_from(VerdictFault),
        rewards=st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False), max_size=3),
    ),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(records, max_size=8))
def test_any_episode_comes_back_as_it_was_appended(
    tmp_path_factory: pytest.TempPathFactory, episodes: list[Episode]
) -> None:
    run = tmp_path_factory.mktemp("run")
    asyncio.run(fill(run, episodes, fsync=False))
    assert list(read_episodes(run)) == episodes
    assert list(iter_ids(run)) == [e.id for e in episodes]
    last = {e.id: e for e in episodes}
    assert {e.id: e for e in latest_episodes(run)} == last
    assert all(find(run, key) == last[key] for key in last)
    assert find(run, "not there" * 3) is None


# --- acknowledging --------------------------------------------------------------------------


async def test_an_episode_is_readable_as_soon_as_its_append_returns(tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), Store(tmp_path) as store:
        for number in range(5):
            await store.append(episode(str(number)))
            assert [e.id for e in read_episodes(tmp_path)] == [str(n) for n in range(number + 1)]
            assert find(tmp_path, str(number)) == episode(str(number))


async def test_appends_that_wait_together_share_blocks_and_a_lone_one_waits_for_none(
    tmp_path: Path,
) -> None:
    async with asyncio.timeout(DEADLINE_S), Store(tmp_path) as store:
        await store.append(episode("alone"))
        assert (store.snapshot().commits, store.snapshot().records) == (1, 1)
        async with asyncio.TaskGroup() as group:
            for number in range(1000):
                group.create_task(store.append(episode(str(number))))
        assert store.snapshot().records == 1001
        assert store.snapshot().commits < 300
    assert sorted(iter_ids(tmp_path)) == sorted(["alone", *map(str, range(1000))])


async def test_no_more_appends_wait_than_the_bound(tmp_path: Path) -> None:
    most = 0

    async def append(number: int) -> None:
        nonlocal most
        await store.append(episode(str(number)))
        most = max(most, store.snapshot().waiting)

    async with asyncio.timeout(DEADLINE_S), Store(tmp_path, max_waiting=3) as store:
        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(append(number))
    assert 1 <= most <= 3
    assert len(list(iter_ids(tmp_path))) == 50


async def test_nothing_the_store_does_blocks_the_event_loop(tmp_path: Path) -> None:
    with blockbuster_ctx():
        with pytest.raises(BlockingError):
            (tmp_path / "file").write_text("the check works")
        async with asyncio.timeout(DEADLINE_S), Store(tmp_path, StoreConfig(shard_mb=1)) as store:
            for number in range(5):
                await store.append(noise(str(number), 400_000))
    assert len(list_shards(tmp_path / "shards")) == 2


async def test_a_cancelled_append_leaves_the_store_working(tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), Store(tmp_path) as store:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(store.append(episode(str(n)))) for n in range(20)]
            tasks[3].cancel()
            tasks[19].cancel()
        await store.append(episode("after"))
        assert store.snapshot().waiting == 0
    stored = set(iter_ids(tmp_path))
    assert {str(n) for n in range(20)} - {"3", "19"} <= stored
    assert "after" in stored


async def test_an_episode_that_cannot_be_encoded_fails_alone(tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), Store(tmp_path) as store:
        with pytest.raises(StoreError, match="episode bad cannot be encoded"):
            await store.append(episode("bad", sample=2**70))
        await store.append(episode("good"))
    assert list(iter_ids(tmp_path)) == ["good"]


async def test_appending_outside_the_block_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ContractError):
        await store.append(episode("early"))
    async with store:
        await store.append(episode("in time"))
    with pytest.raises(ContractError):
        await store.append(episode("late"))


def test_killing_the_writer_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    program = WRITER.format(size=20_000)
    writer = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    acknowledged = [writer.stdout.readline().decode().strip() for _ in range(120)]
    writer.send_signal(signal.SIGKILL)
    acknowledged += writer.stdout.read().decode().split("\n")[:-1]
    writer.stdout.close()
    assert writer.wait(DEADLINE_S) == -signal.SIGKILL

    assert set(acknowledged) <= set(iter_ids(tmp_path))
    before = list(read_episodes(tmp_path))
    asyncio.run(fill(tmp_path, [episode("resumed")]))
    assert list(read_episodes(tmp_path)) == [*before, episode("resumed")]
    assert find(tmp_path, acknowledged[-1]) is not None


WRITER = """
import asyncio, random, sys
from pathlib import Path
from headrace.engine.store import Store
from headrace.configs.models import StoreConfig
from headrace.errors import StoreError
from headrace.types import *

def make(id):
    noise = Segment(token_ids=random.randbytes({size}), logprobs=b"", spans=())
    return Episode(id=id, task="t", task_digest="d", sample=0, policy="p", policy_version="v",
        provider="n", instruction="i", stop_reason=StopReason.DONE, verdict=Verdict(reward=1.0),
        segments=(noise,))

async def one(store, lane):
    for number in range(100_000):
        await store.append(make(f"{{lane}}-{{number}}"))
        print(f"{{lane}}-{{number}}", flush=True)

async def main():
    async with Store(Path(sys.argv[1]), StoreConfig(shard_mb=1)) as store:
        async with asyncio.TaskGroup() as group:
            for lane in range(6):
                group.create_task(one(store, lane))

try:
    asyncio.run(main())
except* StoreError as group:
    print(f"StoreError: {{group.exceptions[0]}}", flush=True)
"""


def out_of_room(command: list[str], run: Path) -> tuple[list[str], str]:
    """Run the writer until the disk is full; what it acknowledged, and the error it met."""
    done = subprocess.run(
        [*command, sys.executable, "-c", WRITER.format(size=40_000), run],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    return [line for line in lines if "Error" not in line], lines[-1]


def test_a_file_that_may_not_grow_stops_the_store_with_what_is_durable_intact(
    tmp_path: Path,
) -> None:
    limited = ["prlimit", f"--fsize={300_000}", "--"]
    acknowledged, error = out_of_room(limited, tmp_path)
    assert len(acknowledged) >= 6
    assert "cannot be written: File too large" in error
    assert set(acknowledged) <= {e.id for e in read_episodes(tmp_path)}
    asyncio.run(fill(tmp_path, [episode("resumed")]))
    assert set(acknowledged) | {"resumed"} <= {e.id for e in read_episodes(tmp_path)}


def test_a_full_disk_stops_the_store_with_what_is_durable_intact(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    inside = f"""
mount -t tmpfs -o size=3m none "$0" && "$@"
cp -r "$0"/shards {tmp_path}/saved
"""
    disk = tmp_path / "disk"
    disk.mkdir()
    acknowledged, error = out_of_room(["unshare", "--mount", "sh", "-c", inside, str(disk)], disk)
    assert len(acknowledged) > 40
    assert "cannot be written: No space left on device" in error
    (tmp_path / "saved").rename(tmp_path / "shards")
    assert len(list_shards(tmp_path / "shards")) == 3
    assert set(acknowledged) <= {e.id for e in read_episodes(tmp_path)}
    asyncio.run(fill(tmp_path, [episode("resumed")]))
    assert set(acknowledged) | {"resumed"} <= {e.id for e in read_episodes(tmp_path)}


async def test_after_a_failure_every_append_says_so(tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), Store(tmp_path) as store:
        (tmp_path / "shards").rename(tmp_path / "gone")
        for _ in range(2):
            with pytest.raises(StoreError, match="cannot be written: No such file"):
                await store.append(episode("x"))
        assert store.snapshot().failed is not None


def test_a_shard_that_cannot_be_sealed_is_told_at_the_end_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    program = """
import asyncio, resource, sys
from pathlib import Path
from headrace.engine.store import Store
from headrace.errors import StoreError
from headrace.types import *

async def main():
    async with Store(Path(sys.argv[1])) as store:
        await store.append(Episode(id="kept", task="t", task_digest="d", sample=0, policy="p",
            policy_version="v", provider="n", instruction="i", stop_reason=StopReason.DONE,
            verdict=Verdict(reward=1.0)))
        size = (Path(sys.argv[1]) / "shards" / "000000.hrs").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, size + 40))

try:
    asyncio.run(main())
except StoreError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert "cannot be written: File too large" in done.stdout, done.stderr
    assert list(iter_ids(tmp_path)) == ["kept"]


@pytest.mark.parametrize("torn", [0, 10])
def test_a_disk_too_full_to_recover_is_told_and_nothing_is_lost(tmp_path: Path, torn: int) -> None:
    (tmp_path / "shards").mkdir()
    writer = ShardWriter(tmp_path / "shards", 0, level=3, fsync=False)
    writer.append([("kept", False, msgspec.msgpack.encode(episode("kept")))])
    writer.close()
    with writer.path.open("ab") as file:
        file.write(b"x" * torn)
    size = writer.path.stat().st_size
    program = """
import asyncio, sys
from pathlib import Path
from headrace.engine.store import Store
from headrace.errors import StoreError

async def main():
    async with Store(Path(sys.argv[1])):
        print("opened")

try:
    asyncio.run(main())
except StoreError as error:
    print(error)
"""
    done = subprocess.run(
        ["prlimit", f"--fsize={size + 20}", "--", sys.executable, "-c", program, tmp_path],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert "000000.hrs: cannot be written: File too large" in done.stdout, done.stderr
    assert "opened" not in done.stdout
    assert list(read_episodes(tmp_path)) == [episode("kept")]
    asyncio.run(fill(tmp_path, [episode("resumed")]))
    assert list(iter_ids(tmp_path)) == ["kept", "resumed"]


async def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/run/shards cannot be written: Not a directory"):
        async with Store(tmp_path / "file" / "run"):
            pass


# --- one writer, many readers ---------------------------------------------------------------


async def test_a_second_writer_is_refused_with_who_holds_the_store(tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), Store(tmp_path) as store:
        with pytest.raises(RunFolderError, match=f"in use by process {os.getpid()} on .* since"):
            async with Store(tmp_path):
                pass
        await store.append(episode("mine"))
    await fill(tmp_path, [episode("next")])
    assert list(iter_ids(tmp_path)) == ["mine", "next"]


async def test_readers_see_a_prefix_while_the_run_goes_on(tmp_path: Path) -> None:
    lengths: list[int] = []

    async def reading() -> None:
        while not lengths or lengths[-1] < 150:
            seen = await asyncio.to_thread(lambda: [e.id for e in read_episodes(tmp_path)])
            assert seen == [str(n) for n in range(len(seen))]
            newest = await asyncio.to_thread(lambda: [e.id for e in latest_episodes(tmp_path)])
            assert newest == [str(n) for n in range(len(newest))]
            lengths.append(len(seen))

    async with asyncio.timeout(DEADLINE_S), Store(tmp_path, StoreConfig(shard_mb=1)) as store:
        async with asyncio.TaskGroup() as group:
            group.create_task(reading())
            for number in range(150):
                await store.append(noise(str(number), 30_000))
    assert lengths == sorted(lengths)
    assert len(list_shards(tmp_path / "shards")) > 3


def test_reading_holds_one_block_however_long_the_run(tmp_path: Path) -> None:
    asyncio.run(fill(tmp_path, [noise(str(n), 400_000) for n in range(150)], fsync=False))
    peaks = []
    for read in (read_episodes, latest_episodes):
        tracemalloc.start()
        try:
            assert sum(1 for _ in read(tmp_path)) == 150
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert max(peaks) < 8e6, "the run is 60 MB"


# --- shards ---------------------------------------------------------------------------------


async def test_a_shard_is_sealed_at_its_size_and_the_next_begun(tmp_path: Path) -> None:
    episodes = [noise(str(n), 300_000) for n in range(10)]
    async with asyncio.timeout(DEADLINE_S), Store(tmp_path, StoreConfig(shard_mb=1)) as store:
        for item in episodes:
            await store.append(item)
        found = [find(tmp_path, e.id) for e in episodes]  # the last shard is not sealed yet
        assert found == episodes
        assert store.snapshot().shard == "000002.hrs"
        assert "records=10" in repr(store)
    assert [p.name for p in list_shards(tmp_path / "shards")] == [f"{n:06}.hrs" for n in range(3)]
    assert list(read_episodes(tmp_path)) == episodes


async def test_a_store_without_episodes_leaves_no_shard(tmp_path: Path) -> None:
    await fill(tmp_path, [])
    assert list_shards(tmp_path / "shards") == []
    assert list(read_episodes(tmp_path)) == []


async def test_the_tail_a_dead_writer_left_is_cut_when_the_store_opens(tmp_path: Path) -> None:
    await fill(tmp_path, [episode("a"), episode("b")])
    shard = list_shards(tmp_path / "shards")[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    before = list(iter_ids(tmp_path))
    async with asyncio.timeout(DEADLINE_S), Store(tmp_path) as store:
        assert store.snapshot().torn_bytes > 0
        await store.append(episode("c"))
    assert list(iter_ids(tmp_path)) == [*before, "c"]


async def test_a_number_is_used_again_when_the_dead_writer_left_no_record(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "000000.hrs").write_bytes(b"\x89HRS")
    await fill(tmp_path, [episode("a")])
    assert [p.name for p in list_shards(tmp_path / "shards")] == ["000000.hrs"]
    assert list(iter_ids(tmp_path)) == ["a"]


async def test_a_missing_shard_is_told(tmp_path: Path) -> None:
    await fill(tmp_path, [noise(str(n), 1 << 20) for n in range(3)], shard_mb=1)
    (tmp_path / "shards" / "000001.hrs").unlink()
    with pytest.raises(RunFolderError, match=r"000001\.hrs is missing, but 000002\.hrs is there"):
        list(read_episodes(tmp_path))


async def test_a_foreign_name_among_the_shards_is_told(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "notes.hrs").write_text("")
    with pytest.raises(RunFolderError, match=r"notes\.hrs is not a shard"):
        async with Store(tmp_path):
            pass


# --- damage and newer records ---------------------------------------------------------------


async def test_damage_is_an_error_with_shard_and_offset_or_is_passed_on(tmp_path: Path) -> None:
    await fill(tmp_path, [noise(str(n), 5000) for n in range(3)])
    shard = list_shards(tmp_path / "shards")[0]
    flip(shard, shard.stat().st_size // 2)
    reading = read_episodes(tmp_path)
    assert next(reading).id == "0"
    with pytest.raises(RunFolderError, match=r"000000\.hrs: damaged block, bytes \d+ to \d+; lost"):
        next(reading)
    damage: list[Damage] = []
    rest = [e.id for e in read_episodes(tmp_path, on_damage=damage.append)]
    assert rest == ["0", "2"]
    assert [d.ids for d in damage] == [("1",)]
    with pytest.raises(RunFolderError, match="damaged block at byte"):
        find(tmp_path, "1")
    assert finished_ids(tmp_path, on_damage=damage.append) == {"0", "2"}


async def test_an_episode_is_found_without_the_index_when_that_is_damaged(tmp_path: Path) -> None:
    await fill(tmp_path, [episode("a"), episode("b")])
    flip(list_shards(tmp_path / "shards")[0], -40)
    assert find(tmp_path, "b") == episode("b")


async def test_the_newer_record_of_an_id_counts(tmp_path: Path) -> None:
    await fill(tmp_path, [faulted("a"), episode("b"), episode("a", tries=4), faulted("c")])
    await fill(tmp_path, [faulted("d"), episode("c", tries=5)])
    newest = list(latest_episodes(tmp_path))
    assert [(e.id, e.tries) for e in newest] == [("b", 1), ("a", 4), ("d", 1), ("c", 5)]
    assert finished_ids(tmp_path) == {"a", "b", "c"}
    assert [e.id for e in read_episodes(tmp_path)] == ["a", "b", "a", "c", "d", "c"]
    again = find(tmp_path, "a")
    assert again is not None
    assert again.tries == 4


async def test_a_cancelled_episode_is_not_finished(tmp_path: Path) -> None:
    await fill(tmp_path, [episode("a", stop_reason=StopReason.CANCELLED), episode("b")])
    assert finished_ids(tmp_path) == {"b"}


async def test_a_record_that_is_no_episode_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    writer = ShardWriter(tmp_path / "shards", 0, level=3, fsync=True)
    writer.append([("odd", False, msgspec.msgpack.encode({"id": "odd"}))])
    writer.close()
    with pytest.raises(RunFolderError, match="record of episode odd at byte 28 is not an episode"):
        list(read_episodes(tmp_path))
