"""What comes out of a sandbox as an archive is written below one folder, whatever it says."""

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from headrace.engine.unpacking import TooMuch, Unpacked, unpack_below
from headrace.sandbox.archive import ArchiveError, unpack

Member = tuple[str, bytes | str, str]
"""Name, content or target, and kind: `file`, `dir`, `link`, `hard`, `fifo` or `device`."""
KINDS = {
    "file": tarfile.REGTYPE,
    "dir": tarfile.DIRTYPE,
    "link": tarfile.SYMTYPE,
    "hard": tarfile.LNKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "device": tarfile.CHRTYPE,
}


def archive(*members: Member, mode: int = 0o644) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, what, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = KINDS[kind], mode
            if isinstance(what, str):
                info.linkname = what
                tar.addfile(info)
            else:
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
    return out.getvalue()


def unpacked(tmp_path: Path, *members: Member, max_bytes: int = 1000) -> Unpacked:
    return unpack_below(archive(*members), tmp_path / "into", max_bytes=max_bytes)


def written(tmp_path: Path) -> set[str]:
    """Everything below the folder, and nothing beside it."""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["into"]
    root = tmp_path / "into"
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_symlink() or p.is_file()}


def test_files_and_folders_are_written_with_their_modes(tmp_path: Path) -> None:
    data = archive(("./a/run", b"x", "file"), ("./b", b"", "dir"), mode=0o6700)
    assert unpack_below(data, tmp_path / "into", max_bytes=10).files == 1
    assert (tmp_path / "into/a/run").read_bytes() == b"x"
    mode = (tmp_path / "into/a/run").stat().st_mode
    assert stat.S_IMODE(mode) == 0o755, "for all, and no setuid bit"
    assert (tmp_path / "into/b").is_dir()


@pytest.mark.parametrize(
    "member",
    [
        ("/etc/passwd", b"x", "file"),
        ("../beside", b"x", "file"),
        ("a/../../beside", b"x", "file"),
        ("up", "..", "link"),
        ("up", "a/../../beside", "link"),
        ("root", "/etc/passwd", "link"),
        ("a/b/up", "../../../beside", "link"),
        ("empty", "", "link"),
        ("hard", "/etc/passwd", "hard"),
        ("pipe", "", "fifo"),
        ("zero", "", "device"),
    ],
)
def test_what_leaves_the_folder_or_is_no_file_is_left_out_by_name(
    tmp_path: Path, member: Member
) -> None:
    found = unpacked(tmp_path, member, ("kept", b"y", "file"))
    assert written(tmp_path) == {"kept"}
    assert found.refused == (member[0],)
    assert repr(member[0]) in found.detail


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    data = archive(
        ("d", str(tmp_path / "outside"), "link"), ("d/file", b"x", "file"), ("d/l", "file", "link")
    )
    unpack_below(data, tmp_path / "into", max_bytes=10)
    assert list((tmp_path / "outside").iterdir()) == []
    assert (tmp_path / "into/d/file").read_bytes() == b"x"


def test_links_that_stay_inside_are_kept(tmp_path: Path) -> None:
    found = unpacked(tmp_path, ("bin/x", b"x", "file"), ("lib/x", "../bin/x", "link"))
    assert found == Unpacked(files=2)
    assert (tmp_path / "into/lib/x").read_bytes() == b"x"


def test_a_chain_of_links_cannot_climb_out(tmp_path: Path) -> None:
    # Seen by its name alone, a/b/second ends in a; followed through the first, outside.
    members: list[Member] = [("a/b/first", "../..", "link"), ("a/b/second", "first/../..", "link")]
    found = unpacked(tmp_path, *members)
    assert found.refused == ("a/b/second",)
    for name in written(tmp_path):
        real = os.path.realpath(tmp_path / "into" / name)
        assert real.startswith(str(tmp_path / "into"))


def test_a_link_below_a_link_is_left_out(tmp_path: Path) -> None:
    members: list[Member] = [("a", "b", "link"), ("a/c", "d", "link"), ("b/d", b"", "file")]
    assert unpacked(tmp_path, *members).refused == ("a/c",)


def test_more_bytes_than_allowed_are_too_much(tmp_path: Path) -> None:
    with pytest.raises(TooMuch):
        unpacked(tmp_path, ("a", b"x" * 600, "file"), ("b", "a", "hard"), max_bytes=1000)


def test_more_entries_than_allowed_are_too_much(tmp_path: Path) -> None:
    data = archive(*[(f"f{i}", b"", "file") for i in range(4)])
    with pytest.raises(TooMuch, match="3 files"):
        unpack_below(data, tmp_path / "into", max_bytes=10, max_entries=3)


def test_names_that_are_no_text_are_kept_as_their_bytes(tmp_path: Path) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    info = tarfile.TarInfo(name)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", errors="surrogateescape") as tar:
        tar.addfile(info)
    assert unpack_below(out.getvalue(), tmp_path / "into", max_bytes=9).files == 1
    assert os.listdir(os.fsencode(tmp_path / "into")) == [b"caf\xe9"]


@pytest.mark.parametrize("data", [b"no archive at all" * 100, archive(("a", b"x", "file"))[:300]])
def test_what_is_no_archive_is_an_error(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(tarfile.TarError):
        unpack_below(data, tmp_path / "into", max_bytes=10)


def damaged(**headers: str) -> bytes:
    info = tarfile.TarInfo("a")
    info.pax_headers = headers
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        damaged(**{"GNU.sparse.map": "1,x", "GNU.sparse.size": "4"}),
        damaged(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "x"}),
    ],
    ids=["a sparse map without numbers", "a size that is none"],
)
def test_numbers_that_are_none_are_an_error_of_the_archive(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(tarfile.TarError):
        unpack_below(data, tmp_path / "into", max_bytes=10)
    with pytest.raises(ArchiveError):
        unpack(data)


def test_a_hard_link_to_a_link_to_itself_is_left_out(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind in (("loop", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "loop"
            tar.addfile(info)
    found = unpack_below(out.getvalue(), tmp_path / "into", max_bytes=10)
    assert "hard" in found.refused
