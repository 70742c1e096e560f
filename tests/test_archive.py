"""Folders as archives: complete on the way in, suspicious on the way out."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from headrace.errors import SandboxError
from headrace.sandbox.archive import pack, unpack


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_files_folders_and_dotfiles_survive_the_round_trip(tmp_path: Path) -> None:
    (tmp_path / "sub" / ".hidden").mkdir(parents=True)
    (tmp_path / ".env").write_bytes(b"x")
    (tmp_path / "sub" / ".hidden" / "data.bin").write_bytes(bytes(range(256)))
    assert unpack(pack(tmp_path)) == {".env": b"x", "sub/.hidden/data.bin": bytes(range(256))}


def test_the_same_folder_packs_to_the_same_bytes(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_text(name)
    before = pack(tmp_path)
    os.utime(tmp_path / "a", (1, 1))
    assert pack(tmp_path) == before


def test_executable_bits_are_kept(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "run.sh").chmod(0o755)
    with tarfile.open(fileobj=io.BytesIO(pack(tmp_path))) as tar:
        (member,) = tar.getmembers()
    assert (member.mode, member.uid, member.gid) == (0o755, 0, 0)


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside"])
def test_a_link_that_leaves_the_folder_is_not_packed(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(SandboxError, match="links inside"):
        pack(tmp_path)


def test_a_link_that_stays_inside_is_packed_as_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to("real")
    with tarfile.open(fileobj=io.BytesIO(pack(tmp_path))) as tar:
        assert tar.getmember("link").linkname == "real"


def test_a_device_or_pipe_is_not_packed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SandboxError, match="something else"):
        pack(tmp_path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up"])
def test_paths_that_leave_the_top_are_refused_on_the_way_out(name: str) -> None:
    with pytest.raises(SandboxError, match="below the top"):
        unpack(tar_of((tarfile.TarInfo(name), b"x")))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused_on_the_way_out(kind: bytes) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(SandboxError, match="found a link"):
        unpack(tar_of((info, b"")))


def test_what_is_no_archive_is_refused() -> None:
    with pytest.raises(SandboxError, match="tar archive"):
        unpack(b"not a tar at all" * 100)
