"""A run that may have few processes or open files: fewer are live, or it says which number is low.

The limits are real ones, of a process of the test's own. Root could lift them: that process has
lost the right to.
"""

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PIDS = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))
WITHOUT_RIGHT = ["setpriv", "--bounding-set=-sys_resource"]
RUN = "from headrace.cli import main; main()"
SETTINGS = {
    "policy.type": "scripted",
    "policy.commands": '["true"]',
    "sandbox.provider": "namespace",
    "sandbox.warm": "0",
    "engine.preparing": "8",
    "tasks.limit": "2",
}

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can lose the right to lift limits"),
    pytest.mark.skipif(
        shutil.which("setpriv") is None or shutil.which("prlimit") is None,
        reason="setpriv and prlimit (util-linux) set the limits",
    ),
]


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of its own that bounds processes."""
    for parent in PIDS:
        folder = parent / f"headrace-test-{secrets.token_hex(4)}"
        if not (parent / "cgroup.procs").exists():
            continue
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / "pids.max").exists():
            yield folder
            folder.rmdir()
            return
        folder.rmdir()
    pytest.skip("no control group that bounds processes can be made here")


def run(out: Path, before: list[str], **settings: object) -> subprocess.CompletedProcess[str]:
    line = [*before, sys.executable, "-c", RUN, "run", "quickstart", "--out", str(out)]
    for name, value in {**SETTINGS, **settings}.items():
        line += ["--set", f"{name.replace('__', '.')}={value}"]
    return subprocess.run(line, capture_output=True, text=True, timeout=150, check=False)


def within(group: Path, processes: int) -> list[str]:
    (group / "pids.max").write_text(f"{processes}\n")
    return ["sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh"]


def test_with_few_open_files_fewer_are_live_and_all_episodes_are_done(
    only_namespace: str, tmp_path: Path
) -> None:
    few = ["prlimit", "--nofile=200:200", *WITHOUT_RIGHT]
    done = run(tmp_path / "run", few, attempts=15, engine__live=30)
    told = " ".join(done.stderr.split())
    said = re.search(r"30 live episodes need about (\d+) open files, found 100 open files", told)
    assert said, told
    assert f"at most {100 // (int(said[1]) // 30)} are live" in told
    assert "30 of 30 episodes" in done.stdout + done.stderr
    assert "0 infrastructure failures" in done.stdout + done.stderr


def test_a_file_that_was_handed_down_above_the_limit_keeps_no_sandbox_from_starting(
    only_namespace: str, tmp_path: Path
) -> None:
    above = ["bash", "-c", 'exec 250>/dev/null && ulimit -n 200 && exec "$@"', "bash"]
    done = run(tmp_path / "run", [*above, *WITHOUT_RIGHT])
    assert "0 infrastructure failures" in done.stdout + done.stderr


def test_with_few_processes_fewer_are_live_and_all_episodes_are_done(
    only_namespace: str, tmp_path: Path, group: Path
) -> None:
    done = run(tmp_path / "run", within(group, 60), attempts=10, engine__live=20)
    told = " ".join(done.stderr.split())
    assert re.search(r"20 live episodes need about \d+ processes, found \d+ processes", told), told
    assert "20 of 20 episodes" in done.stdout + done.stderr
    assert "0 infrastructure failures" in done.stdout + done.stderr


def test_where_nothing_can_run_the_number_that_is_low_is_named(
    only_namespace: str, tmp_path: Path, group: Path
) -> None:
    done = run(tmp_path / "run", within(group, 20))
    assert done.returncode == 2
    assert "expected room for 24 more processes, found 1" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    few = ["prlimit", "--nofile=40:40", *WITHOUT_RIGHT]
    done = run(tmp_path / "run", few)
    assert done.returncode == 2
    assert "expected room for 64 more open files, found" in " ".join(done.stderr.split())
    assert "ulimit -n" in done.stderr
