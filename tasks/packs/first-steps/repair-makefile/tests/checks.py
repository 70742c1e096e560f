"""Runs the repaired Makefile in copies of the project, with changed sources, and looks at what comes out."""

import os
import shutil
import stat
import time

import grading

ORIGINAL = "d04a3d29671d5117f86678f9e6ae82bc48e77097c461a95a10b1bc04ef53787f"
ROOT = "/tmp/make-grading"
LONG_AGO = time.time() - 5000


def project(name):
    """A fresh copy of the sources with the agent's Makefile."""
    path = f"{ROOT}/{name}"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree("/tests/pristine", path)
    shutil.copyfile("/app/Makefile", f"{path}/Makefile")
    age(path)
    return path


def age(path):
    """Gives all files one old time: what is written afterwards is newer, beyond any doubt."""
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            os.utime(f"{folder}/{name}", (LONG_AGO, LONG_AGO))
        os.utime(folder, (LONG_AGO, LONG_AGO))


def make(path, *arguments):
    return grading.run(["make", *arguments], cwd=path, timeout_s=15)


def made(path, *arguments):
    status, out, err = make(path, *arguments)
    assert status == 0, f"make {' '.join(arguments)}: status {status}, {err[-300:]}"
    return out


def stats(path, *arguments):
    return grading.output([f"{path}/build/stats", *arguments])


def replace(path, old, new):
    with open(path) as file:
        text = file.read()
    assert old in text
    with open(path, "w") as file:
        file.write(text.replace(old, new))


def listing(path):
    return sorted(
        os.path.relpath(f"{folder}/{name}", path)
        for folder, _, files in os.walk(path)
        for name in files
    )


def built():
    """A project built once for the tests that change one thing after it; sources unchanged."""
    path = f"{ROOT}/built"
    if not os.path.exists(f"{path}/build/stats"):
        made(project("built"))
    return path


def changed(name):
    """A copy of the built project with old times on everything."""
    path = f"{ROOT}/{name}"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(built(), path)
    age(path)
    return path


def test_make_builds_a_program_that_works():
    path = built()
    assert stats(path, "1", "1", "4") == "mean 2.000\ndeviation 1.414\ngeometric 1.587\n"
    assert stats(path, "--version") == "stats 1.4.0\n"
    with open(f"{path}/build/version.h") as file:
        assert file.read() == '#define VERSION "1.4.0"\n'


def test_a_parallel_make_from_nothing():
    path = project("parallel")
    made(path, "-j4")
    assert stats(path, "3") == "mean 3.000\ndeviation 0.000\ngeometric 3.000\n"


def test_an_object_can_be_made_alone():
    # A Makefile that forgets a prerequisite may still work in a lucky order.
    path = project("alone")
    made(path, "build/main.o")
    assert os.path.exists(f"{path}/build/main.o")


def test_a_second_make_finds_nothing_to_do():
    path = built()
    status, _, _ = make(path, "-q")
    assert status == 0, f"make -q after make: status {status}"
    before = os.stat(f"{path}/build/stats").st_mtime_ns
    made(path)
    assert os.stat(f"{path}/build/stats").st_mtime_ns == before


def test_a_changed_header_is_noticed():
    path = changed("header")
    replace(f"{path}/include/stats.h", "DIGITS 3", "DIGITS 1")
    made(path)
    assert stats(path, "5") == "mean 5.0\ndeviation 0.0\ngeometric 5.0\n"
    for name in ("main", "stats", "geometric"):
        assert os.stat(f"{path}/build/{name}.o").st_mtime > LONG_AGO + 9, f"{name}.o is stale"


def test_a_changed_version_is_noticed():
    path = changed("version")
    with open(f"{path}/VERSION", "w") as file:
        file.write("2.0.0-rc1\n")
    made(path)
    assert stats(path, "--version") == "stats 2.0.0-rc1\n"


def test_a_changed_source_is_compiled_alone():
    path = changed("source")
    replace(f"{path}/lib/geometric.c", "return exp(sum / count)", "return 40 + exp(sum / count)")
    made(path)
    assert stats(path, "2") == "mean 2.000\ndeviation 0.000\ngeometric 42.000\n"
    for name in ("main", "stats"):
        assert os.stat(f"{path}/build/{name}.o").st_mtime < LONG_AGO + 9, f"{name}.o was recompiled"


def test_check_runs_every_time():
    path = built()
    for _ in range(2):
        assert "check: ok" in made(path, "check")


def test_check_fails_with_a_wrong_program():
    path = changed("wrong")
    replace(f"{path}/lib/stats.c", "return sum / count", "return sum / count + 1")
    status, _, _ = make(path, "check")
    assert status != 0, "make check succeeds though the program is wrong"


def test_install_goes_where_it_is_told():
    path = changed("install")
    stage = f"{ROOT}/stage"
    shutil.rmtree(stage, ignore_errors=True)
    os.remove(f"{path}/build/stats")
    made(path, "install", f"DESTDIR={stage}")
    made(path, "install", f"DESTDIR={stage}", "PREFIX=/opt/stats")
    for prefix in ("usr/local", "opt/stats"):
        program = f"{stage}/{prefix}/bin/stats"
        assert grading.output([program, "--version"]) == "stats 1.4.0\n"
        assert stat.S_IMODE(os.stat(program).st_mode) & 0o555 == 0o555


def test_clean_removes_the_build_and_nothing_else():
    path = changed("clean")
    with open(f"{path}/clean", "w") as file:
        file.write("a file with an unlucky name\n")
    made(path, "clean")
    assert not os.path.exists(f"{path}/build")
    assert listing(path) == sorted([*listing("/tests/pristine"), "Makefile", "clean"])
    made(path, "clean")


grading.main(globals(), needs="/app/Makefile", original=ORIGINAL)
