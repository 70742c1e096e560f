"""Terminal-Bench 1.0's contract: tests go into the sandbox the agent left, run, and print.

Rule: `run-tests.sh` and the contents of `tests/` arrive in `/tests` only now, in place of what the
agent may have put there. The script runs in the working directory, as root, in a new login shell
with its start files; or, where the task says so, in the agent's own shell. The verdict is read from
what it printed on stdout and stderr (see `parsers.py`); its exit status means nothing. Tests that
do not end, print nothing that can be read, or find no bash are a `Verdict` with a named fault. A
sandbox that is gone raises `SandboxError`.

The official harness reads the verdict from a terminal of 160 columns with 2,000 lines of
scrollback, and so misses what was wrapped or has scrolled away. That is not repeated, in `strict`
neither: the output is a file, of which the first 64 MiB at most are kept and then the last 1 MiB,
and the last `READ_BYTES` are read. No test has a terminal as its stdin or stdout.
"""

import io
import tarfile
import time

import msgspec

from headrace.aio import in_thread
from headrace.errors import ContractError, SandboxError
from headrace.sandbox.archive import TRANSFER_TIMEOUT_S, pack
from headrace.sandbox.base import Sandbox
from headrace.types import OtherReading, Record, Task, Verdict, VerdictFault
from headrace.verifiers.parsers import CORRECT, STRICT, Reading, difference, read

STEP_TIMEOUT_S = 60.0
"""For each of our own small steps; the tests have the task's time."""
READ_BYTES = 8 << 20
"""Of the end of the output: read for the verdict."""
TAIL_CHARS = 4000
TYPED_S = 1.0
"""For a line typed into the agent's terminal to appear."""
_KEPT_BLOCKS, _KEPT_END_BYTES = 16384, 1 << 20
"""Of at most 4096 bytes each, from the start of the output; then so much of its end."""
_LINGER_S = 1

_FOLDER = "/logs/verifier"
_LOG, _RUN, _ENDED = f"{_FOLDER}/test-stdout.txt", f"{_FOLDER}/run", f"{_FOLDER}/ended"
_SCRIPT = "/tests/run-tests.sh"
_BROUGHT, _WINDOWS = b"headrace-brought", b"headrace-windows"
_WINDOWS_NOTE = "headrace: run-tests.sh has Windows line ends; it was run without them\n"

_RUNNER = f"""\
tests() {{
  if [ "$1" = new ]; then
    bash -l -i -c 'exec bash {_SCRIPT} >&6 2>&6 6>&-' 6>&1 > /dev/null 2>&1 < /dev/null
  else
    bash {_SCRIPT} 2>&1 < /dev/null
  fi
}}
if [ "${{BASH_VERSINFO[0]}}${{BASH_VERSINFO[1]}}" -ge 44 ]; then
  exec 5< <( tests "$1" )
  t=$!
  exec 4< <( {{ dd bs=4096 count={_KEPT_BLOCKS} 2> /dev/null; tail -c {_KEPT_END_BYTES}; }} \\
    <&5 > {_LOG} )
  exec 5<&-
  wait "$t"
  read -t {_LINGER_S} -u 4
else
  tests "$1" > {_LOG}
fi
echo ended > {_ENDED}
"""
"""The log's writer ends with the tests, or later where something of theirs goes on and may print;
nobody waits for that longer than a moment."""

_PREPARE = f"""\
cd / && umask 022
for f in bash tar tail dd; do
  command -v $f > /dev/null || {{ echo "there is no $f" >&2; exit 1; }}
done
if [ -L {_FOLDER} ] || [ ! -d {_FOLDER} ]; then rm -rf {_FOLDER}; fi
rm -rf {_LOG} {_RUN} {_ENDED} @STALE@
mkdir -p {_FOLDER} /agent-logs /tests && tar -x -o -f - -C /tests || exit
chmod 755 /logs {_FOLDER} && : > {_LOG} && : > {_ENDED} && chmod 666 {_LOG} {_ENDED} || exit
cat > {_RUN} << 'headrace-end' || exit
{_RUNNER}headrace-end
@LINES@
echo {_BROUGHT.decode()}
"""
"""Reads the tests as a tar archive from stdin."""
_LINES = f"""\
IFS= read -r l < {_SCRIPT}
case $l in *"$(printf '\\r')")
  sed -i "s/$(printf '\\r')\\$//" {_SCRIPT} && echo {_WINDOWS.decode()};;
esac
"""


class _Brought(Record, frozen=True, kw_only=True):
    unusable: str | None = None
    """Why the tests cannot be brought."""
    note: str = ""
    """What was odd about them."""


class TerminalBench1Verifier:
    """Grades a sandbox by what the task's `run-tests.sh` prints."""

    def __init__(self, compat: str = CORRECT) -> None:
        """`compat`: `correct` or `strict`; a verdict that differs between them records both."""
        self._compat = compat

    async def verify(self, task: Task, sandbox: Sandbox) -> Verdict:
        """Bring the tests, run them, read what they print. Raises only `InfrastructureError`."""
        begun = time.monotonic()
        brought = await self._bring(task, sandbox)
        if brought.unusable is not None:
            return _faulty(brought.unusable, time.monotonic() - begun)
        timed_out, output = await _run_tests(task, sandbox)
        tail = (brought.note + output)[-TAIL_CHARS:]
        if timed_out:
            reason = f"test_timeout: the tests did not end within {task.verifier.timeout_s:g} s"
            return _faulty(reason, time.monotonic() - begun, tail)
        verdict = await in_thread(_verdict, task.verifier.parser, output, self._compat)
        seconds = time.monotonic() - begun
        return msgspec.structs.replace(verdict, log_tail=tail, duration_s=seconds)

    async def _bring(self, task: Task, sandbox: Sandbox) -> _Brought:
        """Remove what is stale and put script and tests into `/tests`."""
        tests = await in_thread(_packed, task)
        # A compose file may have mounted a folder of this machine there: it is not emptied.
        stale = "/tests" if task.environment.compose is None else _SCRIPT
        script = _PREPARE.replace("@STALE@", stale)
        script = script.replace("@LINES@", _LINES if self._compat == CORRECT else "")
        result = await sandbox.exec(script, timeout_s=TRANSFER_TIMEOUT_S, stdin=tests)
        if _BROUGHT in result.stdout:
            return _Brought(note=_WINDOWS_NOTE if _WINDOWS in result.stdout else "")
        if result.timed_out:
            raise SandboxError(f"the sandbox did not answer within {TRANSFER_TIMEOUT_S:.0f} s")
        said = result.stderr.decode("utf-8", "replace").strip()[-300:]
        said = said or f"exit {result.exit_code}"
        return _Brought(unusable=f"sandbox_unusable: the tests cannot be brought: {said}")


def _packed(task: Task) -> bytes:
    """The script, then the contents of the folders, in one archive. Blocking.

    In this order, so that a `tests/run-tests.sh` is the one that runs, as officially.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as whole:
        for source in (task.verifier.script, *task.verifier.tests):
            with tarfile.open(fileobj=io.BytesIO(pack(source)), mode="r:") as part:
                for member in part:
                    whole.addfile(member, part.extractfile(member) if member.isreg() else None)
    return out.getvalue()


async def _run_tests(task: Task, sandbox: Sandbox) -> tuple[bool, str]:
    """Whether the deadline came first, and what was printed."""
    if task.verifier.same_shell:
        timed_out = await _run_in_the_agents_shell(task, sandbox)
        return timed_out, await _output(sandbox)
    result = await sandbox.exec(
        f"bash {_RUN} new < /dev/null; tail -c {READ_BYTES} {_LOG}",
        timeout_s=task.verifier.timeout_s,
        workdir=task.environment.workdir,
        env={**task.environment.env, "TEST_DIR": "/tests", **task.verifier.env},
        max_output_bytes=READ_BYTES,
    )
    if result.timed_out:
        return True, await _output(sandbox)
    return False, result.stdout.decode("utf-8", "replace")


async def _run_in_the_agents_shell(task: Task, sandbox: Sandbox) -> bool:
    """True at the deadline. Its shell is the terminal's, where the agent had a terminal."""
    timeout_s = task.verifier.timeout_s
    try:
        terminal = await sandbox.terminal()
    except ContractError:  # none was asked for: the agent's commands went to `run`
        return (await sandbox.run(f"bash {_RUN}", timeout_s=timeout_s)).timed_out
    begun = time.monotonic()
    await terminal.type(f"bash {_RUN}", wait_s=TYPED_S)
    if (await terminal.type("Enter", wait_s=timeout_s)).timed_out:
        return True
    # A terminal that looks idle says nothing of the tests: they may wait for one another.
    left_s = max(timeout_s - (time.monotonic() - begun), TYPED_S)
    until = f"until [ -s {_ENDED} ]; do sleep 0.1; done"
    return (await sandbox.exec(until, timeout_s=left_s)).timed_out


async def _output(sandbox: Sandbox) -> str:
    result = await sandbox.exec(
        f"tail -c {READ_BYTES} {_LOG}", timeout_s=STEP_TIMEOUT_S, max_output_bytes=READ_BYTES
    )
    if result.timed_out:
        raise SandboxError(f"the sandbox did not answer within {STEP_TIMEOUT_S:.0f} s")
    return result.stdout.decode("utf-8", "replace")


def _verdict(parser: str, output: str, compat: str) -> Verdict:
    readings = {way: read(parser, output, compat=way) for way in (STRICT, CORRECT)}
    chosen = readings.pop(compat)
    ((name, other),) = readings.items()
    differs = other.solved != chosen.solved
    return Verdict(
        reward=_reward(chosen),
        fault=VerdictFault.VERIFIER if chosen.problem else None,
        reason=chosen.problem or None,
        rewards={} if chosen.problem else {"reward": float(chosen.solved)},
        tests=chosen.tests,
        other=OtherReading(
            compat=name,
            reward=_reward(other),
            reason=difference(chosen, other) if compat == STRICT else difference(other, chosen),
        )
        if differs
        else None,
    )


def _reward(reading: Reading) -> float | None:
    return None if reading.problem else float(reading.solved)


def _faulty(reason: str, duration_s: float, tail: str = "") -> Verdict:
    fault = VerdictFault.VERIFIER
    return Verdict(reward=None, fault=fault, reason=reason, log_tail=tail, duration_s=duration_s)
