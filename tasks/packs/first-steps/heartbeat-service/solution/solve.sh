#!/bin/bash
set -eu
cat > /usr/local/bin/heartbeatctl <<'CTL'
#!/usr/bin/python3
"""heartbeatctl start|stop|restart|reload|status: the daemon of one home directory."""

import contextlib
import os
import signal
import subprocess
import sys
import time

HOME = os.environ.get("HEARTBEAT_HOME") or "/var/lib/heartbeat"
COMMAND = ["python3", "/opt/heartbeat/heartbeat.py", HOME]


def content(path):
    try:
        with open(path) as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""


def remove(name):
    with contextlib.suppress(FileNotFoundError):
        os.remove(f"{HOME}/{name}")


def running():
    """The process id of the running daemon, or None if the pid file is missing or stale."""
    pid = content(f"{HOME}/heartbeat.pid").strip()
    if pid.isascii() and pid.isdigit():
        words = content(f"/proc/{pid}/cmdline").split("\0")[:-1]
        if words == COMMAND:
            return int(pid)
    return None


def wait(seconds, condition):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def start():
    if running():
        return 0
    remove("ready")
    null = subprocess.DEVNULL
    daemon = subprocess.Popen(
        COMMAND, stdin=null, stdout=null, stderr=null, start_new_session=True
    )
    with open(f"{HOME}/heartbeat.pid", "w") as file:
        file.write(f"{daemon.pid}\n")

    def ready():
        return content(f"{HOME}/ready").strip() == str(daemon.pid)

    wait(2.5, lambda: ready() or daemon.poll() is not None)
    if ready() and daemon.poll() is None:
        return 0
    daemon.kill()
    daemon.wait()
    remove("heartbeat.pid")
    return 1


def stop():
    pid = running()
    if pid:
        os.kill(pid, signal.SIGTERM)
        if not wait(1.0, lambda: running() is None):
            os.kill(pid, signal.SIGKILL)
            wait(1.0, lambda: running() is None)
    remove("heartbeat.pid")
    return 0


def restart():
    stop()
    return start()


def reload():
    pid = running()
    if pid is None:
        return 1
    os.kill(pid, signal.SIGHUP)
    return 0


def status():
    pid = running()
    print(f"running {pid}" if pid else "stopped")
    return 0 if pid else 3


verbs = {"start": start, "stop": stop, "restart": restart, "reload": reload, "status": status}
if len(sys.argv) != 2 or sys.argv[1] not in verbs:
    sys.exit(print("usage: heartbeatctl start|stop|restart|reload|status", file=sys.stderr) or 2)
sys.exit(verbs[sys.argv[1]]())
CTL
chmod 755 /usr/local/bin/heartbeatctl
heartbeatctl start
heartbeatctl status
heartbeatctl stop
