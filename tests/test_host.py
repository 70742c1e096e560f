"""What the machine says: each limit against what it counts, and only what is really taken."""

from collections.abc import Mapping
from pathlib import Path

from headrace.engine.host import memory_bytes, processes_left, read_host, running

GIB = 1 << 30
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1 kB\nMemAvailable:    8388608 kB\n"
BARE = {
    "proc/meminfo": MEMINFO,
    "proc/loadavg": "0.5 0.4 0.3 2/5000 777\n",
    "proc/sys/kernel/pid_max": "32768\n",
    "proc/sys/kernel/threads-max": "190000\n",
}


def machine(folder: Path, files: Mapping[str, str]) -> tuple[Path, Path]:
    """A `/proc` and a `/sys/fs/cgroup` with these files."""
    for name, text in {**BARE, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "proc", folder / "cgroup"


def test_without_groups_the_kernels_tightest_limit_counts(tmp_path: Path) -> None:
    proc, cgroups = machine(tmp_path, {})
    assert running(proc) == 5000
    assert processes_left(proc, cgroups) == 27_768


def test_a_groups_limit_is_held_against_what_the_group_has_not_the_machine(tmp_path: Path) -> None:
    """In a container the machine's threads are counted in `loadavg` and are not ours."""
    group = {"cgroup/pids.max": "4096\n", "cgroup/pids.current": "96\n"}
    assert processes_left(*machine(tmp_path, group)) == 4000


def test_a_group_without_a_limit_and_one_that_is_full(tmp_path: Path) -> None:
    assert processes_left(*machine(tmp_path, {"cgroup/pids/pids.max": "max\n"})) == 27_768
    full = {"cgroup/pids/pids.max": "10\n", "cgroup/pids/pids.current": "12\n"}
    assert processes_left(*machine(tmp_path, full)) == 0


def test_the_groups_around_ours_count_too(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "8:pids:/user/run\n4:cpu,memory:/user\n0::/\n",
        "cgroup/pids/user/run/pids.max": "max\n",
        "cgroup/pids/user/pids.max": "1000\n",
        "cgroup/pids/user/pids.current": "400\n",
        "cgroup/memory/user/memory.limit_in_bytes": f"{GIB}\n",
        "cgroup/memory/user/memory.usage_in_bytes": f"{GIB // 4}\n",
    }
    found = machine(tmp_path, files)
    assert processes_left(*found) == 600
    assert memory_bytes(*found) == (GIB, GIB - GIB // 4)


def test_file_cache_of_a_group_is_not_taken_for_used(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/run.scope\n",
        "cgroup/run.scope/memory.max": f"{4 * GIB}\n",
        "cgroup/run.scope/memory.current": f"{3 * GIB}\n",
        "cgroup/run.scope/memory.stat": f"anon 5\ninactive_file {2 * GIB}\n",
    }
    proc, cgroups = machine(tmp_path, files)
    assert memory_bytes(proc, cgroups) == (4 * GIB, 3 * GIB)
    assert read_host(tmp_path, proc, cgroups).memory_free == 0.75


def test_a_group_that_may_have_more_than_is_free_bounds_nothing(tmp_path: Path) -> None:
    files = {"cgroup/memory.max": f"{12 * GIB}\n", "cgroup/memory.current": "0\n"}
    assert memory_bytes(*machine(tmp_path, files)) == (16 * GIB, 8 * GIB)


def test_what_a_kernel_does_not_tell_holds_nothing_back(tmp_path: Path) -> None:
    host = read_host(tmp_path, tmp_path / "no-proc", tmp_path / "no-groups")
    assert (host.cpu, host.memory, host.io, host.memory_free) == (0.0, 0.0, 0.0, 1.0)
    assert processes_left(tmp_path / "no-proc", tmp_path / "no-groups") is None
