"""Images built for real: shared heads once, failures for their task alone, removal."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiodocker
import pytest

from headrace.configs.models import ImagesConfig, NoopConfig, RunConfig, SandboxConfig, TasksConfig
from headrace.engine import runner
from headrace.engine.events import EpisodeFinished, Event, Preparing
from headrace.engine.reader import latest_episodes
from headrace.errors import ImageError, SandboxError
from headrace.sandbox.base import Provider, SandboxSpec
from headrace.sandbox.docker import DockerProvider, socket_path
from headrace.sandbox.docker_buildx import Buildx, build_command
from headrace.sandbox.image_stock import (
    docker_stock,
    namespace_stock,
    prune_docker,
    prune_namespace,
)
from headrace.sandbox.namespace import NamespaceProvider
from headrace.sandbox.rootfs import BASE_IMAGE, ensure_base
from headrace.types import EnvironmentRecipe, VerdictFault


def recipe(folder: Path, dockerfile: str, **changes: object) -> EnvironmentRecipe:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Dockerfile").write_text(dockerfile)
    paths = {"dockerfile": str(folder / "Dockerfile"), "context": str(folder)}
    return EnvironmentRecipe(**{**paths, **changes})  # type: ignore[arg-type]


def unique() -> str:
    """Makes a Dockerfile unlike that of any earlier run."""
    return f"{os.getpid()}-{time.time_ns()}"


@asynccontextmanager
async def opened(name: str, cache: Path, lines: list[str]) -> AsyncIterator[Provider]:
    """A provider that builds with a cache of its own, as far as it has one."""
    images = ImagesConfig(building=4)
    if name == "docker":
        async with DockerProvider(progress=lines.append, images=images) as docker:
            yield docker
        return
    (cache / "rootfs").mkdir(parents=True)
    base = await ensure_base()
    (cache / "rootfs" / base.name).symlink_to(base)
    async with NamespaceProvider(cache=cache, progress=lines.append, images=images) as spaces:
        yield spaces


@pytest.fixture(autouse=True)
async def images_to_remove(unavailable: dict[str, str | None]) -> AsyncIterator[list[str]]:
    names: list[str] = []
    yield names
    if unavailable["docker"] is None and names:
        async with aiodocker.Docker(url=f"unix://{socket_path()}") as docker:
            for name in names:
                if name.startswith("headrace/task:"):
                    await docker.images.delete(name, force=True)


async def prepared(provider: Provider, *recipes: EnvironmentRecipe) -> list[str]:
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(provider.prepare(one)) for one in recipes]
    return [task.result() for task in asked]


async def says(provider: Provider, image: str, command: str) -> str:
    async with provider.open(SandboxSpec(image=image, episode="images")) as sandbox:
        return (await sandbox.exec(command, timeout_s=20)).stdout.decode()


async def test_builds_that_begin_alike_make_the_common_head_once(
    provider: str, tmp_path: Path, images_to_remove: list[str]
) -> None:
    head = (
        f"FROM {BASE_IMAGE}\nENV RUN={unique()}\n"
        "RUN sleep 1; head -c 8 /dev/urandom | od -An -tx1 > /token\n"
    )
    recipes = [recipe(tmp_path / str(i), head + f"RUN echo {i} > /own\n") for i in range(3)]
    async with opened(provider, tmp_path / "cache", []) as opened_provider:
        names = await prepared(opened_provider, *recipes)
        images_to_remove += names
        assert len(set(names)) == 3
        own = [await says(opened_provider, name, "cat /own /token") for name in names]
    assert [text.split("\n", 1)[0] for text in own] == ["0", "1", "2"]
    assert len({text.split("\n", 1)[1] for text in own}) == 1


async def test_an_image_that_cannot_be_had_is_built_from_its_dockerfile_and_said_so(
    provider: str, tmp_path: Path, images_to_remove: list[str]
) -> None:
    text = f"FROM {BASE_IMAGE}\nENV RUN={unique()}\nRUN echo built > /how\n"
    made = recipe(tmp_path / "t", text, image="localhost:9/nowhere:1")
    lines: list[str] = []
    async with opened(provider, tmp_path / "cache", lines) as opened_provider:
        (name,) = await prepared(opened_provider, made)
        images_to_remove.append(name)
        assert await says(opened_provider, name, "cat /how") == "built\n"
    if provider == "docker":
        assert any("localhost:9/nowhere:1 cannot be had" in line for line in lines)


async def test_an_image_that_is_there_is_taken_in_place_of_the_dockerfile(
    provider: str, tmp_path: Path
) -> None:
    made = recipe(tmp_path / "t", f"FROM {BASE_IMAGE}\nRUN exit 1\n", image=BASE_IMAGE)
    async with opened(provider, tmp_path / "cache", []) as opened_provider:
        assert await opened_provider.prepare(made) == BASE_IMAGE


async def test_a_missing_source_is_said_before_anything_is_built(
    provider: str, tmp_path: Path
) -> None:
    lines: list[str] = []
    made = recipe(tmp_path / "t", f"FROM {BASE_IMAGE}\nRUN true\nCOPY gone /x\n")
    async with opened(provider, tmp_path / "cache", lines) as opened_provider:
        with pytest.raises(ImageError, match="line 3: .*gone"):
            await opened_provider.prepare(made)
    assert not [line for line in lines if "RUN" in line or line.startswith("building")]


# --- through the runner ---


def write_task(folder: Path, dockerfile: str) -> None:
    for name in ("environment", "tests"):
        (folder / name).mkdir(parents=True)
    (folder / "task.toml").write_text('version = "1.0"\n')
    (folder / "instruction.md").write_text("Do nothing.\n")
    (folder / "environment" / "Dockerfile").write_text(dockerfile)
    (folder / "tests" / "test.sh").write_text("#!/bin/sh\ncp /reward /logs/verifier/reward.txt\n")


@pytest.mark.timeout(120)
async def test_a_failed_build_is_the_verdict_of_its_task_and_holds_up_no_other(
    provider: str, tmp_path: Path, images_to_remove: list[str]
) -> None:
    token = unique()
    tasks = tmp_path / "tasks"
    write_task(tasks / "bad", f"FROM {BASE_IMAGE}\nRUN echo {token} seen; exit 4\n")
    write_task(tasks / "slow", f"FROM {BASE_IMAGE}\nRUN sleep 3; echo 1 >/reward; : {token}\n")
    write_task(tasks / "quick", f"FROM {BASE_IMAGE}\nRUN echo 1 > /reward; : {token}\n")
    config = RunConfig.model_validate(
        {
            "policy": NoopConfig(),
            "tasks": TasksConfig(source=str(tasks)),
            "sandbox": SandboxConfig.model_validate({"provider": provider}),
            "images": ImagesConfig(building=3),
        }
    )
    seen: list[Event] = []
    await runner.run(config, tmp_path / "run", on_event=seen.append)
    found = {episode.task: episode.verdict for episode in latest_episodes(tmp_path / "run")}
    assert [found[name].reward for name in ("quick", "slow", "bad")] == [1.0, 1.0, None]
    assert found["bad"].fault is VerdictFault.INFRASTRUCTURE
    assert f"{token} seen" in (found["bad"].reason or "")
    finished = [event.task for event in seen if isinstance(event, EpisodeFinished)]
    assert finished.index("quick") < finished.index("slow")
    last = next(e for e in reversed(seen) if isinstance(e, Preparing) and e.fraction == 1.0)
    quick = next(e for e in seen if isinstance(e, EpisodeFinished) and e.task == "quick")
    assert seen.index(quick) < seen.index(last)  # it did not wait for the slow image
    if provider == "docker":
        stock = await docker_stock()
        async with aiodocker.Docker(url=f"unix://{socket_path()}") as docker:
            for one in stock.items:
                history = str(await docker.images.history(one.name))
                images_to_remove += [one.name] * (token in history)


# --- removal ---


class AllBut(Collection[str]):
    """Every name but a few: what a test on a shared engine may not touch."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def __contains__(self, name: object) -> bool:
        return name not in self._names

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError


@pytest.mark.docker
async def test_pruning_removes_ours_and_no_foreign_image_and_none_in_use(
    unavailable: dict[str, str | None], tmp_path: Path
) -> None:
    if unavailable["docker"] is not None:
        pytest.skip(f"docker: {unavailable['docker']}")
    text = f"FROM {BASE_IMAGE}\nENV RUN={unique()}\nRUN head -c 100000 /dev/zero > /zeros\n"
    foreign = f"foreign/image:{unique()}"
    async with DockerProvider() as provider:
        ours = await provider.prepare(recipe(tmp_path / "ours", text))
        async with aiodocker.Docker(url=f"unix://{socket_path()}") as docker:
            body = {"Image": BASE_IMAGE, "Cmd": ["true"]}
            container = await docker.containers.create(body)
            repository, _, tag = foreign.partition(":")
            await container.commit(repository=repository, tag=tag)  # with the base's labels
            await container.delete()
            try:
                gone = AllBut(ours)
                names = {one.name for one in (await docker_stock()).items}
                assert ours in names and foreign not in names
                assert (await prune_docker(gone, dry_run=True)).removed == (ours,)
                async with provider.open(SandboxSpec(image=ours, episode="prune")):
                    used = await prune_docker(gone)
                    assert (used.removed, used.kept) == ((), (f"{ours}: in use",))
                done = await prune_docker(gone)
                assert done.removed == (ours,)
                assert ours not in {one.name for one in (await docker_stock()).items}
                assert (await docker.images.inspect(foreign))["RepoTags"] == [foreign]
            finally:
                await docker.images.delete(foreign, force=True)


@pytest.mark.namespace
async def test_pruning_the_cache_keeps_the_layers_of_the_tasks_named(
    unavailable: dict[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if unavailable["namespace"] is not None:
        pytest.skip(f"namespace: {unavailable['namespace']}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # leases of others do not count here
    cache = tmp_path / "cache"
    head = f"FROM {BASE_IMAGE}\nRUN head -c 100000 /dev/zero > /zeros\n"
    kept = recipe(tmp_path / "kept", head + "RUN echo kept > /own\n")
    gone = recipe(tmp_path / "gone", head + "RUN echo gone > /own\n")
    async with opened("namespace", cache, []) as provider:
        name, _ = await prepared(provider, kept, gone)
        assert len((await namespace_stock(cache)).items) == 3
        planned = await prune_namespace([kept], names=(), cache=cache, dry_run=True)
        assert len(planned.removed) == 1
        assert len((await namespace_stock(cache)).items) == 3
        async with provider.open(SandboxSpec(image=name, episode="live")):
            with pytest.raises(SandboxError, match="no live sandbox.*found 1"):
                await prune_namespace([kept], names=(), cache=cache)
        done = await prune_namespace([kept], names=(), cache=cache)
        assert done.removed == planned.removed
        assert done.after_bytes < done.before_bytes
        assert await says(provider, name, "cat /own") == "kept\n"
    everything = await prune_namespace([], names=(), cache=cache)
    assert len(everything.removed) == 2
    assert (await namespace_stock(cache)).items == ()


# --- docker buildx ---


def program(folder: Path, script: str) -> str:
    """A command line in the place of docker's."""
    path = folder / "docker"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


async def test_a_docker_without_buildx_is_said_once_and_why(tmp_path: Path) -> None:
    log = tmp_path / "log"
    said = program(tmp_path, f"echo asked >> {log}; echo no such command: buildx >&2; exit 1")
    buildx = Buildx("/nowhere", program=said)
    assert await buildx.lacks() == ("`docker buildx` is not installed (no such command: buildx)")
    await buildx.lacks()
    assert log.read_text() == "asked\n"
    nothing = await Buildx("/nowhere", program="docker-is-not-here").lacks()
    assert nothing is not None and "no docker command line" in nothing


async def test_buildx_is_asked_for_one_image_loaded_into_the_providers_engine(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    buildx = Buildx("/engine.sock", program=program(tmp_path, f'echo "$DOCKER_HOST $@" > {log}'))
    made = recipe(tmp_path / "t", "FROM a\n")
    assert await buildx.lacks() is None
    await buildx.build(made, str(tmp_path / "t"), "name:1", {"b": "2", "a": "1"}, lambda _: None)
    assert log.read_text().split() == [
        "unix:///engine.sock",
        *("buildx", "build", "--load", "--progress=plain", "--tag=name:1"),
        *(f"--file={made.dockerfile}", "--label=a=1", "--label=b=2", str(tmp_path / "t")),
    ]
    assert build_command("f", "c", "n", {})[-1] == "c"


async def test_a_failed_or_endless_buildx_is_an_image_error_with_the_logs_end(
    tmp_path: Path,
) -> None:
    failing = Buildx("/s", program=program(tmp_path, "echo step one; echo it broke >&2; exit 7"))
    made = recipe(tmp_path / "t", "FROM a\n", build_timeout_s=0.3)
    with pytest.raises(ImageError, match=r"(?s)exit code 7.*step one\nit broke"):
        await failing.build(made, str(tmp_path), "n", {}, lambda _: None)
    (tmp_path / "slow").mkdir()
    endless = Buildx("/s", program=program(tmp_path / "slow", "echo begun; sleep 1000 & wait"))
    with pytest.raises(ImageError, match=r"(?s)not done within 0.3 s.*begun"):
        await endless.build(made, str(tmp_path), "n", {}, lambda _: None)
