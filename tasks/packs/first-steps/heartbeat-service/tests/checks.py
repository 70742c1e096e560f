"""Runs heartbeatctl in homes of its own and looks at processes, files and the daemon's log."""

import contextlib
import os
import shutil
import signal
import subprocess
import time

import grading

ORIGINAL = "91436274700bc61e23384cd5953f1ab17dac483e7a10a64978f79b8d8413f310"
CTL = "/usr/local/bin/heartbeatctl"
DAEMON = "/opt/heartbeat/heartbeat.py"
ROOT = "/tmp/heartbeat-grading"


def daemons(home):
    """Process ids of the live daemons of a home."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                if file.read().split(b"\0")[1:3] == [DAEMON.encode(), home.encode()]:
                    found.append(int(name))
    return found


@contextlib.contextmanager
def fresh(name, conf="word = tick\n", pid=None):
    """A home directory; no daemon of it is left afterwards."""
    home = f"{ROOT}/{name}"
    shutil.rmtree(home, ignore_errors=True)
    os.makedirs(home)
    if conf:
        write(home, "heartbeat.conf", conf)
    if pid:
        write(home, "heartbeat.pid", f"{pid}\n")
    try:
        yield home
    finally:
        for left in daemons(home):
            os.kill(left, signal.SIGKILL)


def write(home, name, text):
    with open(f"{home}/{name}", "w") as file:
        file.write(text)


def read(home, name):
    with open(f"{home}/{name}") as file:
        return file.read()


def ctl(home, *arguments, status=0):
    """stdout of one command, which ends in time with this status."""
    found, out, err = grading.run([CTL, *arguments], timeout_s=3, env={"HEARTBEAT_HOME": home})
    assert found == status, f"{arguments}: status {found}, expected {status}: {out} {err}"
    return out.strip()


def pid_of(home):
    """The process id in the pid file, which is that of the only daemon of the home."""
    pid = int(read(home, "heartbeat.pid"))
    assert daemons(home) == [pid], f"pid file {pid}, daemons {daemons(home)}"
    return pid


def soon(what, condition):
    deadline = time.monotonic() + 2
    while not condition():
        assert time.monotonic() < deadline, f"not within 2 s: {what}"
        time.sleep(0.005)


@contextlib.contextmanager
def bystander():
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        yield process
        assert process.poll() is None, "a process that is none of its own was ended"
    finally:
        grading.kill_group(process)


def test_a_daemon_is_started_watched_and_stopped():
    with fresh("life") as home:
        assert ctl(home, "status", status=3) == "stopped"
        ctl(home, "start")
        pid = pid_of(home)
        assert read(home, "ready") == f"{pid}\n"
        assert ctl(home, "status") == f"running {pid}"
        soon("a beat", lambda: "tick" in read(home, "heartbeat.log"))
        ctl(home, "stop")
        assert daemons(home) == [] and not os.path.exists(f"{home}/heartbeat.pid")
        assert read(home, "heartbeat.log").endswith("ended\n"), "it was killed, not asked to end"
        assert ctl(home, "status", status=3) == "stopped"
        ctl(home, "stop")


def test_the_daemon_has_a_session_of_its_own_and_no_open_pipes():
    # grading.run waits for the pipes to close, then kills the caller's whole process group.
    with fresh("session") as home:
        ctl(home, "start")
        pid = pid_of(home)
        assert os.getsid(pid) == pid, "the daemon leads no session"
        for number in (0, 1, 2):
            assert "pipe" not in os.readlink(f"/proc/{pid}/fd/{number}")


def test_a_second_start_starts_nothing():
    with fresh("twice") as home:
        ctl(home, "start")
        pid = pid_of(home)
        ctl(home, "start")
        assert pid_of(home) == pid


def test_a_stale_pid_file_does_not_stop_a_start():
    with fresh("stale", pid=4_194_000) as home:
        assert ctl(home, "status", status=3) == "stopped"
        ctl(home, "start")
        pid_of(home)


def test_a_process_that_got_the_old_id_is_left_alone():
    with bystander() as other, fresh("reused", pid=other.pid) as home:
        assert ctl(home, "status", status=3) == "stopped"
        ctl(home, "reload", status=1)
        ctl(home, "stop")
        assert not os.path.exists(f"{home}/heartbeat.pid")
        write(home, "heartbeat.pid", f"{other.pid}\n")
        ctl(home, "start")
        assert pid_of(home) != other.pid


def test_the_daemon_of_another_home_is_another_daemon():
    with fresh("one") as one, fresh("two") as two:
        ctl(one, "start")
        first = pid_of(one)
        write(two, "heartbeat.pid", f"{first}\n")
        assert ctl(two, "status", status=3) == "stopped"
        ctl(two, "start")
        assert pid_of(two) != first
        ctl(two, "stop")
        assert pid_of(one) == first


def test_reload_keeps_the_process():
    with fresh("reload") as home:
        ctl(home, "start")
        pid = pid_of(home)
        write(home, "heartbeat.conf", "word = tock\n")
        ctl(home, "reload")
        soon("the new word", lambda: "tock" in read(home, "heartbeat.log"))
        assert pid_of(home) == pid and "ended" not in read(home, "heartbeat.log")


def test_restart_makes_a_new_process():
    with fresh("restart") as home:
        ctl(home, "restart")
        pid = pid_of(home)
        ctl(home, "restart")
        assert pid_of(home) != pid
        assert read(home, "heartbeat.log").count("ended\n") == 1


def test_a_daemon_that_cannot_start_is_reported():
    with fresh("broken", conf=None) as home:
        # A ready file of an earlier life must not be taken for success.
        write(home, "ready", "12345\n")
        ctl(home, "start", status=1)
        assert daemons(home) == [] and not os.path.exists(f"{home}/heartbeat.pid")


def test_a_stubborn_daemon_is_killed_after_a_second():
    with fresh("stubborn", conf="word = no\nstubborn = yes\n") as home:
        ctl(home, "start")
        start = time.monotonic()
        ctl(home, "stop")
        assert daemons(home) == [] and not os.path.exists(f"{home}/heartbeat.pid")
        assert time.monotonic() - start > 0.9, "it did not get a second to end"


def test_usage():
    with fresh("usage") as home:
        for arguments in ((), ("begin",)):
            status, out, err = grading.run([CTL, *arguments], env={"HEARTBEAT_HOME": home})
            assert status == 2 and not out and err, f"{arguments}: {status} {out!r} {err!r}"


shutil.copyfile("/tests/heartbeat.py", DAEMON)
grading.main(globals(), needs=CTL, original=ORIGINAL)
