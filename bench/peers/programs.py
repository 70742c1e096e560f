"""Programs of the peers: run to their end, under a deadline, in an environment of their own.

What a program printed is kept in a file and shown only when it failed. One that does not
end, or is not waited for any more, is stopped as by Ctrl-C and has time to remove its containers.
Processor time is that of the program and of everything it started and waited for: the `docker`
command line is in it, the Docker engine is not.
"""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DEADLINE_S = 600.0
CLEAN_UP_S = 60.0
SETTLE_S = 90.0
QUIET = {
    "HARBOR_TELEMETRY": "0",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "MSWEA_SILENT_STARTUP": "1",
    "MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT": "1",
    "PRIME_RUNS_MODE": "disabled",
    "OPENAI_API_KEY": "none",
    "DO_NOT_TRACK": "1",
}
"""No telemetry, no uploads, no retries, no lists of prices from elsewhere."""


@dataclass(frozen=True)
class Outcome:
    """What one system did in one round."""

    episodes: int
    passed: int
    seconds: float
    """From the first episode's beginning to the end of the last, as the system itself tells."""
    cpu_s: float | None = None
    """Processor time of the client."""

    @property
    def eps_s(self) -> float:
        return self.episodes / self.seconds


def call(
    line: Sequence[str | Path],
    work: Path,
    *,
    environment: Mapping[str, str] | None = None,
    deadline_s: float = DEADLINE_S,
) -> tuple[str, float]:
    """What the program printed on stdout, and its processor seconds. Ends the bench if it fails."""
    log = work / "program.log"
    before = _children_s()
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [str(word) for word in line],
            cwd=work,
            env={**os.environ, **QUIET, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for the bench, which then stops the program
        ) as program,
    ):
        try:
            told, _ = program.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            raise SystemExit(
                f"{line[0]}: expected an end within {deadline_s:.0f} s, found none"
            ) from None
        finally:
            _stop(program)
    if program.returncode:
        tail = (told + log.read_text(errors="replace"))[-3000:]
        raise SystemExit(f"{line[0]} ended with {program.returncode}:\n{tail}")
    return told, _children_s() - before


def _stop(program: "subprocess.Popen[str]") -> None:
    """End it and its children, if it has not ended. Killed at once, it would leave containers."""
    if program.poll() is not None:
        return
    program.send_signal(signal.SIGINT)  # what it runs now may be what removes a container
    try:
        program.communicate(timeout=CLEAN_UP_S)
    except subprocess.TimeoutExpired:
        print(f"{program.args[0]} does not end: killed; look for its containers")
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def settle(chosen: str) -> None:
    """Wait until no container matches the filter `chosen`; say how many are left at the deadline.

    A peer may leave its containers to be removed behind its back. That is neither counted in its
    time nor left to disturb the next system.
    """
    until = time.monotonic() + SETTLE_S
    while True:
        listed = subprocess.run(
            ["docker", "ps", "--all", "--quiet", "--filter", chosen],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        left = len(listed.stdout.split())
        if not left or time.monotonic() > until:
            break
        time.sleep(0.5)
    if left:
        print(f"{left} containers are still there: docker ps --all --filter {chosen}")
