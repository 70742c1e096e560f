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
import tarfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from headrace.aio import in_thread
from headrace.errors import SandboxError
from headrace.sandbox.archive import TRANSFER_TIMEOUT_S, pack, unpack
from headrace.sandbox.base import IMAGE_USER, Sandbox
from headrace.types import Record, Task, TestOutcome, Verdict, VerdictFault
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
LOG_BYTES = 1 << 20
"""Of the end of the verifier's output: read for outcomes."""
TAIL_CHARS = 4000
LOG_BLOCKS = 16384
"""Of at most 4096 bytes each, from the start of the output; then `LOG_BYTES` of its end."""
LINGER_S = 1
NOT_STARTED = 126
SMALL_KB = 128
"""Files below it come with the inspection; a larger one is read by itself."""
MAX_REPORT_BYTES = 8 << 20
LONG = 1 << 16

_LOG = "/logs/verifier/test-stdout.txt"
_JSON, _TXT = "/logs/verifier/reward.json", "/logs/verifier/reward.txt"
_REPORTS = (
    "/logs/verifier/ctrf.json",
    "/logs/verifier/ctrf-report.json",
    "/tests/ctrf.json",
    "/tests/ctrf-report.json",
)
_BROUGHT = "headrace-brought"
_WINDOWS = "headrace-windows"
_RAN = b"headrace-ran\n"
_WINDOWS_NOTE = "headrace: test.sh has Windows line ends; it was run without them\n"

_PREPARE = f"""\
cd / && umask 000
v=/logs/verifier
if [ -d $v ] && [ ! -L $v ]; then chmod 777 /logs $v
elif [ -e $v ] || [ -L $v ]; then rm -rf $v; fi
for f in @WIPE@ {_JSON} {_TXT} {_LOG} {" ".join(_REPORTS)}; do
  if [ -e $f ] || [ -L $f ]; then rm -rf $f; fi
done
mkdir -p /logs/verifier /tests && umask 022 && command -v tar > /dev/null && @TAKE@
[ -x /tests/test.sh ] || chmod +x /tests/test.sh || exit
IFS= read -r l < /tests/test.sh
case $l in *"\r")
  sed -i "s/\r\\$//" /tests/test.sh && echo {_WINDOWS};;
esac
echo {_BROUGHT}
"""
"""Reads the tests as a tar archive from stdin. Each process it does without is time saved."""
_BRING = _PREPARE.replace("@WIPE@", "/tests").replace("@TAKE@", "tar -x -o -f - -C /tests || exit")
_HAS = _PREPARE.replace("@WIPE@ ", "").replace("@TAKE@", "true")
"""Where the verifier's own image holds the tests."""

_START = """\
IFS= read -r l < /tests/test.sh
case $l in
  "#!"*|?ELF*) ;;
  *) set -- "$(command -v bash || echo sh)" ;;
esac
"""
"""By itself, or by a shell when it does not say which one."""
_RUN = f"""\
{_START}
case ${{BASH_VERSION:-}} in
''|[123].*|4.[0-3].*) ("$@" /tests/test.sh) > {_LOG} 2>&1 ;;
*) eval 'exec 5< <( "$@" /tests/test.sh 2>&1 )
  t=$!
  exec 4< <( {{ dd bs=4096 count={LOG_BLOCKS} 2> /dev/null; tail -c {LOG_BYTES}; }} <&5 > {_LOG} )
  exec 5<&-
  wait "$t"
  read -t {LINGER_S} -u 4' ;;
esac
"""
"""The log's writer ends with the tests, or later where something of theirs goes on and may print;
nobody waits for that longer than a moment."""
_INSPECT = f"""\
set --
for f in {_JSON} {_TXT} {" ".join(_REPORTS)} {_LOG}; do
  if [ -f $f ]; then
    echo file $f
    [ -L $f ] || set -- "$@" $f
  elif [ -e $f ] || [ -L $f ]; then echo other $f; fi
done
echo --
small=
[ $# -eq 0 ] || small=$(find "$@" -size -{SMALL_KB}k)
[ -z "$small" ] || tar -c -f - $small 2> /dev/null
case $small in *{_LOG}*) ;; *) [ ! -f {_LOG} ] || tail -c {LOG_BYTES} {_LOG} >&2 ;; esac
"""
"""Prints what is there, then the small files as a tar archive; a long log's end goes to stderr."""
_SETTLE = f"""\
n=0
while [ -f {_LOG} ] && [ ! -s {_LOG} ] && [ $n -lt 10 ]; do sleep 0.1; n=$((n + 1)); done
"""
"""Where the tests' own shell was killed, the log's writer may be a moment behind."""


class _Left(Record, frozen=True, kw_only=True):
    """What the tests left behind."""

    kinds: dict[str, str]
    """`file` or `other`, by path; absent ones are not in it."""
    small: dict[str, bytes]
    """Contents by path, where they came with the inspection."""
    log: str


class HarborVerifier:
    """Grades a sandbox by the task's own `tests/test.sh`."""

    async def verify(self, task: Task, sandbox: Sandbox) -> Verdict:
        """Bring the tests, run them, read what they left. Raises only `InfrastructureError`."""
        begun = time.monotonic()
        brought = await _bring(task, sandbox)
        if brought.unusable is not None:
            return _faulty(brought.unusable, time.monotonic() - begun)
        timed_out, left = await _run_tests(task, sandbox)
        tests = await _outcomes(sandbox, left)
        found: Rewards | RewardFault
        if timed_out:
            detail = f"the tests did not end within {task.verifier.timeout_s:g} s"
            found = RewardFault(kind="verifier_timeout", detail=detail)
        else:
            found = await _reward(sandbox, left)
        tail = brought.note + left.log[-TAIL_CHARS:]
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


class _Brought(Record, frozen=True, kw_only=True):
    unusable: str | None = None
    """Why the tests cannot be brought."""
    note: str = ""
    """What was odd about them."""


async def _bring(task: Task, sandbox: Sandbox) -> _Brought:
    """Remove what is stale and put the tests there, unless the image holds them."""
    tests = await in_thread(_packed, task.verifier.tests)
    script = _BRING if task.verifier.tests else _HAS
    result = await sandbox.exec(script, timeout_s=TRANSFER_TIMEOUT_S, stdin=tests)
    if _BROUGHT.encode() in result.stdout:
        return _Brought(note=_WINDOWS_NOTE if _WINDOWS.encode() in result.stdout else "")
    if result.timed_out:
        raise SandboxError(f"the sandbox did not answer within {TRANSFER_TIMEOUT_S:.0f} s")
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


async def _run_tests(task: Task, sandbox: Sandbox) -> tuple[bool, _Left]:
    """Run test.sh to its end or its deadline: whether it was the deadline, and what it left.

    Looked at in the same step as the tests' user, and again as root where that came to nothing.
    """
    result = await sandbox.exec(
        f"{_RUN}\nprintf 'headrace-ran\\n'\n{_INSPECT}",
        timeout_s=task.verifier.timeout_s,
        workdir=task.environment.workdir,
        env={**task.environment.env, **task.verifier.env},
        user=IMAGE_USER if task.verifier.user is None else task.verifier.user,
        max_output_bytes=LOG_BYTES + 4096,
    )
    _, ran, seen = result.stdout.rpartition(_RAN)
    if not result.timed_out and ran and not result.stdout_cut and b"--\n" in seen:
        return False, _left(seen, result.stderr)
    left = await _inspect(sandbox, first=_SETTLE)
    if result.exit_code == NOT_STARTED and not left.log:  # no such user, no such folder
        left = msgspec.structs.replace(left, log=result.stderr.decode("utf-8", "replace"))
    return result.timed_out, left


async def _inspect(sandbox: Sandbox, *, first: str) -> _Left:
    """The kinds of the files we look for, and the end of the output, in one step, as root."""
    result = await sandbox.exec(
        first + _INSPECT, timeout_s=STEP_TIMEOUT_S, max_output_bytes=LOG_BYTES + 4096
    )
    if result.timed_out:
        raise SandboxError(f"the sandbox did not answer within {STEP_TIMEOUT_S:.0f} s")
    return _left(result.stdout, result.stderr)


def _left(stdout: bytes, stderr: bytes) -> _Left:
    head, _, archive = stdout.partition(b"--\n")
    kinds = {}
    for line in head.decode("utf-8", "replace").split("\n"):
        kind, _, path = line.partition(" ")
        kinds[path] = kind
    small = _small_files(archive)
    log = small.get(_LOG, stderr)
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
    for path, reader in ((_JSON, read_reward_json), (_TXT, read_reward_txt)):
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
    for path in _REPORTS:
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
