"""The namespace provider without root: what holds when there is only a user namespace.

Run as root, the test becomes `nobody` in a process of its own; run as a user, the conformance
suite itself is the test. That process keeps one capability, to read the interpreter wherever it is.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.sandbox.rootfs import SHARED_CACHE, base_folder

pytestmark = [pytest.mark.namespace, pytest.mark.timeout(300)]

NOBODY = 65534
LEFT_OUT = ("dev", "proc", "usr/share", "usr/include", "usr/lib/gcc", "var/lib/dpkg")
SCRIPT = """
import asyncio, sys
from headrace.sandbox.base import Limits, SandboxSpec
from headrace.sandbox.namespace import NamespaceProvider, available

async def main():
    reason = await available()
    if reason is not None:
        print("SKIP", reason)
        return
    async with NamespaceProvider() as provider:
        spec = SandboxSpec(
            image="headrace/base:bookworm", episode="e", workdir="/app", limits=Limits(pids=40),
            terminal=True,
        )
        async with provider.open(spec) as sandbox:
            async def says(command, timeout_s=20):
                return (await sandbox.run(command, timeout_s=timeout_s)).stdout.decode().strip()
            print("id:", await says("id -u; pwd"))
            print("write:", await says("echo x >> /etc/passwd && touch /etc/new && echo wrote"))
            print("host:", await says("ls -d {here} 2>/dev/null; echo none"))
            print("net:", await says("tail -n +3 /proc/net/dev | cut -d: -f1"))
            slow = await sandbox.run("sleep 1000", timeout_s=0.5)
            print("timeout:", slow.timed_out, slow.shell_lost)
            await sandbox.write("/deep/er/file", bytes(range(256)))
            print("file:", await sandbox.read("/deep/er/file") == bytes(range(256)))
            terminal = await sandbox.terminal()
            typed = await terminal.type("tty; stty size; pwd\\n", wait_s=30)
            print("typed:", typed.stdout.decode().split("\\n")[1:4], typed.timed_out)
            print("read:", (await terminal.type("cat\\n", wait_s=30)).timed_out)
            keys = await terminal.type("C-c", wait_s=30)
            print("keys:", keys.stdout[:2], keys.timed_out)
            command = "for i in $(seq 100); do sleep 1000 & done"
            await sandbox.run(command, timeout_s=1)
            print("exec:", (await sandbox.exec("echo still", timeout_s=20)).stdout)
        print("lacks:", *provider.lacks)

asyncio.run(main())
"""


@pytest.fixture
def cache() -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("not root: the conformance suite runs without privileges already")
    if shutil.which("setpriv") is None or not base_folder().is_dir():
        pytest.skip("setpriv and the base root filesystem are needed (tests/test_namespace_*)")
    folder = Path(tempfile.mkdtemp(prefix="headrace-test-"))
    try:
        folder.chmod(0o755)
        os.chown(folder, NOBODY, NOBODY)
        yield folder
    finally:
        shutil.rmtree(folder)


def as_nobody(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    keep = "+dac_read_search"
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    become += [f"--inh-caps={keep}", f"--ambient-caps={keep}"]
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "HEADRACE_CACHE": str(folder / "cache"),
        "TMPDIR": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        [*become, *command], env=env, cwd=folder, capture_output=True, text=True, timeout=240
    )


def test_a_user_without_privileges_gets_the_same_walls(cache: Path) -> None:
    tree = cache / "cache" / "rootfs" / f"{base_folder().name}-u{NOBODY}"
    pack = " ".join(f"--exclude=./{name}" for name in LEFT_OUT)
    script = (
        f'mkdir -p "$2" && tar -C "$1" {pack} -c -f - . | tar -C "$2" --no-same-owner -x -f -'
        ' && mkdir "$2/dev" "$2/proc"'
    )
    copied = as_nobody(cache, "sh", "-c", script, "sh", str(base_folder()), str(tree))
    assert copied.returncode == 0, copied.stderr
    done = as_nobody(cache, sys.executable, "-c", SCRIPT.replace("{here}", str(cache)))
    assert done.returncode == 0, done.stderr
    if done.stdout.startswith("SKIP"):
        pytest.skip(done.stdout)
    assert done.stdout.splitlines() == [
        "id: 0",
        "/app",
        "write: wrote",
        "host: none",
        "net: lo",
        "timeout: True False",
        "file: True",
        "typed: ['/dev/pts/0', '40 160', '/app'] False",
        "read: False",
        "keys: b'^C' False",
        "exec: b'still\\n'",
        "lacks: pids memory cpu",
    ]


def test_a_user_without_a_tree_is_told_how_to_get_one(cache: Path) -> None:
    if (SHARED_CACHE / "rootfs").exists():
        pytest.skip(f"{SHARED_CACHE} has a tree on this machine")
    code = "import headrace.sandbox.rootfs as r; print(r.can_build())"
    done = as_nobody(cache, sys.executable, "-c", code)
    assert "sudo HEADRACE_CACHE=/var/cache/headrace" in done.stdout, done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: cannot make what this user cannot read")
def test_a_cache_that_cannot_be_read_is_a_reason_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    code = (
        "import os, pathlib, headrace.sandbox.rootfs as r\n"
        f"os.seteuid({NOBODY})\n"
        f"print(r.can_build(pathlib.Path({str(tmp_path / 'closed' / 'cache')!r})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "set HEADRACE_CACHE to a folder of this user" in done.stdout, done.stderr
