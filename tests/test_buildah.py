"""Dockerfiles that only buildah understands, on the namespace provider."""

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.configs.models import ImagesConfig
from headrace.errors import ImageError
from headrace.sandbox.base import SandboxSpec
from headrace.sandbox.namespace import NamespaceProvider
from headrace.sandbox.namespace_buildah import Buildah
from headrace.sandbox.rootfs import BASE_IMAGE
from headrace.types import EnvironmentRecipe

SEVERAL_STAGES = f"""\
FROM {BASE_IMAGE} AS build
RUN echo made > /made
FROM debian:12
COPY --from=build /made /got
RUN rm /usr/bin/bc && rm -rf /usr/share/zoneinfo && mkdir /usr/share/zoneinfo
RUN useradd -m me
WORKDIR /work
USER me
ENV GREETING=hello
ENTRYPOINT ["sh", "-c", "echo $GREETING entry >/tmp/entry"]
"""


def recipe(folder: Path, dockerfile: str) -> EnvironmentRecipe:
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(dockerfile)
    return EnvironmentRecipe(dockerfile=str(folder / "Dockerfile"), context=str(folder))


@pytest.fixture
async def lines() -> list[str]:
    return []


@pytest.fixture
async def provider(
    unavailable: dict[str, str | None], lines: list[str]
) -> AsyncIterator[NamespaceProvider]:
    if unavailable["namespace"] is not None:
        pytest.skip(f"namespace: {unavailable['namespace']}")
    async with NamespaceProvider(progress=lines.append) as provider:
        yield provider


@pytest.fixture
async def buildah() -> AsyncIterator[Buildah]:
    """In the user's cache, so that the base is imported once per machine."""
    found = Buildah(None)
    lacks = await found.lacks()
    if lacks is not None:
        pytest.skip(lacks)
    before = await found.names()
    yield found
    for name in await found.names() - before:
        await found.remove(name)


async def says(provider: NamespaceProvider, image: str, command: str) -> str:
    async with provider.open(SandboxSpec(image=image, episode="e")) as sandbox:
        return (await sandbox.run(command, timeout_s=20)).stdout.decode()


@pytest.mark.namespace
@pytest.mark.timeout(180)
async def test_buildah_builds_what_our_own_builder_refuses(
    provider: NamespaceProvider, buildah: Buildah, tmp_path: Path, lines: list[str]
) -> None:
    token = f"LABEL token={os.getpid()}-{time.time_ns()}\n"
    image = await provider.prepare(recipe(tmp_path / "one", SEVERAL_STAGES + token))
    assert await provider.prepare(recipe(tmp_path / "two", SEVERAL_STAGES + token)) == image
    assert image in await buildah.names()
    said = await says(
        provider,
        image,
        "pwd; id -un; echo $GREETING; cat /got; ls /usr/bin/bc /made 2>&1; ls /usr/share/zoneinfo; "
        "until [ -s /tmp/entry ]; do sleep 0.05; done; cat /tmp/entry",
    )
    assert said.splitlines() == [
        "/work",
        "me",
        "hello",
        "made",
        "ls: cannot access '/usr/bin/bc': No such file or directory",
        "ls: cannot access '/made': No such file or directory",
        "hello entry",
    ]
    assert sum("buildah builds it" in line for line in lines) == 1

    cached = f"FROM {BASE_IMAGE}\nRUN --mount=type=cache,target=/c echo x > /c/x\n"
    with_cache = await provider.prepare(recipe(tmp_path / "three", cached))
    assert await says(provider, with_cache, "ls /c") == ""

    failing = f"FROM {BASE_IMAGE} AS a\nFROM a\nRUN echo why; exit 3\n"
    with pytest.raises(ImageError, match=r"(?s)buildah could not build .*Dockerfile.*why"):
        await provider.prepare(recipe(tmp_path / "four", failing))

    missing = f"FROM {BASE_IMAGE} AS a\nFROM a\nCOPY gone /x\n"
    with pytest.raises(ImageError, match="line 3: expected gone"):
        await provider.prepare(recipe(tmp_path / "five", missing))


@pytest.mark.namespace
async def test_our_own_builder_alone_refuses_it(
    unavailable: dict[str, str | None], tmp_path: Path
) -> None:
    if unavailable["namespace"] is not None:
        pytest.skip(f"namespace: {unavailable['namespace']}")
    async with NamespaceProvider(images=ImagesConfig(builder="own")) as provider:
        with pytest.raises(ImageError, match="only one stage is understood"):
            await provider.prepare(recipe(tmp_path / "t", SEVERAL_STAGES))


async def test_without_buildah_the_reason_says_how_to_get_it(tmp_path: Path) -> None:
    lacks = await Buildah(tmp_path, program="buildah-is-not-here").lacks()
    assert lacks == "buildah was not found (apt-get install buildah)"
