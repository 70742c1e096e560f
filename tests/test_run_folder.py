"""A run folder: made once, opened again, never mistaken for another."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.configs import load
from headrace.configs.models import RunConfig
from headrace.engine.reader import finished_ids
from headrace.engine.run_folder import (
    MAY_DIFFER,
    RunFolder,
    differences,
    may_differ,
    not_writable,
    read_manifest,
    write_atomically,
)
from headrace.engine.store import Store
from headrace.errors import ConfigError, RunFolderError, StoreError
from headrace.types import Episode, StopReason, Verdict, VerdictFault

TASKS = {"org/a": "a" * 64, "org/b": "b" * 64}


def opened(path: Path, *overrides: str, **fields: Any) -> RunFolder:
    plain: dict[str, Any] = {
        "tasks": TASKS,
        "policy": "vllm",
        "policy_version": "v1",
        "provider": "namespace",
    }
    return RunFolder.open(path, load.load(None, overrides), **(plain | fields))


def test_a_new_run_is_a_folder_that_describes_itself(tmp_path: Path) -> None:
    with opened(tmp_path / "out" / "run", "attempts=4") as run:
        manifest = read_manifest(run.path)
        assert manifest == run.manifest
        assert manifest.config["attempts"] == 4
        assert manifest.config_digest == load.digest(load.load(None, ["attempts=4"]))
        assert (manifest.tasks, manifest.policy, manifest.policy_version) == (TASKS, "vllm", "v1")
        assert run.logs.is_dir()
        assert run.finished() == set()
        names = {p.name for p in run.path.iterdir()}
        assert names == {"run.json", "run.lock", "shards", "logs"}


def test_the_same_run_opens_again_under_its_id(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        first = run.manifest
    with opened(tmp_path) as run:
        assert run.manifest == first


def test_an_empty_folder_becomes_a_run(tmp_path: Path) -> None:
    with opened(tmp_path):
        assert (tmp_path / "run.json").exists()


def test_what_a_killed_start_left_does_not_stop_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text("")
    (tmp_path / ".run.json.1234.tmp").write_text("{")
    with opened(tmp_path):
        assert (tmp_path / "run.json").exists()


def test_keys_of_the_engine_and_the_store_may_differ_and_the_newest_are_kept(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as run:
        first = run.manifest
    with opened(tmp_path, "engine.live=3", "store.shard_mb=1", "policy.server.port=8123") as run:
        assert run.manifest.run == first.run
        assert run.manifest.created == first.created
        assert read_manifest(tmp_path).config["engine"]["live"] == 3
        assert run.manifest.config_digest != first.config_digest


def test_a_run_may_be_given_more_attempts_and_keeps_its_id(tmp_path: Path) -> None:
    with opened(tmp_path, "attempts=4") as run:
        first = run.manifest
    with opened(tmp_path, "attempts=8") as run:
        assert run.manifest.run == first.run
        assert read_manifest(tmp_path).config["attempts"] == 8


def test_a_run_may_not_be_given_fewer_attempts_than_it_has(tmp_path: Path) -> None:
    opened(tmp_path, "attempts=4").close()
    with pytest.raises(
        RunFolderError, match=r"\n  attempts: stored 4, given 3 \(attempts may grow, not shrink\)\n"
    ):
        opened(tmp_path, "attempts=3")


def test_a_stored_configuration_is_one_that_goes_on(tmp_path: Path) -> None:
    opened(tmp_path, "limits.max_turns=7", "policy.type=noop").close()
    stored = read_manifest(tmp_path).config
    again = load.load_stored("run.json", stored, ["attempts=3", "engine.live=2"])
    assert (again.limits.max_turns, again.attempts, again.policy.type) == (7, 3, "noop")
    with pytest.raises(ConfigError, match=r"run\.json: .*novel"):
        load.load_stored("run.json", stored | {"novel": 1})


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    opened(tmp_path, "limits.max_turns=7").close()
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(RunFolderError) as told:
        opened(tmp_path, "limits.max_turns=8", "policy.sampling.temperature=0.1", "engine.live=1")
    assert str(told.value).splitlines() == [
        f"{tmp_path} is a run of another configuration:",
        "  limits.max_turns: stored 7, given 8",
        "  policy.sampling.temperature: stored 0.7, given 0.1",
        "Use another folder with --out, or the stored values to go on with this run;"
        f" `headrace resume {tmp_path}` takes them from it",
    ]
    assert (tmp_path / "run.json").read_bytes() == before
    opened(tmp_path, "limits.max_turns=7").close()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"tasks": {"org/a": "a" * 64}}, "task org/b: stored, not given"),
        ({"tasks": TASKS | {"org/c": "c" * 64}}, "task org/c: not stored, given"),
        (
            {"tasks": TASKS | {"org/b": "f" * 64}},
            "task org/b: stored with digest bbbbbbbbbbbb, given with ffffffffffff",
        ),
        ({"policy_version": "v2"}, "policy version: stored v1, given v2"),
        ({"policy": "oracle"}, "policy: stored vllm, given oracle"),
        ({"provider": "docker"}, "provider: stored namespace, given docker"),
    ],
)
def test_other_tasks_policies_and_providers_are_refused(
    tmp_path: Path, fields: dict[str, Any], told: str
) -> None:
    opened(tmp_path).close()
    with pytest.raises(RunFolderError, match=f"another configuration:\n  {told}\n"):
        opened(tmp_path, **fields)


def test_a_folder_that_is_not_a_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"neither empty nor a run \(it has thesis\.txt\)"):
        opened(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_shards_without_their_description_are_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "run.json").unlink()
    with pytest.raises(RunFolderError, match="neither empty nor a run"):
        opened(tmp_path)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="is a file; expected a folder"):
        opened(tmp_path / "file")
    with pytest.raises(RunFolderError, match="is a file; expected a folder|cannot be read"):
        opened(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "is not the description of a run: .*schema"),
        ("not JSON", "is not the description of a run"),
        ('{"schema": 1}', "is not the description of a run: .*run"),
        ('{"schema": 2, "novel": 1}', r"newer headrace \(schema 2; this one reads up to 1\)"),
    ],
)
def test_a_description_that_cannot_be_read_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "run.json").write_text(text)
    for attempt in (opened, read_manifest):
        with pytest.raises(RunFolderError, match=told):
            attempt(tmp_path)


def test_reading_what_is_no_run_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"expected a folder with run\.json, found no run\.js"):
        read_manifest(tmp_path)
    with pytest.raises(RunFolderError, match="found nothing there"):
        read_manifest(tmp_path / "absent")


def test_a_run_in_use_is_refused_with_who_uses_it(tmp_path: Path) -> None:
    with opened(tmp_path):
        with pytest.raises(RunFolderError, match=f"in use by process {os.getpid()} on"):
            opened(tmp_path)
    opened(tmp_path).close()


def test_a_holder_that_left_no_name_is_told_as_such(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with (tmp_path / "run.lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunFolderError, match="in use by another process"):
            opened(tmp_path)


def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from headrace.engine.locks import FolderLock
lock = FolderLock(Path(sys.argv[1]) / "run.lock")
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", program, tmp_path], check=False, timeout=30)
    assert "pid" in (tmp_path / "run.lock").read_text()
    opened(tmp_path).close()


def test_a_refused_opening_leaves_the_folder_free(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with pytest.raises(RunFolderError, match="another configuration"):
        opened(tmp_path, "seed=2")
    opened(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_told() -> None:
    with pytest.raises(RunFolderError, match="/proc/run cannot be made"):
        opened(Path("/proc/run"))


def test_only_a_failing_disk_is_a_failure_of_the_infrastructure() -> None:
    full = not_writable("x", OSError(errno.ENOSPC, "No space left on device"))
    assert isinstance(full, StoreError)
    closed = not_writable("x", OSError(errno.EACCES, "Permission denied"))
    assert isinstance(closed, RunFolderError)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file is a file"):
        opened(tmp_path / "file" / "run")


def test_every_key_that_may_differ_is_a_key() -> None:
    keys = {path for path, _, _ in load.difference(load.resolved(RunConfig()), {})}
    for pattern in MAY_DIFFER:
        assert any(may_differ(key) for key in keys if key.startswith(pattern.rstrip("*"))), pattern
    assert not may_differ("limits.max_turns")
    assert not may_differ("policy.sampling.temperature")
    assert not may_differ("policy.model")


def test_a_run_is_no_other_run_than_itself(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        assert differences(run.manifest, run.manifest) == ()


def test_writing_replaces_a_file_in_one_step(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    write_atomically(file, b"old")
    with file.open("rb") as reader:
        write_atomically(file, b"new")
        assert reader.read() == b"old"
    assert file.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    file.mkdir()
    with pytest.raises(StoreError, match=r"summary\.json cannot be written"):
        write_atomically(file, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


async def test_the_finished_are_those_that_count_and_can_be_read(tmp_path: Path) -> None:
    def episode(id: str, fault: VerdictFault | None = None) -> Episode:
        return Episode(
            id=id,
            task="org/a",
            task_digest="a" * 64,
            sample=0,
            policy="vllm",
            policy_version="v1",
            provider="namespace",
            instruction="",
            stop_reason=StopReason.DONE,
            verdict=Verdict(reward=None if fault else 1.0, fault=fault),
        )

    with opened(tmp_path) as run:
        async with Store(run.path) as store:
            await store.append(episode("damaged"))
            for key in ("fine", "again"):
                await store.append(episode(key))
            await store.append(episode("gone", VerdictFault.INFRASTRUCTURE))
        assert run.finished() == {"damaged", "fine", "again"}
        assert run.damage == []
        shard = run.path / "shards" / "000000.hrs"
        data = bytearray(shard.read_bytes())
        data[100] ^= 1
        shard.write_bytes(data)
        assert run.finished() == finished_ids(run.path, on_damage=print) == {"fine", "again"}
        assert [d.ids for d in run.damage] == [("damaged",)]


def test_the_description_is_plain_json(tmp_path: Path) -> None:
    opened(tmp_path).close()
    data = json.loads((tmp_path / "run.json").read_text())
    assert data["schema"] == 1
    assert data["config"]["policy"]["type"] == "vllm"
