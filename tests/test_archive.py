"""Folders as tar streams: what travels and what is refused."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from headrace.sandbox.archive import ArchiveError, pack, unpack


def _tar(*members: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return out.getvalue()


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_a_folder_comes_back_as_it_went(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".hidden").write_bytes(b"\0\xff")
    (tmp_path / "run.sh").write_text("echo\n")
    (tmp_path / "run.sh").chmod(0o755)
    data = pack(tmp_path)
    assert unpack(data) == {"a/.hidden": b"\0\xff", "run.sh": b"echo\n"}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = tar.getmember("run.sh")
    assert (member.mode, member.uid, member.gid, member.mtime) == (0o755, 0, 0, 0)


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    for folder, names in (("one", "abc"), ("two", "cba")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text(name)
    os.utime(tmp_path / "one" / "a", (1, 1))
    assert pack(tmp_path / "one") == pack(tmp_path / "two")


def test_a_link_inside_the_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "f").write_text("x")
    (tmp_path / "d" / "l").symlink_to("../f")
    with tarfile.open(fileobj=io.BytesIO(pack(tmp_path))) as tar:
        assert tar.getmember("d/l").linkname == "../f"


@pytest.mark.parametrize("target", ["/etc/passwd", "..", "../../x", "d/../../x"])
def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "l").symlink_to(target)
    with pytest.raises(ArchiveError, match="leaves its folder"):
        pack(tmp_path)


def test_a_fifo_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArchiveError, match="only files"):
        pack(tmp_path)


def test_a_file_is_packed_alone_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("no")
    script = tmp_path / "solution.sh"
    script.write_bytes(b"echo solved")
    script.chmod(0o750)
    data = pack(script)
    assert unpack(data) == {"solution.sh": b"echo solved"}
    assert unpack(pack(script, prefix="oracle")) == {"oracle/solution.sh": b"echo solved"}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [(m.mode, m.uid, m.mtime) for m in tar] == [(0o750, 0, 0)]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="nope: a folder or a file was expected"):
        pack(tmp_path / "nope")


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a/.."])
def test_an_archive_with_a_name_that_leaves_is_refused(name: str) -> None:
    with pytest.raises(ArchiveError, match="leaves the folder"):
        unpack(_tar(_member(name)))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_an_archive_are_refused(kind: bytes) -> None:
    with pytest.raises(ArchiveError, match="only files and folders"):
        unpack(_tar(_member("x", kind, "/etc/passwd")))


def test_what_is_no_archive_is_refused() -> None:
    with pytest.raises(ArchiveError, match="tar archive was expected"):
        unpack(b"not a tar" * 100)


def test_what_a_harborignore_names_stays_here(tmp_path: Path) -> None:
    for name in (
        "test.sh",
        "a.log",
        "keep.log",
        "deep/b.log",
        "cache/x",
        "deep/more/own",
        "deep/y",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / ".harborignore").write_text("*.log\n!keep.log\n/cache/\n")
    (tmp_path / "deep" / ".harborignore").write_text("own\n")
    (tmp_path / "to-cache").symlink_to("cache")
    (tmp_path / "cache" / "python").symlink_to("/usr/bin/python3")
    assert set(unpack(pack(tmp_path))) == {"test.sh", "keep.log", "deep/y"}


def test_a_harborignore_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / ".harborignore").write_bytes(b"\xff")
    with pytest.raises(ArchiveError, match="harborignore: expected UTF-8"):
        pack(tmp_path)
