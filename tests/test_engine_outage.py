"""A sandbox engine that hangs, and one that is killed: the run waits for it and loses nothing.

The engine is a real one, started here on a socket and in a folder of its own, so that it may be
stopped and killed.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiodocker
import pytest

from headrace.configs.models import RunConfig
from headrace.engine import runner
from headrace.engine.events import EpisodeFinished, Event, Note

UP_S = 60.0
HANGS_S = 8.0
"""Longer than a ping waits, so that the engine counts as gone."""


class OwnEngine:
    """A `dockerd` of the test's own. Blocking."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.socket = folder / "docker.sock"
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers. One that gives up on a busy machine is started again."""
        until = time.monotonic() + UP_S
        while not self._answers():
            if time.monotonic() > until:
                raise AssertionError((self._folder / "log").read_text()[-2000:])
            if self._daemon is None or self._daemon.poll() is not None:
                self._launch()
            time.sleep(0.1)

    def _launch(self) -> None:
        # A network of its own: `--bridge=none` removes a `docker0` that another engine may use.
        line = ["unshare", "--net", "dockerd", f"--host=unix://{self.socket}"]
        line += [f"--pidfile={self._folder / 'pid'}"]
        line += [f"--data-root={self._folder / 'data'}", f"--exec-root={self._folder / 'exec'}"]
        line += ["--bridge=none", "--iptables=false", "--ip-masq=false", "--userland-proxy=false"]
        (self._folder / "pid").unlink(missing_ok=True)
        with (self._folder / "log").open("ab") as log:
            self._daemon = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def send(self, number: signal.Signals) -> None:
        assert self._daemon is not None
        self._daemon.send_signal(number)

    def end(self, number: signal.Signals) -> None:
        self.send(number)
        assert self._daemon is not None
        self._daemon.wait(UP_S)

    def _answers(self) -> bool:
        line = ["curl", "-fsS", "--max-time", "2", "--unix-socket", str(self.socket)]
        done = subprocess.run([*line, "http://docker/_ping"], capture_output=True, check=False)
        return done.returncode == 0


@contextmanager
def started() -> Iterator[OwnEngine]:
    """In a short folder: a socket's path may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-engine-"))
    engine = OwnEngine(folder)
    try:
        engine.start()
        yield engine
    finally:
        engine.send(signal.SIGCONT)
        engine.end(signal.SIGTERM)
        remove(folder)


def remove(folder: Path) -> None:
    """With what a killed engine leaves: the keepers of its containers, and mounts."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if "containerd-shim" in line and f"{folder}/" in line:
            os.kill(int(process.name), signal.SIGKILL)
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted(mounts, reverse=True):
        if mount.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", mount], check=False)
    shutil.rmtree(folder, ignore_errors=True)
    assert not folder.exists()


@pytest.fixture(scope="module")
def own(unavailable: dict[str, str | None]) -> Iterator[OwnEngine]:
    if unavailable["docker"] is not None:
        pytest.skip(f"docker: {unavailable['docker']}")
    if os.geteuid() != 0 or shutil.which("dockerd") is None or shutil.which("curl") is None:
        pytest.skip("an engine of the test's own needs root, dockerd and curl")
    with started() as engine:
        yield engine


@pytest.fixture
def engine(only_docker: str, own: OwnEngine) -> OwnEngine:
    """Marked `docker`, as whoever asks for it is."""
    return own


def config(engine: OwnEngine, **numbers: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "attempts": 6,
            "tasks": {"limit": 2},
            "policy": {"type": "scripted", "commands": ["true", "sleep 0.2", "true"]},
            "sandbox": {"provider": "docker", "docker_socket": str(engine.socket)},
            "engine": {"live": 3, "preparing": 2, "verifying": 2, "tries": 3, **numbers},
        }
    )


class After:
    """Does something once so many episodes are durable, in the run's own loop."""

    def __init__(self, episodes: int, do: Callable[[], object]) -> None:
        self._left, self._do = episodes, do
        self.notes: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            self.notes.append(event.text)
        if isinstance(event, EpisodeFinished):
            self._left -= 1
            if self._left == 0:
                self._do()


async def nothing_left(engine: OwnEngine) -> bool:
    async with aiodocker.Docker(url=f"unix://{engine.socket}") as docker:
        return await docker.containers.list(all=1) == []


@pytest.mark.timeout(240)
async def test_an_engine_that_hangs_for_a_while_costs_no_episode(
    engine: OwnEngine, tmp_path: Path
) -> None:
    def hang() -> None:
        engine.send(signal.SIGSTOP)
        asyncio.get_running_loop().call_later(HANGS_S, engine.send, signal.SIGCONT)

    after = After(3, hang)
    summary = await runner.run(config(engine), tmp_path / "run", on_event=after)
    assert (summary.episodes, summary.owed, summary.infra_failures) == (12, 0, 0)
    assert await nothing_left(engine)


@pytest.mark.timeout(240)
async def test_an_engine_that_is_killed_and_started_again_costs_no_episode(
    engine: OwnEngine, tmp_path: Path
) -> None:
    def kill() -> None:
        engine.end(signal.SIGKILL)
        asyncio.get_running_loop().run_in_executor(None, engine.start)

    after = After(3, kill)
    summary = await runner.run(config(engine), tmp_path / "run", on_event=after)
    assert (summary.episodes, summary.owed, summary.infra_failures) == (12, 0, 0)
    assert await nothing_left(engine)
