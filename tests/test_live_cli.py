"""`headrace top` and `limits` on a run of another process, while it goes on and after."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.engine import status

CLI = [sys.executable, "-c", "from headrace.cli import main; main()"]
SETTINGS = (
    "policy.type=scripted",
    'policy.commands=["sleep 1", "sleep 1"]',
    "sandbox.provider=namespace",
    "engine.live=2",
    "tasks.limit=2",
    "attempts=10",
)
UNTIL_S = 60.0


def headrace(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *words], capture_output=True, text=True, timeout=60, check=False)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + UNTIL_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)  # another process: it tells through files only


def live(run: Path) -> int:
    return sum(one.live for one in status.read(run))


@pytest.mark.timeout(150)
def test_a_run_is_shown_and_its_bounds_are_changed_from_another_process(
    only_namespace: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    line = [*CLI, "run", "quickstart", "--out", str(run)]
    for setting in SETTINGS:
        line += ["--set", setting]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        until(lambda: live(run) == 2)
        shown = headrace("top", str(run))
        assert shown.returncode == 0, shown.stderr
        assert "running" in shown.stdout.splitlines()[0]
        assert "bounds: live 2 (fixed)" in shown.stdout
        assert "\x1b" not in shown.stdout, "a pipe gets no control characters"
        asked = headrace("limits", str(run), "--live", "5")
        assert (asked.returncode, asked.stdout) == (0, "asked for: live = 5\n")
        until(lambda: live(run) == 5)
        for wrong in ("0", "many"):
            refused = headrace("limits", str(run), "--live", wrong)
            assert refused.returncode == 2
            assert "Traceback" not in refused.stderr
        output = process.communicate(timeout=90)[0].decode()
    assert "limits changed: live = 5" in output
    assert "20 of 20 episodes" in output
    ended = headrace("top", str(run))
    assert "ended: 20/20 episodes" in ended.stdout.splitlines()[0]
    late = headrace("limits", str(run), "--live", "7")
    assert "no process of this run is at work" in late.stderr
    nothing = headrace("top", str(tmp_path))
    assert nothing.returncode == 2
