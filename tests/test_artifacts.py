"""Artifacts on real sandboxes: what is kept, what is refused, and that hooks come first."""

import json
import os
import shlex
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from headrace.configs.models import SandboxConfig
from headrace.engine.artifacts import MAX_BYTES, Keeper, claims
from headrace.sandbox.base import Sandbox, SandboxSpec
from headrace.sandbox.providers import choose
from headrace.types import (
    AgentRecipe,
    Artifact,
    Collected,
    CollectHook,
    EnvironmentRecipe,
    Task,
    VerifierRecipe,
)

BASE = "headrace/base:bookworm"


@pytest.fixture
async def sandbox(provider: str) -> AsyncIterator[Sandbox]:
    chosen = await choose(SandboxConfig.model_validate({"provider": provider}))
    async with chosen:
        image = await chosen.provider.prepare(EnvironmentRecipe(image=BASE))
        spec = SandboxSpec(image=image, episode="artifacts", workdir="/app")
        async with chosen.provider.open(spec) as opened:
            yield opened


def task(*artifacts: Artifact, collect: tuple[CollectHook, ...] = ()) -> Task:
    return Task(
        name="t",
        digest="d",
        path="/t",
        format="harbor",
        instruction="x",
        environment=EnvironmentRecipe(image=BASE, workdir="/app"),
        agent=AgentRecipe(),
        verifier=VerifierRecipe(collect=collect),
        artifacts=artifacts,
    )


async def make(sandbox: Sandbox, script: str) -> None:
    result = await sandbox.exec(script, timeout_s=60, workdir="/app")
    assert result.exit_code == 0, result


async def collected(
    sandbox: Sandbox, tmp_path: Path, *artifacts: Artifact, **changes: tuple[CollectHook, ...]
) -> list[Collected]:
    return await Keeper(tmp_path / "kept").collect(task(*artifacts, **changes), sandbox)


def statuses(entries: list[Collected]) -> dict[str, str]:
    return {entry.source: entry.status for entry in entries}


async def test_files_and_folders_are_kept_at_their_paths_with_a_manifest(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    await make(
        sandbox,
        "echo a > a; mkdir -p d/e /logs/artifacts; echo b > d/e/b; echo c > d/c.log; chmod 755 a;"
        " echo x > /logs/artifacts/x; mkdir hollow",
    )
    entries = await collected(
        sandbox,
        tmp_path,
        Artifact(source="a"),
        Artifact(source="/app/d", destination="given", exclude=("*.log",)),
        Artifact(source="/app/none"),
        Artifact(source="/app/hollow"),
        Artifact(source="/dev/null"),
    )
    assert statuses(entries) == {
        "/logs/artifacts": "ok",
        "a": "ok",
        "/app/d": "ok",
        "/app/none": "missing",
        "/app/hollow": "empty",
        "/dev/null": "failed",
    }
    kept = tmp_path / "kept"
    files = {str(p.relative_to(kept)) for p in kept.rglob("*") if p.is_file()}
    assert files == {"a", "given/e/b", "logs/artifacts/x", "manifest.json"}
    assert (kept / "a").read_text() == "a\n"
    assert os.access(kept / "a", os.X_OK)
    manifest = json.loads((kept / "manifest.json").read_bytes())
    assert [msgspec.convert(entry, Collected) for entry in manifest] == entries


async def test_without_anything_to_keep_there_is_no_folder(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    assert await collected(sandbox, tmp_path) == []
    assert not (tmp_path / "kept").exists()
    await make(sandbox, "mkdir -p /logs/artifacts")
    assert await collected(sandbox, tmp_path) == []
    assert not (tmp_path / "kept").exists()


async def test_hooks_run_first_and_one_that_fails_or_hangs_ends_nothing(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    hooks = (
        CollectHook(command="exit 7"),
        CollectHook(command="sleep 600", timeout_s=0.5),
        CollectHook(command="true", service="nowhere"),
        CollectHook(command="id -un > /tmp/who; pwd >> /tmp/who", user="nobody"),
    )
    entries = await collected(sandbox, tmp_path, Artifact(source="/tmp/who"), collect=hooks)
    assert statuses(entries) == {"/tmp/who": "ok"}
    assert (tmp_path / "kept/tmp/who").read_text() == "nobody\n/app\n"


async def test_what_is_too_large_is_refused_by_its_size(sandbox: Sandbox, tmp_path: Path) -> None:
    mb = (MAX_BYTES >> 20) + 1
    await make(sandbox, f"fallocate -l {mb}M big; truncate -s {mb}M sparse; echo s > small")
    entries = await collected(
        sandbox, tmp_path, *[Artifact(source=name) for name in ("big", "sparse", "small")]
    )
    assert statuses(entries) == {"big": "failed", "sparse": "failed", "small": "ok"}
    assert f"{mb} MB" in entries[0].detail


async def test_links_and_odd_files_do_not_travel(sandbox: Sandbox, tmp_path: Path) -> None:
    await make(
        sandbox,
        "mkdir d; cd d; ln -s /etc out; ln -s ../../.. up; mkfifo pipe; echo x > x; ln -s x good;"
        " ln x hard; touch \"$(printf 'caf\\351')\"; printf x > '-rf'; touch \"$(printf 'a\\nb')\"",
    )
    (entry,) = await collected(sandbox, tmp_path, Artifact(source="d"))
    assert entry.status == "ok"
    for name in ("out", "up", "pipe"):
        assert f"'./{name}'" in entry.detail or f"'{name}'" in entry.detail
    names = set(os.listdir(os.fsencode(tmp_path / "kept/d")))
    assert names == {b"x", b"good", b"hard", b"caf\xe9", b"-rf", b"a\nb"}


async def test_a_source_that_is_a_link_is_followed_in_the_sandbox(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    await make(sandbox, "mkdir d; echo x > d/x; ln -s d l; ln -s d/x f; ln -s nowhere dead")
    entries = await collected(
        sandbox, tmp_path, *[Artifact(source=name) for name in ("l", "f", "dead")]
    )
    assert statuses(entries) == {"l": "ok", "f": "ok", "dead": "missing"}
    assert (tmp_path / "kept/l/x").read_text() == (tmp_path / "kept/f").read_text() == "x\n"


async def test_an_earlier_try_leaves_nothing_in_the_folder(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "old").write_text("old")
    await make(sandbox, "echo a > a")
    await collected(sandbox, tmp_path, Artifact(source="a"))
    assert not (tmp_path / "kept" / "old").exists()


async def test_a_sandbox_without_its_tools_loses_its_artifacts_and_nothing_else(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    await make(sandbox, "echo a > a; mkdir d; rm -f /usr/bin/tar /usr/bin/du")
    entries = await collected(sandbox, tmp_path, Artifact(source="a"), Artifact(source="d"))
    assert statuses(entries) == {"a": "failed", "d": "failed"}
    assert "tar" in entries[0].detail


@pytest.mark.parametrize("size", ["²", "9" * 5000, "1 2", "-1", "x"])
async def test_tools_that_lie_about_sizes_cost_no_more_than_the_artifacts(
    sandbox: Sandbox, tmp_path: Path, size: str
) -> None:
    lie = f"#!/bin/sh\nprintf '%s\\tx\\n' '{size}'\n"
    await make(sandbox, f"echo a > a; printf '%s' {shlex.quote(lie)} > /usr/bin/du")
    entries = await collected(sandbox, tmp_path, Artifact(source="a"))
    assert {entry.status for entry in entries} <= {"ok", "failed", "missing"}


# --- places, pure ---------------------------------------------------------------------------


def test_of_two_artifacts_for_one_place_the_first_has_it() -> None:
    found = claims(
        [
            Artifact(source="/app"),
            Artifact(source="/app/out"),
            Artifact(source="/x", destination="app/y"),
            Artifact(source="/apple"),
        ]
    )
    assert [(c.destination, c.taken_by) for c in found] == [
        ("logs/artifacts", None),
        ("app", None),
        ("app/out", None),
        ("app/y", "/app"),
        ("apple", None),
    ]
    assert [c.part_of for c in found] == [None, None, "/app", None, None]


def test_no_source_names_a_place_outside() -> None:
    found = claims([Artifact(source=s) for s in ("/../../etc", "/", "./a/./b")], step="one")
    assert [c.destination for c in found] == [
        "steps/one/logs/artifacts",
        "steps/one/etc",
        "steps/one/root",
        "steps/one/a/b",
    ]


def test_an_entry_for_the_artifacts_of_the_logs_takes_the_place_of_the_usual_one() -> None:
    own = Artifact(source="/logs/artifacts/", exclude=("*.tmp",))
    found = claims([Artifact(source="a"), own])
    assert [c.artifact for c in found] == [own, Artifact(source="a")]
