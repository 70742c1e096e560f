"""Stands between headrace and a model server, so that the server never outlives the run.

    python -S -E server_keeper.py SCRATCH COMMAND...

Rule: when its stdin closes, which a SIGKILL of headrace does too, or when the server ends, every
process that came from the server is ended and the scratch folder is gone. Standard library only:
it starts in the blink of an eye and holds a few megabytes. It restarts nothing.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

GRACE_S = 8.0
"""From asking the server to end to ending it."""
_SETTLE_S = 3.0
"""For its children after it has ended: they remove what they shared, if they can."""
_POLL_S = 0.02
_LOOK_EVERY_S = 5.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # for the case that this keeper is killed


def _descendants(pid: int) -> list[int]:
    """Every process below `pid`. As a subreaper we also get those whose parents have died."""
    found: list[int] = []
    to_see = [pid]
    while to_see:
        parent = to_see.pop()
        children: list[int] = []
        with contextlib.suppress(OSError, ValueError):
            for thread in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{thread}/children") as file:
                    children += [int(word) for word in file.read().split()]
        found += children
        to_see += children
    return found


def shared_memory(process: "str | os.PathLike[str]") -> set[str]:
    """Files in /dev/shm that a process (its folder in /proc) has open and a SIGKILL would leave.

    Found by inode: a semaphore is mapped under a name it no longer has.
    """
    inodes: set[int] = set()
    with contextlib.suppress(OSError), open(f"{os.fspath(process)}/maps") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith("/dev/shm/"):
                inodes.add(int(fields[4]))
    if not inodes:
        return set()
    with contextlib.suppress(OSError), os.scandir("/dev/shm") as files:
        return {
            file.path
            for file in files
            if file.name.startswith(("psm_", "sem.mp-")) and file.inode() in inodes
        }
    return set()


def _shared_below() -> set[str]:
    return {name for pid in _descendants(os.getpid()) for name in shared_memory(f"/proc/{pid}")}


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _wait_until(over: Callable[[], bool], limit_s: float, shared: set[str]) -> None:
    """Wait for `over`, at most `limit_s`, and keep in `shared` what the processes share."""
    deadline = time.monotonic() + limit_s
    while not over() and time.monotonic() < deadline:
        shared |= _shared_below()
        time.sleep(_POLL_S)


def _end_everything(shared: set[str]) -> None:
    """Kill what is left below us, after letting it end by itself."""
    me = os.getpid()

    def all_gone() -> bool:
        _reap()
        return not _descendants(me)

    def all_killed() -> bool:
        for pid in _descendants(me):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        return all_gone()

    _wait_until(all_gone, _SETTLE_S, shared)
    _wait_until(all_killed, GRACE_S, shared)
    for path in shared:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _wait(server: "subprocess.Popen[bytes]", wakeup: int, shared: set[str]) -> bool:
    """True when the server ended by itself, False when it is to be ended.

    Keeps in `shared` what its processes share: once they are dead nobody can tell.
    """
    while True:
        ready, _, _ = select.select([0, wakeup], [], [], _LOOK_EVERY_S)
        if not ready:
            shared |= _shared_below()
        if wakeup in ready:
            signals = os.read(wakeup, 64)
            if server.poll() is not None:
                return True
            if signal.SIGTERM in signals or signal.SIGINT in signals:
                return False
        if 0 in ready and not os.read(0, 64):
            return False


def _tell(number: int) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(1, f"{number}\n".encode())


def main(scratch: str, command: list[str]) -> None:
    """Run the server to its end or to ours.

    Two lines go to stdout: the server's process id, and its exit code (negative: a signal).
    """
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wakeup, notify = os.pipe()
    os.set_blocking(notify, False)
    signal.set_wakeup_fd(notify)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=2,  # ours is the line to headrace; both of the server's go to the log
            process_group=0,
            preexec_fn=_die_with_parent,
        )
        _tell(server.pid)
        shared: set[str] = set()
        if not _wait(server, wakeup, shared):
            server.terminate()
            _wait_until(lambda: server.poll() is not None, GRACE_S, shared)
        if server.poll() is not None:
            _tell(server.returncode)  # at once: what is left of it takes a while to end
        _end_everything(shared)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
