"""The local vLLM server: started, watched, started again, and always stopped.

Rule: nothing of it outlives the block, however the block or this process ends (`server_keeper.py`
sees to that). A server that dies is reported with the end of its log and started again while the
budget lasts; one that never came up is not, for it would fail the same way. It sends no requests
but health checks.
"""

import asyncio
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import BinaryIO, Self

from headrace.aio import background, first_of, in_thread, run_shielded
from headrace.configs.models import ServerConfig
from headrace.errors import ConfigError, ServerGone, ServerLost
from headrace.policies.client import CompletionClient
from headrace.policies.server_command import (
    KEEPER,
    choose_device,
    choose_port,
    has_gpu,
    server_arguments,
    server_environment,
    vllm_build,
)
from headrace.policies.server_keeper import shared_memory
from headrace.policies.server_share import Share, share_of
from headrace.policies.weights import OnProgress, silent

_POLL_S = 0.2
_LOOK_EVERY_S = 1.0
_UNWELL_S = 180.0
"""Without one good answer about its health, before it is ended and started again."""
_KEEPER_START_S = 20.0
_STOP_S = 30.0
"""For the keeper: it asks, waits 8 s, lets what is left end, then ends it."""
_SETTLE_S = 2.0
_TAIL_LINES = 12
_TAIL_CHARS = 3000
_PHASES = (
    (b"non-default args", "reading the model's configuration", 0.3),
    (b"Initializing a V1 LLM engine", "starting the engine", 0.5),
    (b"Starting to load model", "loading weights", 0.7),
    (b"Loading weights took", "warming up", 0.8),
    (b"Starting vLLM server", "opening the port", 0.95),
)
"""What vLLM writes to its log on its way up, what it means, and how far it then is."""
_CAUSE = re.compile(
    r"^(?!.*\b(?:INFO|WARNING)\b).*?((?:\w+\.)*\w*(?:Error|Exception): .+|: error: .+)$", re.M
)


class VllmServer:
    """One local server for one model. An async context manager that returns once it is up."""

    def __init__(
        self,
        config: ServerConfig,
        model_dir: Path,
        served_name: str,
        log_path: Path,
        *,
        replica: int = 0,
        on_progress: OnProgress = silent,
    ) -> None:
        self._config = config
        self._replica = replica
        self._name = "vLLM" if config.replicas == 1 else f"vLLM replica {replica}"
        self._model_dir = model_dir
        self._served_name = served_name
        self._log_path = log_path
        self._on_progress = on_progress
        self._stack = AsyncExitStack()
        self.came_up = asyncio.Event()
        """Set while it answers, as far as is known."""
        self.sure = asyncio.Event()
        """Set while it answers and nothing speaks against it: before its process ends, a server
        whose engine died answers for seconds, with nothing but errors."""
        self.over = asyncio.Event()
        """Set once it will not be up again."""
        self._gone: ServerGone | ConfigError | None = None
        self._log_start = 0
        self._share = Share()
        self._port = 0
        self.device = ""
        """`cuda` or `cpu`, once entered."""
        self.base_url = ""
        self.pid: int | None = None
        """Of the server's main process, while there is one."""
        self.restarts = 0
        """How often it was started again."""

    async def __aenter__(self) -> Self:
        try:
            await self.launch()
            await self.ready()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def launch(self) -> None:
        """Begin to start it and return; leaving the block is due with it, `ready` says when."""
        self.device = choose_device(self._config.device, build=vllm_build(), gpu=has_gpu())
        self._share = await in_thread(share_of, self._config, self.device, self._replica)
        await self._stack.enter_async_context(background(self._supervise()))

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def ready(self) -> str:
        """The base URL, once the server is up. `ServerLost` when it will not be up again."""
        while not self.came_up.is_set():
            if self.over.is_set():
                if isinstance(self._gone, ConfigError):
                    raise self._gone
                raise ServerLost(str(self._gone or "vLLM was stopped with its run"))
            await first_of(self.came_up, self.over)
        return self.base_url

    @property
    def shares_gpu(self) -> bool:
        """Whether another replica is on the same GPU."""
        return self._share.shared

    @property
    def up(self) -> bool:
        """Whether it answers, as far as is known."""
        return self.came_up.is_set()

    @property
    def down(self) -> str | None:
        """How its last life ended, with the end of its log; None while it is up or starts."""
        return None if self._gone is None or self.came_up.is_set() else str(self._gone)

    # --- supervision ---

    async def _supervise(self) -> None:
        try:
            while not await self._run_once() and self.restarts < self._config.restarts:
                self.restarts += 1
        except ConfigError as e:
            self._gone = e
        finally:
            self.over.set()

    async def _run_once(self) -> bool:
        """One life of the server; True when it never came up."""
        was_up = False
        try:
            process = await self._spawn()
        except (ServerGone, OSError) as e:  # no process, no file, no place for the log
            gone = ServerGone(f"{self._name} could not be started: {e}")
            self._gone = e if isinstance(e, ServerGone) else gone
            return True
        try:
            async with background(_exit_code(process)) as ended:
                self._gone = None
                await self._until_healthy(ended)
                was_up = True
                self.came_up.set()
                self.sure.set()
                async with background(self._look()):
                    await asyncio.wait([ended])
                self.came_up.clear()  # at once: what is left of the server takes a while to end
                self.sure.clear()
                self._gone = await self._died(ended, "ended in mid-run")
        except ServerGone as e:
            self._gone = e
        finally:
            self.came_up.clear()
            self.sure.clear()
            self.pid = None
            await run_shielded(_stop(process, self._scratch))
        return not was_up

    async def _look(self) -> None:
        """Until cancelled. `ServerGone` when it has not been well for too long."""
        clock = asyncio.get_running_loop().time
        well_s = clock()
        async with CompletionClient(self.base_url) as client:
            while clock() - well_s < _UNWELL_S:
                if await client.healthy(patient=True):
                    well_s = clock()
                    self.sure.set()
                else:
                    self.sure.clear()
                await asyncio.sleep(_LOOK_EVERY_S)
        raise ServerGone(
            f"{self._name} runs, and has not been well for {_UNWELL_S:.0f} s. "
            f"{await in_thread(self._log_end)}"
        )

    def doubt(self) -> None:
        """A call found nobody: it is not sure to be up until it says so."""
        self.sure.clear()

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._port = port = await in_thread(self._choose_port)
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        self.base_url = f"http://{host}:{port}"
        scratch = Path(await in_thread(lambda: tempfile.mkdtemp(prefix="headrace-vllm-")))
        self._scratch = scratch
        command = server_arguments(
            self._config,
            device=self.device,
            model=self._model_dir,
            served_name=self._served_name,
            port=port,
        )
        log = None
        try:
            log = await in_thread(self._open_log)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-S", "-E", str(KEEPER), str(scratch), *command),
                stdin=asyncio.subprocess.PIPE,  # never written to: its end is what counts
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=server_environment(
                    self._config,
                    device=self.device,
                    scratch=scratch,
                    inherited={**os.environ, **self._share.environment},
                ),
            )
        except OSError:
            await in_thread(lambda: shutil.rmtree(scratch, ignore_errors=True))
            raise
        finally:
            if log is not None:
                await in_thread(log.close)
        try:
            self.pid = await _server_pid(process)
        except BaseException:
            await run_shielded(_stop(process, self._scratch))
            raise
        return process

    def _choose_port(self) -> int:
        """The one it had, if it is started again: other processes know it by that."""
        asked = self._config.port and self._config.port + self._replica
        try:
            return choose_port(self._config.host, self._port or asked)
        except ConfigError:
            if asked or not self._port:
                raise
            return choose_port(self._config.host, 0)

    def _open_log(self) -> BinaryIO:
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        log = self._log_path.open("ab")
        self._log_start = log.tell()
        return log

    async def _until_healthy(self, ended: "asyncio.Task[int | None]") -> None:
        start_s = self._config.start_timeout_s
        told = ""
        try:
            async with asyncio.timeout(start_s), CompletionClient(self.base_url) as client:
                while not await client.healthy():
                    if ended.done():
                        raise await self._died(ended, "did not start")
                    what, fraction = await in_thread(self._phase)
                    if what != told:
                        told = what
                        self._on_progress(f"{self._name}: {what}", fraction)
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise ServerGone(
                f"{self._name}: expected a healthy server within {start_s:.0f} s, found it still "
                f"{told}. Raise policy.server.start_timeout_s. {await in_thread(self._log_end)}"
            ) from None
        self._on_progress(f"{self._name}: up", 1.0)

    async def _died(self, ended: "asyncio.Task[int | None]", when: str) -> ServerGone:
        code = ended.result()
        how = f"exit code {code}"
        if code is None:
            how = "its keeper was killed"
        elif code < 0:
            how = f"signal {-code}"
        return ServerGone(f"{self._name} {when} ({how}). {await in_thread(self._log_end)}")

    # --- the log ---

    def _log(self) -> bytes:
        with suppress(FileNotFoundError), self._log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read()
        return b""

    def _phase(self) -> tuple[str, float]:
        log = self._log()
        reached = [(what, fraction) for mark, what, fraction in _PHASES if mark in log]
        return reached[-1] if reached else ("importing", 0.05)

    def _log_end(self) -> str:
        """The first error in the log of this start, if one is there, and the last lines."""
        text = self._log().decode(errors="replace")
        cause = _CAUSE.search(text)
        first = f"First error: {cause.group(1).lstrip(': ')[:500]}. " if cause else ""
        lines = [line for line in text.splitlines() if line.strip()][-_TAIL_LINES:]
        tail = "\n".join(lines)[-_TAIL_CHARS:] or "(empty)"
        return f"{first}The log {self._log_path} ends:\n{tail}"


async def _server_pid(process: asyncio.subprocess.Process) -> int:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_KEEPER_START_S):
            line = await process.stdout.readline()
        return int(line)
    except (TimeoutError, ValueError):
        raise ServerGone(
            "vLLM: expected the server's keeper to start, found it did not; is the machine out "
            "of processes or memory?"
        ) from None


async def _exit_code(process: asyncio.subprocess.Process) -> int | None:
    """The server's exit code, negative for a signal; None when its keeper was killed."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    return int(line) if line else None


async def _stop(process: asyncio.subprocess.Process, scratch: Path) -> None:
    """End the server by closing its keeper's lifeline; see to it ourselves if the keeper cannot."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    await in_thread(_end_session, process.pid)
    await in_thread(lambda: shutil.rmtree(scratch, ignore_errors=True))


def _end_session(session: int) -> None:
    """Kill whatever is left of the session that the keeper led; nothing, if the keeper lived."""
    shared: set[str] = set()
    begun = time.monotonic()
    while (left := _session_members(session)) and time.monotonic() < begun + _STOP_S:
        for process in left:
            shared |= shared_memory(process)
            # dying by themselves, its processes' helpers remove what they shared
            if time.monotonic() > begun + _SETTLE_S:
                with suppress(ProcessLookupError):
                    os.kill(int(process.name), signal.SIGKILL)
        time.sleep(_POLL_S / 10)
    for path in shared:
        with suppress(OSError):
            os.unlink(path)


def _session_members(session: int) -> list[Path]:
    found: list[Path] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError, ValueError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(stat.parent)
    return found
