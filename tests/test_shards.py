"""One shard: torn tails, flipped bytes, foreign and newer files."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine import frames, shards
from headrace.engine.frames import Entry, Kind
from headrace.engine.shards import Block, Damage, End, ShardWriter
from headrace.errors import RunFolderError

Content = list[list[tuple[str, bool, bytes]]]

CONTENT: Content = [
    [("a", False, b"first record"), ("b", True, b"second record")],
    [("c", False, b"")],
    [("d", False, bytes(range(256)))],
]


def write(
    folder: Path, content: Content, *, seal: bool = True, number: int = 0
) -> tuple[Path, list[int]]:
    """A shard, and the offset of each block's end."""
    writer = ShardWriter(folder, number, level=3, fsync=False)
    ends = []
    for block in content:
        writer.append(block)
        ends.append(writer.offset)
    if seal:
        writer.seal()
    writer.close()
    return writer.path, ends


def scanned(path: Path, *, last: bool = True) -> tuple[list[Block], list[Damage], End]:
    blocks: list[Block] = []
    damage: list[Damage] = []
    end = End(-1, sealed=False)
    for item in shards.scan(path, last=last):
        assert end.offset == -1, "nothing comes after the end"
        match item:
            case Block():
                blocks.append(item)
            case Damage():
                damage.append(item)
            case End():
                end = item
    return blocks, damage, end


def ids(blocks: list[Block]) -> list[str]:
    return [entry.id for block in blocks for entry in block.entries]


def test_a_sealed_shard_scans_without_damage_and_its_index_agrees(tmp_path: Path) -> None:
    path, _ = write(tmp_path, CONTENT)
    blocks, damage, end = scanned(path, last=False)
    assert (ids(blocks), damage, end.sealed) == (["a", "b", "c", "d"], [], True)
    assert shards.read_index(path) == tuple(block.indexed() for block in blocks)


@given(
    st.lists(
        st.lists(st.tuples(st.text(max_size=8), st.booleans(), st.binary(max_size=64)), min_size=1),
        min_size=1,
        max_size=5,
    )
)
def test_blocks_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, content: Content
) -> None:
    path, _ = write(tmp_path_factory.mktemp("shard"), content)
    blocks, damage, _ = scanned(path)
    assert not damage
    expected = [tuple(Entry(key, len(data), owed) for key, owed, data in b) for b in content]
    assert [block.entries for block in blocks] == expected
    decompressor = zstandard.ZstdDecompressor()
    raws = [frames.unpack_payload(b.header, b.payload, decompressor) for b in blocks]
    assert raws == [b"".join(data for _, _, data in block) for block in content]


@pytest.mark.parametrize("seal", [True, False], ids=["sealed", "unsealed"])
def test_a_tail_torn_at_any_byte_loses_only_what_is_torn(tmp_path: Path, seal: bool) -> None:
    path, ends = write(tmp_path, CONTENT, seal=seal)
    data = path.read_bytes()
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        blocks, damage, end = scanned(path)
        assert (len(blocks), damage, end.sealed) == (whole, [], False), cut
        expected = ends[whole - 1] if whole else min(frames.SHARD_HEADER_BYTES, end.offset)
        assert end.offset == expected, cut


@pytest.mark.parametrize("seal", [True, False], ids=["sealed", "unsealed"])
def test_recovery_cuts_a_tail_torn_at_any_byte_and_seals(tmp_path: Path, seal: bool) -> None:
    path, ends = write(tmp_path, CONTENT, seal=seal)
    data = path.read_bytes()
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        torn = shards.recover(path, level=3, fsync=False)
        if not whole:
            assert not path.exists(), cut
            continue
        assert torn == cut - ends[whole - 1]
        blocks, damage, end = scanned(path, last=False)
        assert (len(blocks), damage, end.sealed) == (whole, [], True), cut
        assert shards.read_index(path) == tuple(block.indexed() for block in blocks)


def test_recovery_leaves_a_sealed_shard_alone(tmp_path: Path) -> None:
    path, _ = write(tmp_path, CONTENT)
    before = path.read_bytes()
    assert shards.recover(path, level=3, fsync=True) == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("last", [True, False], ids=["last", "not-last"])
def test_any_flipped_byte_of_a_sealed_shard_is_reported_and_the_rest_stays_readable(
    tmp_path: Path, last: bool
) -> None:
    path, ends = write(tmp_path, CONTENT)
    starts = [frames.SHARD_HEADER_BYTES, *ends]
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(flip(data, at))
        blocks, damage, _ = scanned(path, last=last)
        hit = [i for i in range(len(CONTENT)) if starts[i] <= at < ends[i]]
        untouched = [key for i, b in enumerate(CONTENT) if i not in hit for key, _, _ in b]
        assert ids(blocks) == untouched, at
        assert len(damage) == 1, at
        assert damage[0].offset <= at < damage[0].end, at
        assert damage[0].shard == str(path)


def test_a_flipped_byte_of_an_unsealed_shard_never_yields_wrong_records(tmp_path: Path) -> None:
    path, ends = write(tmp_path, CONTENT, seal=False)
    starts = [frames.SHARD_HEADER_BYTES, *ends]
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(flip(data, at))
        blocks, damage, end = scanned(path)
        hit = [i for i in range(len(CONTENT)) if starts[i] <= at < ends[i]]
        assert ids(blocks) == [k for i, b in enumerate(CONTENT) if i not in hit for k, _, _ in b]
        if hit == [len(CONTENT) - 1]:  # not to be told from a torn tail: cut, and owed again
            assert (damage, end.offset) == ([], starts[-2]), at
        else:
            assert len(damage) == 1, at


def test_damage_names_the_episodes_that_are_lost_where_their_directory_is_intact(
    tmp_path: Path,
) -> None:
    path, ends = write(tmp_path, CONTENT)
    data = path.read_bytes()
    path.write_bytes(flip(data, ends[0] - 1))
    _, damage, _ = scanned(path)
    assert damage[0].ids == ("a", "b")
    assert str(damage[0]).startswith(f"{path}: damaged block, bytes {frames.SHARD_HEADER_BYTES} to")
    assert str(damage[0]).endswith("lost: a, b")


def test_recovery_rebuilds_a_damaged_index(tmp_path: Path) -> None:
    path, ends = write(tmp_path, CONTENT)
    before = path.read_bytes()
    for at in range(ends[-1], len(before)):
        path.write_bytes(flip(before, at))
        assert shards.read_index(path) is None
        shards.recover(path, level=3, fsync=False)
        assert path.read_bytes() == before, at


def test_recovery_keeps_what_lies_behind_damage(tmp_path: Path) -> None:
    path, ends = write(tmp_path, CONTENT, seal=False)
    data = flip(path.read_bytes(), ends[0] - 1)
    path.write_bytes(data + b"torn")
    assert shards.recover(path, level=3, fsync=False) == 4
    blocks, damage, end = scanned(path, last=False)
    assert (ids(blocks), len(damage), end.sealed) == (["c", "d"], 1, True)
    assert [e.id for b in shards.read_index(path) or () for e in b.entries] == ["c", "d"]


def test_a_shard_of_nothing_but_damage_is_not_removed(tmp_path: Path) -> None:
    path, ends = write(tmp_path, CONTENT[:1])
    path.write_bytes(flip(path.read_bytes(), ends[0] - 1)[: ends[0]] + b"more")
    assert shards.recover(path, level=3, fsync=False) >= 0
    assert path.exists()


def test_a_stored_output_cannot_pass_for_a_frame(tmp_path: Path) -> None:
    sync, guess = b"12345678", b"GUESSED!"
    directory = frames.pack_directory((Entry("forged", 1, False),))
    forged = frames.pack_frame(guess, Kind.BLOCK, directory, 1, b"x")
    head = frames.pack_shard_header(frames.ShardHeader(number=0, sync=sync))
    victim = frames.pack_frame(sync, Kind.BLOCK, frames.pack_directory(()), 9, forged)
    following = frames.pack_frame(
        sync, Kind.BLOCK, frames.pack_directory((Entry("next", 1, False),)), 1, b"y"
    )
    path = tmp_path / "000000.hrs"
    path.write_bytes(flip(head + victim + following, len(head) + 12))
    blocks, damage, _ = scanned(path)
    assert ids(blocks) == ["next"]
    assert (damage[0].offset, damage[0].end) == (len(head), len(head + victim))


@pytest.mark.parametrize(
    ("field", "told"), [("format", "shard format 9"), ("episode_schema", "episode schema 9")]
)
def test_a_shard_of_a_newer_headrace_is_refused(tmp_path: Path, field: str, told: str) -> None:
    header = frames.ShardHeader(number=0, sync=b"12345678")
    newer = msgspec.structs.replace(header, **{field: 9})
    path = tmp_path / "000000.hrs"
    path.write_bytes(frames.pack_shard_header(newer) + b"whatever" * 9)
    with pytest.raises(RunFolderError, match=f"newer headrace.*{told}.*Upgrade"):
        scanned(path)
    with pytest.raises(RunFolderError, match="newer headrace"):
        shards.read_index(path)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "000000.hrs"
    path.write_bytes(b'{"this": "is JSON"}\n' * 20)
    for read in (scanned, lambda p: shards.recover(p, level=3, fsync=False)):
        with pytest.raises(RunFolderError, match="is not a shard of headrace"):
            read(path)


def test_a_header_of_zeros_in_the_last_shard_is_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "000000.hrs"
    path.write_bytes(bytes(200))
    assert scanned(path) == ([], [], End(0, sealed=False))


def test_bytes_behind_the_trailer_are_damage(tmp_path: Path) -> None:
    path, _ = write(tmp_path, CONTENT)
    path.write_bytes(path.read_bytes() + b"!")
    assert len(scanned(path, last=False)[1]) == 1


def test_a_shard_that_should_be_sealed_and_is_not_is_damage(tmp_path: Path) -> None:
    path, _ = write(tmp_path, CONTENT, seal=False)
    blocks, damage, _ = scanned(path, last=False)
    assert ids(blocks) == ["a", "b", "c", "d"]
    assert [d.what for d in damage] == ["the end is missing"]


def test_a_shard_under_another_name_is_damage(tmp_path: Path) -> None:
    path, _ = write(tmp_path, CONTENT, number=3)
    moved = path.rename(tmp_path / "000004.hrs")
    blocks, damage, _ = scanned(moved)
    assert ids(blocks) == ["a", "b", "c", "d"]
    assert damage[0].what == "shard 3 under another name"


def test_an_unreadable_shard_is_told_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "000000.hrs"
    path.mkdir()
    with pytest.raises(RunFolderError, match=r"000000\.hrs cannot be read: Is a directory"):
        scanned(path)


def test_a_shard_shorter_than_its_ends_has_no_index(tmp_path: Path) -> None:
    path = tmp_path / "000000.hrs"
    path.write_bytes(b"\x89HRSHD")
    assert shards.read_index(path) is None


def test_a_shard_that_cannot_be_begun_is_told(tmp_path: Path) -> None:
    program = "from pathlib import Path; from headrace.engine.shards import ShardWriter\n"
    program += f"ShardWriter(Path({str(tmp_path)!r}), 0, level=3, fsync=True)"
    done = subprocess.run(
        ["prlimit", "--fsize=10", "--", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "StoreError" in done.stderr
    assert "000000.hrs: cannot be written: File too large" in done.stderr
    assert scanned(tmp_path / "000000.hrs") == ([], [], End(0, sealed=False))


def test_a_frame_of_unknown_kind_is_damage(tmp_path: Path) -> None:
    path, ends = write(tmp_path, CONTENT, seal=False)
    data = path.read_bytes()
    sync = data[frames.SHARD_HEADER_BYTES :][: frames.SYNC_BYTES]
    fixed = struct.pack("<8sIIIII", sync, 9, 1, 0, 0, 0)
    strange = fixed + struct.pack("<I", zlib.crc32(b"\x90", zlib.crc32(fixed))) + b"\x90"
    path.write_bytes(data[: ends[0]] + strange + data[ends[0] :])
    blocks, damage, _ = scanned(path)
    assert ids(blocks) == ["a", "b", "c", "d"]
    assert [d.offset for d in damage] == [ends[0]]


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
