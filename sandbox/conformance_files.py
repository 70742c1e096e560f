"""Conformance of files: `read`, `write`, and folders in and out as archives."""

from pathlib import Path

import pytest

from headrace.errors import SandboxError
from headrace.sandbox.archive import ArchiveError, download, upload
from headrace.sandbox.base import Sandbox
from headrace.sandbox.conformance_suite import Suite, execute, run, says

NAMES = ["plain", "two words", "it's", 'a"b', "-n", "$HOME", "ü 漢字", "*", "new\nline", "a\\b"]


class Files(Suite):
    """`read` and `write`, which never touch the shell."""

    async def test_what_is_written_is_read(self, sandbox: Sandbox) -> None:
        data = bytes(range(256)) * 100 + b"no newline"
        await sandbox.write("/tmp/file", data)
        assert await sandbox.read("/tmp/file") == data

    async def test_an_empty_file_is_a_file(self, sandbox: Sandbox) -> None:
        await sandbox.write("/tmp/empty", b"")
        assert await sandbox.read("/tmp/empty") == b""
        assert await says(sandbox, "stat -c %s /tmp/empty") == "0\n"

    async def test_a_file_of_50_mb_goes_in_and_out(self, sandbox: Sandbox) -> None:
        data = bytes(range(256)) * (50_000_000 // 256)
        await sandbox.write("/tmp/big", data)
        assert await says(sandbox, "stat -c %s /tmp/big") == f"{len(data)}\n"
        back = await sandbox.read("/tmp/big")
        assert back == data, "the bytes differ"

    async def test_a_file_is_seen_by_the_shell_and_by_us(self, sandbox: Sandbox) -> None:
        await sandbox.write("/tmp/ours", b"from us\n")
        assert await says(sandbox, "cat /tmp/ours; echo from it >/tmp/its") == "from us\n"
        assert await sandbox.read("/tmp/its") == b"from it\n"

    async def test_write_makes_the_folders(self, sandbox: Sandbox) -> None:
        await sandbox.write("/new/a/b c/file", b"x")
        assert await sandbox.read("/new/a/b c/file") == b"x"

    async def test_write_gives_the_mode(self, sandbox: Sandbox) -> None:
        await says(sandbox, "umask 077")
        for mode in (0o644, 0o755, 0o600, 0o400):
            await sandbox.write("/tmp/file", b"x", mode=mode)
            assert await says(sandbox, "stat -c '%a %U' /tmp/file") == f"{mode:o} root\n"

    async def test_write_replaces_bytes_and_mode(self, sandbox: Sandbox) -> None:
        await sandbox.write("/tmp/file", b"a much longer text", mode=0o755)
        await sandbox.write("/tmp/file", b"short")
        assert await sandbox.read("/tmp/file") == b"short"
        assert await says(sandbox, "stat -c %a /tmp/file; ls -A /tmp/file*") == "644\n/tmp/file\n"

    async def test_write_replaces_a_file_that_is_read_only_or_running(
        self, sandbox: Sandbox
    ) -> None:
        await says(sandbox, "cp /bin/sleep /tmp/prog; chmod 500 /tmp/prog; /tmp/prog 1000 &")
        await sandbox.write("/tmp/prog", b"new")
        assert await sandbox.read("/tmp/prog") == b"new"

    async def test_a_file_may_have_any_name(self, sandbox: Sandbox) -> None:
        for name in NAMES:
            await sandbox.write(f"/tmp/odd/{name}", name.encode())
            assert await sandbox.read(f"/tmp/odd/{name}") == name.encode()
        listed = await execute(sandbox, "cd /tmp/odd; printf '%s\\0' *")
        assert sorted(listed.stdout.decode().split("\0")) == sorted([*NAMES, ""])

    async def test_reading_what_is_missing_is_file_not_found(self, sandbox: Sandbox) -> None:
        with pytest.raises(FileNotFoundError, match="/tmp/none"):
            await sandbox.read("/tmp/none")
        with pytest.raises(FileNotFoundError):
            await sandbox.read("/none/none/none")

    async def test_reading_a_folder_says_so(self, sandbox: Sandbox) -> None:
        with pytest.raises(IsADirectoryError, match="/usr/bin"):
            await sandbox.read("/usr/bin")

    async def test_writing_over_a_folder_is_refused_and_changes_nothing(
        self, sandbox: Sandbox
    ) -> None:
        await says(sandbox, "mkdir /tmp/folder; touch /tmp/folder/inside")
        with pytest.raises(IsADirectoryError):
            await sandbox.write("/tmp/folder", b"x")
        assert await says(sandbox, "ls -A /tmp/folder") == "inside\n"

    async def test_writing_below_a_file_is_an_error(self, sandbox: Sandbox) -> None:
        await sandbox.write("/tmp/file", b"x")
        with pytest.raises((SandboxError, OSError)):
            await sandbox.write("/tmp/file/below", b"y")
        assert await sandbox.read("/tmp/file") == b"x"

    async def test_reading_more_than_was_asked_for_is_overflow(self, sandbox: Sandbox) -> None:
        await sandbox.write("/tmp/file", b"12345")
        assert await sandbox.read("/tmp/file", max_bytes=5) == b"12345"
        with pytest.raises(OverflowError, match="/tmp/file"):
            await sandbox.read("/tmp/file", max_bytes=4)

    async def test_reading_what_is_no_file_fails_and_does_not_hang(self, sandbox: Sandbox) -> None:
        await says(sandbox, "mkfifo /tmp/fifo; ln -s /dev/zero /tmp/link")
        for path in ("/tmp/fifo", "/tmp/link", "/dev/zero"):
            with pytest.raises(FileNotFoundError):
                await sandbox.read(path)

    async def test_a_file_is_read_through_a_link(self, sandbox: Sandbox) -> None:
        await says(sandbox, "echo x >/tmp/real; ln -s real /tmp/link; ln -s none /tmp/dangling")
        assert await sandbox.read("/tmp/link") == b"x\n"
        with pytest.raises(FileNotFoundError):
            await sandbox.read("/tmp/dangling")

    async def test_files_leave_the_shell_alone(self, sandbox: Sandbox) -> None:
        await says(sandbox, "cd /srv; kept=1")
        await sandbox.write("/tmp/x", b"x")
        await sandbox.read("/tmp/x")
        assert await says(sandbox, "pwd; echo $kept") == "/srv\n1\n"

    async def test_a_file_that_a_job_writes_to_is_read(self, sandbox: Sandbox) -> None:
        await says(sandbox, "while :; do echo spam; sleep 0.01; done & echo fixed >/tmp/fixed")
        for _ in range(20):
            assert await sandbox.read("/tmp/fixed") == b"fixed\n"


class Archives(Suite):
    """Folders in and out through `headrace.sandbox.archive`."""

    async def test_a_folder_goes_in_and_comes_back(self, sandbox: Sandbox, tmp_path: Path) -> None:
        files = {f"d{i}/{name}": name.encode() for i, name in enumerate(NAMES)}
        files |= {".hidden": b"\0\xff", "deep/er/.x": b""}
        for name, data in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
        await upload(sandbox, tmp_path, "/new/folder")
        assert await download(sandbox, "/new/folder") == files

    async def test_an_uploaded_file_keeps_its_mode_and_belongs_to_root(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        (tmp_path / "run.sh").write_text("#!/bin/sh\necho ran\n")
        (tmp_path / "run.sh").chmod(0o755)
        await upload(sandbox, tmp_path, "/tests")
        assert await says(sandbox, "/tests/run.sh; stat -c '%a %U' /tests/run.sh") == (
            "ran\n755 root\n"
        )

    async def test_a_single_file_goes_in_under_its_own_name(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        (tmp_path / "solution.sh").write_text("echo solved\n")
        (tmp_path / "other").write_text("stays here")
        await upload(sandbox, tmp_path / "solution.sh", "/oracle")
        assert await says(sandbox, "ls /oracle; bash /oracle/solution.sh") == (
            "solution.sh\nsolved\n"
        )

    async def test_an_upload_leaves_what_was_there(self, sandbox: Sandbox, tmp_path: Path) -> None:
        (tmp_path / "new").write_text("new")
        await says(sandbox, "mkdir /tmp/t; echo old >/tmp/t/old; echo old >/tmp/t/new")
        await upload(sandbox, tmp_path, "/tmp/t")
        assert await download(sandbox, "/tmp/t") == {"old": b"old\n", "new": b"new"}

    async def test_a_relative_target_is_below_the_working_directory(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_text("x")
        async with self.open(workdir="/srv/work") as sandbox:
            await run(sandbox, "cd /tmp")
            await upload(sandbox, tmp_path, "sub")
            await sandbox.write("rel", b"y")
            assert await says(sandbox, "cat /srv/work/sub/f /srv/work/rel") == "xy"

    async def test_a_link_out_of_the_folder_does_not_go_in(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        for target in ("/etc/passwd", "../outside", "a/../../outside"):
            (tmp_path / "link").unlink(missing_ok=True)
            (tmp_path / "link").symlink_to(target)
            with pytest.raises(ArchiveError, match="link"):
                await upload(sandbox, tmp_path, "/tmp/in")
        assert (await execute(sandbox, "ls -d /tmp/in")).exit_code != 0

    async def test_links_and_pipes_do_not_come_out(self, sandbox: Sandbox) -> None:
        for make in (
            "ln -s /etc/passwd odd",
            "ln -s ../outside odd",
            "ln -s inside odd",
            "echo x >odd; ln odd odder",
            "mkfifo odd",
        ):
            await says(sandbox, f"rm -rf /tmp/o; mkdir /tmp/o; cd /tmp/o; touch inside; {make}")
            with pytest.raises(ArchiveError, match="odd"):
                await download(sandbox, "/tmp/o")

    async def test_names_that_leave_the_folder_do_not_come_out(self, sandbox: Sandbox) -> None:
        # A `tar` of the agent's that lies.
        code = (
            "import io,sys,tarfile; t=tarfile.open(fileobj=sys.stdout.buffer,mode='w|');"
            "i=tarfile.TarInfo('../../etc/evil'); t.addfile(i,io.BytesIO()); t.close()"
        )
        lie = f'#!/bin/sh\nexec python3 -c "{code}"\n'
        where = (await execute(sandbox, "command -v tar")).stdout.decode().strip()
        await sandbox.write(where, lie.encode(), mode=0o755)
        with pytest.raises(ArchiveError, match="evil"):
            await download(sandbox, "/tmp")

    async def test_a_folder_that_is_missing_is_an_error(self, sandbox: Sandbox) -> None:
        with pytest.raises(SandboxError, match="/none"):
            await download(sandbox, "/none")

    async def test_a_folder_over_the_limit_does_not_come_out(self, sandbox: Sandbox) -> None:
        await says(sandbox, "mkdir /tmp/out; head -c 200000 /dev/zero >/tmp/out/f")
        with pytest.raises(ArchiveError, match="100000"):
            await download(sandbox, "/tmp/out", max_bytes=100_000)
