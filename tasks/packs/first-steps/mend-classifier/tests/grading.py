"""Runs the test_ functions of a grader and writes the CTRF report and the reward.

Rule: the reward is 1 when every test passed, else 0, and it is written last, when every process
the tests started has ended. Where nothing was done, every test fails at once, without running.
Each task carries its own copy of this file. What is right or wrong is up to the graders.
"""

import json
import os
import signal
import time

LOGS = "/logs/verifier"
TEST_DEADLINE_S = 30
CLEAN_ENV = {
    "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def kill_group(process):
    """Ends a process started in its own session, and its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def run(argv, stdin="", timeout_s=5.0, cwd=None, env=None):
    """(exit status, stdout, stderr) of a program; nothing of it is alive afterwards."""
    import subprocess  # heavy, as are those below: not loaded where nothing was done

    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env={**CLEAN_ENV, **(env or {})},
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(stdin, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"{argv[:3]} did not end within {timeout_s} s") from None
    finally:
        kill_group(process)
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()
    return process.returncode, out, err


def output(argv, stdin="", timeout_s=5.0, cwd=None, env=None):
    """stdout of a program that has to succeed."""
    status, out, err = run(argv, stdin, timeout_s, cwd, env)
    assert status == 0, f"{argv[:3]} exited with {status}: {err[-500:]}"
    return out


def _overdue(signum, frame):
    raise TimeoutError(f"the test took longer than {TEST_DEADLINE_S} s")


def _nothing_done(needs, original):
    if not os.path.exists(needs):
        return f"{needs} does not exist"
    if original is None:
        return None
    import hashlib

    with open(needs, "rb") as file:
        unchanged = original == hashlib.sha256(file.read()).hexdigest()
    return f"{needs} is as it was given" if unchanged else None


def _outcome(name, test, fault):
    start = time.time()
    result = {"name": name, "status": "passed", "duration": 0}
    if fault:
        return result | {"status": "failed", "message": fault}
    signal.setitimer(signal.ITIMER_REAL, TEST_DEADLINE_S)
    try:
        test()
    except Exception as error:
        import traceback

        result["status"] = "failed"
        result["message"] = f"{type(error).__name__}: {error}"[:500]
        print(f"--- {name}\n{traceback.format_exc()}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    result["duration"] = round((time.time() - start) * 1000)
    print(f"{result['status']:6} {name}")
    return result


def main(namespace, needs, original=None, as_json=False):
    """Runs the tests of a module's globals; the reward goes to reward.json or reward.txt.

    `needs` is the file the task asks for, `original` the sha256 it had if it was to be changed.
    """
    signal.signal(signal.SIGALRM, _overdue)
    start = time.time()
    found = [(n, f) for n, f in namespace.items() if n.startswith("test_") and callable(f)]
    fault = _nothing_done(needs, original)
    if fault:
        print(fault)
    tests = [_outcome(name, test, fault) for name, test in found]
    passed = sum(t["status"] == "passed" for t in tests)
    summary = {"tests": len(tests), "passed": passed, "failed": len(tests) - passed}
    summary |= {"pending": 0, "skipped": 0, "other": 0}
    summary |= {"start": round(start * 1000), "stop": round(time.time() * 1000)}
    os.makedirs(LOGS, exist_ok=True)
    report = {"results": {"tool": {"name": "grading"}, "summary": summary, "tests": tests}}
    with open(f"{LOGS}/ctrf.json", "w") as file:
        json.dump(report, file)
    reward = int(bool(tests) and passed == len(tests))
    name = "reward.json" if as_json else "reward.txt"
    with open(f"{LOGS}/{name}", "w") as file:
        file.write(json.dumps({"reward": reward}) if as_json else f"{reward}\n")
