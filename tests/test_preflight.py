"""Preflight: what does not fit is reduced and told, what may be raised is raised."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.preflight import (
    ENGINE_BYTES,
    Room,
    fit,
    prepare,
    raise_processes,
    room,
)
from headrace.sandbox.base import Footprint

SMALL = Footprint(memory_bytes=(1 << 20) - ENGINE_BYTES, processes=5, files=9)


def test_what_fits_is_left_alone_and_nothing_is_told() -> None:
    plenty = Room(memory_bytes=1 << 40, processes=100_000, files=100_000)
    assert fit(1000, SMALL, plenty).live == 1000
    assert fit(1000, SMALL, plenty).notes == ()


def test_a_limit_nobody_knows_bounds_nothing() -> None:
    assert fit(10**6, SMALL, Room()).live == 10**6


@pytest.mark.parametrize(
    ("left", "live", "words"),
    [
        (Room(memory_bytes=100 << 20), 100, "need about 1000 MB of memory, found 100 MB of memory"),
        (Room(processes=50), 10, "need about 5000 processes, found 50 processes"),
        (Room(files=70), 7, "need about 10000 open files, found 70 open files"),
    ],
)
def test_what_does_not_fit_is_reduced_with_both_numbers(left: Room, live: int, words: str) -> None:
    found = fit(1000, SMALL, left)
    assert found.live == live
    (note,) = found.notes
    assert words in note
    assert note.endswith(f"at most {live} are live")


def test_the_tightest_limit_counts_and_all_are_told() -> None:
    found = fit(1000, SMALL, Room(memory_bytes=500 << 20, processes=50))
    assert found.live == 10
    assert len(found.notes) == 2


@given(st.integers(1, 10**6), st.integers(0, 10**7), st.integers(0, 10**5))
def test_at_least_one_is_live_and_never_more_than_asked(live: int, left: int, files: int) -> None:
    found = fit(live, SMALL, Room(processes=left, files=files))
    assert 1 <= found.live <= live
    assert bool(found.notes) == (left // 5 < live or files // 10 < live)


def test_sandboxes_ahead_go_before_live_episodes() -> None:
    found = fit(80, SMALL, Room(memory_bytes=100 << 20), warm=50)
    assert (found.live, found.warm) == (80, 20)
    (note,) = found.notes
    assert note.startswith("80 live episodes and 50 sandboxes ahead of them need about 130 MB")
    assert note.endswith("at most 80 are live, 20 ahead")
    none_left = fit(200, SMALL, Room(memory_bytes=100 << 20), warm=50)
    assert (none_left.live, none_left.warm) == (100, 0)


def test_what_is_open_already_needs_no_room() -> None:
    assert fit(100, SMALL, Room(memory_bytes=40 << 20), held=60).live == 100
    assert fit(100, SMALL, Room(memory_bytes=40 << 20), held=50).live == 90
    assert fit(10, SMALL, Room(memory_bytes=0), held=50).live == 10


def test_this_machine_has_room_for_one() -> None:
    left = room()
    assert all(value is None or value > 0 for value in (left.memory_bytes, left.files))


def test_open_files_are_raised_for_this_process_only() -> None:
    """In a process of its own: limits cannot be given back."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    script = (
        "import resource; from headrace.engine.preflight import raise_files\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))\n"
        "print(raise_files(200)); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == [
        "open files of this process raised from 64 to 200",
        "200",
    ], done.stderr
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == soft


@pytest.mark.skipif(os.geteuid() != 0, reason="as root only")
def test_processes_of_the_machine_are_raised_where_too_few_are_left(tmp_path: Path) -> None:
    file = tmp_path / "pid_max"
    file.write_text("32768\n")
    assert raise_processes(1000, file, lambda: 27_768) is None
    told = raise_processes(60_000, file, lambda: 27_768)
    assert told == "kernel.pid_max raised from 32768 to 87768: too few processes were left"
    assert file.read_text() == "87768\n"


def test_more_than_any_machine_holds_is_reduced() -> None:
    found = prepare(2, Footprint(memory_bytes=1 << 60, processes=0, files=0))
    assert found.live == 1
    assert "MB of memory" in found.notes[0]


def test_open_files_are_those_of_each_engine_process() -> None:
    """In a process of its own, which may not raise its limit: it cannot be given back."""
    script = (
        "import os, resource\n"
        "from headrace.engine.preflight import prepare\n"
        "from headrace.sandbox.base import Footprint\n"
        "each = Footprint(memory_bytes=0, processes=0, files=9)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))\n"
        "os.geteuid() or os.setuid(65534)\n"
        "print(*(prepare(1000, each, processes=n, exact=False).live for n in (1, 2, 4)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "25 51 102\n", done.stderr
