"""Harbor's contract: tests go into the sandbox the agent left, run, and leave a reward file.

Rule: the tests arrive only now; rewards from before are removed; the exit status of `test.sh`
means nothing; `reward.json` comes before `reward.txt`. The tests run as the user the task names,
else as the image's own. A verifier that leaves no readable reward is a `Verdict` with a named
fault, and so is a sandbox whose basic tools the agent removed. A sandbox that is gone raises
`SandboxError`, for that is not the agent's doing.

`test.sh` is started as it says in its first line, else by bash; with Windows line ends it is run
without them, and the log says so. What the tests print is bounded inside the sandbox where bash is
4.4 or newer; what they write to files is not.

It cannot stop a process the agent left running from writing a reward itself: agent and tests
share one machine, as in Harbor's shared mode.
"""

import io
import posixpath
import re
import tarfile
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from headrace.aio import in_thread
from headrace.errors import SandboxError
from headrace.sandbox.archive import TRANSFER_TIMEOUT_S, pack, unpack
from headrace.sandbox.base import IMAGE_USER, Bring, Direct, Sandbox
from headrace.sandbox.control import settings
from headrace.types import CommandResult, Record, Task, TestOutcome, Verdict, VerdictFault
from headrace.verifiers.harbor_scripts import (
    BRING,
    BROUGHT,
    HAS,
    INSPECT,
    JSON,
    LOG,
    LOG_BYTES,
    LOG_FOLLOWS,
    NOT_ROOT,
    RAN,
    REPORTS,
    RUN,
    SETTLE,
    TXT,
    WINDOWS,
    together,
)
from headrace.verifiers.outcomes import from_ctrf, from_pytest
from headrace.verifiers.reward import (
    MAX_BYTES,
    RewardFault,
    Rewards,
    read_reward_json,
    read_reward_txt,
)

STEP_TIMEOUT_S = 60.0
"""For each of our own small steps; the tests have the task's time."""
TAIL_CHARS = 4000
NOT_STARTED = 126
MAX_REPORT_BYTES = 8 << 20
LONG = 1 << 16
TOGETHER_BYTES = 1 << 20
"""Of tests that are brought within the tests' own time; larger ones have a time of their own."""
TOGETHER_SCRIPT_BYTES = 90_000

_WINDOWS_NOTE = "headrace: test.sh has Windows line ends; it was run without them\n"
_ROOTS = (None, "root", "0")


class _Left(Record, frozen=True, kw_only=True):
    """What the tests left behind."""

    kinds: dict[str, str]
    """`file` or `other`, by path; absent ones are not in it."""
    small: dict[str, bytes]
    """Contents by path, where they came with the inspection."""
    log: str


class HarborVerifier:
    """Grades a sandbox by the task's own `tests/test.sh`."""

    def __init__(self) -> None:
        self._not_root: set[str] = set()
        """Digests of tasks whose tests turned out to run as another user than root."""

    async def verify(self, task: Task, sandbox: Sandbox) -> Verdict:
        """Bring the tests, run them, read what they left. Raises only `InfrastructureError`."""
        begun = time.monotonic()
        graded = await self._grade(task, sandbox)
        if isinstance(graded, str):
            return _faulty(graded, time.monotonic() - begun)
        left = graded.left
        tests = await _outcomes(sandbox, left)
        found: Rewards | RewardFault
        if graded.timed_out:
            detail = f"the tests did not end within {task.verifier.timeout_s:g} s"
            found = RewardFault(kind="verifier_timeout", detail=detail)
        else:
            found = await _reward(sandbox, left)
        tail = graded.note + left.log[-TAIL_CHARS:]
        seconds = time.monotonic() - begun
        if isinstance(found, RewardFault):
            return _faulty(str(found), seconds, tests, tail)
        return Verdict(
            reward=found.reward,
            rewards=found.values,
            tests=tests,
            log_tail=tail,
            duration_s=seconds,
        )

    async def _grade(self, task: Task, sandbox: Sandbox) -> "_Graded | str":
        """In one request where the tests are small and root's, else in two. A text: why not.

        A sandbox that can take files without a program of its own does that first.
        """
        tests = await in_thread(_packed, task.verifier.tests)
        direct = await _directly(task, sandbox, tests)
        if direct is not None:
            return direct
        script = together(_bring_script(task), settings(task.environment.workdir, _env(task)))
        if (
            task.verifier.user in _ROOTS
            and task.digest not in self._not_root
            and len(tests) <= TOGETHER_BYTES
            and len(script) <= TOGETHER_SCRIPT_BYTES
        ):
            graded = await self._together(task, sandbox, script, tests)
            if graded is not None:
                return graded
        brought = await _bring(task, sandbox, tests)
        if brought.unusable is not None:
            return brought.unusable
        timed_out, left = await _run_tests(task, sandbox)
        return _Graded(timed_out=timed_out, left=left, note=brought.note)

    async def _together(
        self, task: Task, sandbox: Sandbox, script: str, tests: bytes
    ) -> "_Graded | str | None":
        """Bring, run and look in one request. None: in two, for the user is not root, or for time.

        Bringing that had as long as it has by itself is not begun again: an agent that leaves a
        tool that hangs would hold its verdict twice.
        """
        result = await sandbox.exec(
            script,
            timeout_s=task.verifier.timeout_s,
            stdin=tests,
            user=_user(task),
            max_output_bytes=LOG_BYTES + 4096,
        )
        before, brought, after = result.stdout.partition(BROUGHT)
        if before.startswith(NOT_ROOT):
            self._not_root.add(task.digest)
            return None
        if result.timed_out and not brought:
            if task.verifier.timeout_s < TRANSFER_TIMEOUT_S:
                return None
            raise _unanswered(task.verifier.timeout_s)
        read = _read_brought(before + brought, result)
        if read.unusable is not None:
            return read.unusable
        left = await _left_by(sandbox, msgspec.structs.replace(result, stdout=after))
        return _Graded(timed_out=result.timed_out, left=left, note=read.note)


def _faulty(
    reason: str, duration_s: float, tests: tuple[TestOutcome, ...] = (), tail: str = ""
) -> Verdict:
    return Verdict(
        reward=None,
        fault=VerdictFault.VERIFIER,
        reason=reason,
        tests=tests,
        log_tail=tail,
        duration_s=duration_s,
    )


class _Graded(Record, frozen=True, kw_only=True):
    """The tests have run, or their time is over."""

    timed_out: bool
    left: _Left
    note: str
    """What was odd about them."""


class _Brought(Record, frozen=True, kw_only=True):
    unusable: str | None = None
    """Why the tests cannot be brought."""
    note: str = ""


def _unanswered(timeout_s: float) -> SandboxError:
    return SandboxError(f"the sandbox did not answer within {timeout_s:.0f} s")


def _bring_script(task: Task) -> str:
    return BRING if task.verifier.tests else HAS


def _env(task: Task) -> dict[str, str]:
    return {**task.environment.env, **task.verifier.env}


async def _bring(task: Task, sandbox: Sandbox, tests: bytes) -> _Brought:
    """Remove what is stale and put the tests there, unless the image holds them."""
    script = _bring_script(task)
    result = await sandbox.exec(script, timeout_s=TRANSFER_TIMEOUT_S, stdin=tests)
    if result.timed_out and BROUGHT not in result.stdout:
        raise _unanswered(TRANSFER_TIMEOUT_S)
    return _read_brought(result.stdout, result)


async def _directly(task: Task, sandbox: Sandbox, tests: bytes) -> _Graded | None:
    """Where the sandbox can put files ahead of a command. None: by `BRING`, or they are there."""
    if not (tests and isinstance(sandbox, Direct) and len(tests) <= TOGETHER_BYTES):
        return None
    ready = _ready(tests)
    if ready is None:
        return None
    archive, note = ready
    bring = Bring(
        archive=archive,
        into="/tests",
        removed=("/tests", JSON, TXT, LOG, *REPORTS),
        folders=("/logs/verifier", "/tests"),
        needs=("tar", "mkdir"),  # as `BRING` does: the verdict is the same on every provider
    )
    result = await sandbox.exec_with(bring, RUN + INSPECT, **_how(task))
    if result is None:
        return None
    left = await _left_by(sandbox, result)
    return _Graded(timed_out=result.timed_out, left=left, note=note)


def _how(task: Task) -> dict[str, Any]:
    return {
        "timeout_s": task.verifier.timeout_s,
        "workdir": task.environment.workdir,
        "env": _env(task),
        "user": _user(task),
        "max_output_bytes": LOG_BYTES + 4096,
    }


@lru_cache(maxsize=64)
def _ready(tests: bytes) -> tuple[bytes, str] | None:
    """The archive with a test.sh that can be started, as `BRING` makes it, and what to note of it.

    None where it has no such file.
    """
    out, note, is_there = io.BytesIO(), "", False
    with (
        tarfile.open(fileobj=io.BytesIO(tests), mode="r:") as whole,
        tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as ready,
    ):
        for member in whole:
            file = whole.extractfile(member) if member.isreg() else None
            content = file.read() if file else b""
            if posixpath.normpath(member.name) == "test.sh":
                is_there = member.isreg()
                member.mode |= 0 if member.mode & 0o111 else 0o111
                if content.partition(b"\n")[0].endswith(b"\r"):
                    content, note = re.sub(rb"\r$", b"", content, flags=re.MULTILINE), _WINDOWS_NOTE
                member.size = len(content)
            ready.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return (out.getvalue(), note) if is_there else None


def _read_brought(stdout: bytes, result: CommandResult) -> _Brought:
    if BROUGHT in stdout:
        return _Brought(note=_WINDOWS_NOTE if WINDOWS in stdout else "")
    said = result.stderr.decode("utf-8", "replace").strip()[-300:] or f"exit {result.exit_code}"
    return _Brought(unusable=f"sandbox_unusable: the tests cannot be brought: {said}")


def _packed(folders: Sequence[str]) -> bytes:
    """One archive of all folders, later ones over earlier ones. Blocking."""
    if len(folders) < 2:
        return pack(folders[0]) if folders else b""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as whole:
        for folder in folders:
            with tarfile.open(fileobj=io.BytesIO(pack(folder)), mode="r:") as part:
                for member in part:
                    whole.addfile(member, part.extractfile(member) if member.isreg() else None)
    return out.getvalue()


def _user(task: Task) -> str:
    return IMAGE_USER if task.verifier.user is None else task.verifier.user


async def _run_tests(task: Task, sandbox: Sandbox) -> tuple[bool, _Left]:
    """Run test.sh to its end or its deadline: whether it was the deadline, and what it left."""
    result = await sandbox.exec(RUN + INSPECT, **_how(task))
    return result.timed_out, await _left_by(sandbox, result)


async def _left_by(sandbox: Sandbox, result: CommandResult) -> _Left:
    """Looked at in the same step as the tests' user, and again as root where that is nothing."""
    _, ran, seen = result.stdout.partition(RAN)
    if not result.timed_out and ran and not result.stdout_cut and b"--\n" in seen:
        return _left(seen, result.stderr)
    left = await _inspect(sandbox, first=SETTLE)
    if result.exit_code == NOT_STARTED and not left.log:  # no such user, no such folder
        left = msgspec.structs.replace(left, log=result.stderr.decode("utf-8", "replace"))
    return left


async def _inspect(sandbox: Sandbox, *, first: str) -> _Left:
    """The kinds of the files we look for, and the end of the output, in one step, as root."""
    result = await sandbox.exec(
        first + INSPECT, timeout_s=STEP_TIMEOUT_S, max_output_bytes=LOG_BYTES + 4096
    )
    if result.timed_out:
        raise _unanswered(STEP_TIMEOUT_S)
    return _left(result.stdout, result.stderr)


def _left(stdout: bytes, stderr: bytes) -> _Left:
    """What `INSPECT` said."""
    kinds: dict[str, str] = {}
    small: dict[str, bytes] = {}
    line, _, rest = stdout.partition(b"\n")
    while line and line != b"--":
        kind, _, path = line.decode("utf-8", "replace").partition(" ")
        if kind == "text":
            small[path], _, rest = rest.partition(b"\0")
        elif kind == "empty":
            small[path] = b""
        kinds[path] = "other" if kind == "other" else "file"
        line, _, rest = rest.partition(b"\n")
    small.update(_small_files(rest))
    log = small.get(LOG, stderr.partition(LOG_FOLLOWS)[2])
    return _Left(kinds=kinds, small=small, log=log.decode("utf-8", "replace"))


def _small_files(archive: bytes) -> dict[str, bytes]:
    """By absolute path; empty when the archive is none, as when a file changed under it."""
    try:
        return {f"/{name.lstrip('/')}": data for name, data in unpack(archive).items()}
    except SandboxError:
        return {}


async def _content(sandbox: Sandbox, left: _Left, path: str, max_bytes: int) -> bytes:
    small = left.small.get(path)
    return await sandbox.read(path, max_bytes=max_bytes) if small is None else small


async def _reward(sandbox: Sandbox, left: _Left) -> Rewards | RewardFault:
    for path, reader in ((JSON, read_reward_json), (TXT, read_reward_txt)):
        if path not in left.kinds:
            continue
        name = path.rpartition("/")[2]
        if left.kinds[path] != "file":
            return RewardFault(kind="reward_unparsable", detail=f"{name} is no regular file")
        try:
            return reader(await _content(sandbox, left, path, MAX_BYTES))
        except OverflowError:
            detail = f"{name} is larger than {MAX_BYTES} bytes"
            return RewardFault(kind="reward_unparsable", detail=detail)
        except (FileNotFoundError, IsADirectoryError) as e:
            detail = f"{name} changed while it was read: {type(e).__name__}"
            return RewardFault(kind="reward_unparsable", detail=detail)
    return RewardFault(
        kind="reward_missing", detail="the tests wrote neither reward.json nor reward.txt"
    )


async def _outcomes(sandbox: Sandbox, left: _Left) -> tuple[TestOutcome, ...]:
    """Of single tests: from the first report there is, else from pytest's output."""
    for path in REPORTS:
        if left.kinds.get(path) != "file":
            continue
        try:
            data = await _content(sandbox, left, path, MAX_REPORT_BYTES)
            tests = await _off_the_loop(from_ctrf, data)
        except (OverflowError, FileNotFoundError, IsADirectoryError):
            continue
        if tests:
            return tests
    return await _off_the_loop(from_pytest, left.log)


async def _off_the_loop(
    read: Callable[[Any], tuple[TestOutcome, ...]], what: str | bytes
) -> tuple[TestOutcome, ...]:
    """In a thread when it is long: a thread costs more than reading a short one."""
    return read(what) if len(what) < LONG else await in_thread(read, what)
