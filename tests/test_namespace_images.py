"""Images of the namespace provider: Dockerfiles built for real, layer by layer."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.configs.models import ImagesConfig
from headrace.errors import ImageError
from headrace.sandbox.base import SandboxSpec
from headrace.sandbox.namespace import NamespaceProvider
from headrace.sandbox.rootfs import BASE_IMAGE, ensure_base
from headrace.types import EnvironmentRecipe

pytestmark = pytest.mark.namespace


@pytest.fixture
async def lines() -> list[str]:
    return []


@pytest.fixture
async def provider(
    unavailable: dict[str, str | None], tmp_path: Path, lines: list[str]
) -> AsyncIterator[NamespaceProvider]:
    if unavailable["namespace"] is not None:
        pytest.skip(f"namespace: {unavailable['namespace']}")
    cache = tmp_path / "cache"
    (cache / "rootfs").mkdir(parents=True)
    base = await ensure_base()
    (cache / "rootfs" / base.name).symlink_to(base)
    own = ImagesConfig(builder="own")
    async with NamespaceProvider(cache=cache, progress=lines.append, images=own) as provider:
        yield provider


def recipe(folder: Path, dockerfile: str, **files: str) -> EnvironmentRecipe:
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(dockerfile)
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return EnvironmentRecipe(dockerfile=str(folder / "Dockerfile"), context=str(folder))


async def says(provider: NamespaceProvider, image: str, command: str) -> str:
    async with provider.open(SandboxSpec(image=image, episode="e")) as sandbox:
        result = await sandbox.run(command, timeout_s=20)
        assert result.stderr == b""
        return result.stdout.decode()


async def test_a_dockerfile_is_built_as_it_says(
    provider: NamespaceProvider, tmp_path: Path
) -> None:
    made = recipe(
        tmp_path / "t",
        """\
# a comment
ARG TAG=bookworm
FROM headrace/base:${TAG}
ARG WHO=world
ENV GREETING="hello $WHO" OTHER=1
WORKDIR /app/src
COPY src/ .
COPY --chmod=755 run.sh /usr/local/bin/
COPY --chown=nobody:nogroup one.txt two.txt /data/
RUN cat a.txt > made && \\
    # a comment inside
    echo "$GREETING from $WHO" >> made
RUN ["sh", "-c", "echo exec form > /exec"]
RUN rm /usr/bin/bc && mkdir /gone && rmdir /gone
LABEL x=y
EXPOSE 80
CMD ["bash"]
WORKDIR ..
""",
        src__a__txt="",
        run__sh="",
    )
    context = tmp_path / "t"
    (context / "src").mkdir(exist_ok=True)
    (context / "src" / "a.txt").write_text("from a\n")
    (context / "src" / ".hidden").write_text("hidden\n")
    (context / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (context / "one.txt").write_text("1")
    (context / "two.txt").write_text("2")
    image = await provider.prepare(made)
    command = (
        "pwd; cat src/made src/.hidden /exec; run.sh; stat -c %U:%G /data/one.txt;"
        " ls /usr/bin/bc 2>&1; echo $GREETING $OTHER; ls /etc/resolv.conf 2>&1"
    )
    assert await says(provider, image, command) == (
        "/app\nfrom a\nhello world from world\nhidden\nexec form\nran\nnobody:nogroup\n"
        "ls: cannot access '/usr/bin/bc': No such file or directory\nhello world 1\n"
        "ls: cannot access '/etc/resolv.conf': No such file or directory\n"
    )


async def test_the_same_step_runs_once(
    provider: NamespaceProvider, tmp_path: Path, lines: list[str]
) -> None:
    first = f"FROM {BASE_IMAGE}\nRUN head -c 8 /dev/urandom | od -An -tx1 > /token\n"
    one = await provider.prepare(recipe(tmp_path / "one", first))
    two = await provider.prepare(recipe(tmp_path / "two", first + "RUN true\n"))
    assert await says(provider, one, "cat /token") == await says(provider, two, "cat /token")
    assert len([line for line in lines if "RUN head" in line]) == 1


async def test_a_changed_file_gives_another_image(
    provider: NamespaceProvider, tmp_path: Path
) -> None:
    text = f"FROM {BASE_IMAGE}\nCOPY f /f\n"
    one = await provider.prepare(recipe(tmp_path / "one", text, f="1"))
    two = await provider.prepare(recipe(tmp_path / "two", text, f="2"))
    assert one != two
    assert await says(provider, one, "cat /f") == "1"
    assert await says(provider, two, "cat /f") == "2"


async def test_a_user_and_a_shell_are_kept(provider: NamespaceProvider, tmp_path: Path) -> None:
    text = (
        f'FROM {BASE_IMAGE}\nSHELL ["/bin/bash", "-c"]\nRUN [[ a == a ]] && useradd -m me\n'
        "USER me\nRUN id -un > ~/who\n"
    )
    image = await provider.prepare(recipe(tmp_path / "t", text))
    assert await says(provider, image, "id -un; cat ~/who; echo $HOME") == "me\nme\n/home/me\n"


async def test_a_file_copied_onto_a_folder_goes_into_it(
    provider: NamespaceProvider, tmp_path: Path
) -> None:
    text = f"FROM {BASE_IMAGE}\nCOPY f /srv\nCOPY f /new/name\n"
    image = await provider.prepare(recipe(tmp_path / "t", text, f="x"))
    assert await says(provider, image, "cat /srv/f /new/name") == "xx"


async def test_here_documents_run_as_buildkit_runs_them(
    provider: NamespaceProvider, tmp_path: Path
) -> None:
    text = (
        f"FROM {BASE_IMAGE}\nENV WHO=world\nRUN <<-EOF\n\techo hello $WHO > /one\n\tEOF\n"
        "RUN cat <<'EOF' > /two && echo end >> /two\nRUN $WHO\nEOF\n"
        "RUN <<EOF\n#!/usr/bin/env python3\nopen('/three', 'w').write('python\\n')\nEOF\n"
    )
    image = await provider.prepare(recipe(tmp_path / "t", text))
    said = await says(provider, image, "cat /one /two /three; ls /tmp")
    assert said == "hello world\nRUN $WHO\nend\npython\n"


async def test_what_is_ignored_is_not_copied(provider: NamespaceProvider, tmp_path: Path) -> None:
    made = recipe(tmp_path / "t", f"FROM {BASE_IMAGE}\nCOPY . /app\n", keep="k", secret="s")
    (tmp_path / "t" / ".dockerignore").write_text("secret\nDockerfile\n")
    assert await says(provider, await provider.prepare(made), "ls /app") == "keep\n"


async def test_a_step_that_fails_says_which_and_shows_its_output(
    provider: NamespaceProvider, tmp_path: Path
) -> None:
    made = recipe(
        tmp_path / "t", f"FROM {BASE_IMAGE}\nRUN true\nRUN echo so; echo why >&2; exit 3\n"
    )
    with pytest.raises(ImageError, match=r"(?s)line 3: RUN .* exit code 3.*so.*why"):
        await provider.prepare(made)
    with pytest.raises(ImageError, match="exit code 3"):
        await provider.prepare(made)
    assert not list((tmp_path / "cache" / "layers").glob(".*"))


async def test_a_build_that_takes_too_long_is_stopped(
    provider: NamespaceProvider, tmp_path: Path
) -> None:
    made = recipe(tmp_path / "t", f"FROM {BASE_IMAGE}\nRUN sleep 1000\n")
    slow = EnvironmentRecipe(dockerfile=made.dockerfile, context=made.context, build_timeout_s=1.0)
    with pytest.raises(ImageError, match="not built within 1 s"):
        await provider.prepare(slow)
    assert not list((tmp_path / "cache" / "layers").glob(".*"))


async def test_a_build_cancelled_as_its_layer_is_begun_leaves_nothing_half_made(
    provider: NamespaceProvider, tmp_path: Path
) -> None:
    builds: list[asyncio.Task[str]] = []
    cancelling = NamespaceProvider(
        cache=tmp_path / "cache",
        progress=lambda _line: builds[-1].cancel(),
        images=ImagesConfig(builder="own"),
    )
    async with cancelling:
        for number in range(100):
            made = recipe(
                tmp_path / f"t{number}", f"FROM {BASE_IMAGE}\nRUN sleep 1000 # {number}\n"
            )
            async with asyncio.TaskGroup() as group:
                builds.append(group.create_task(cancelling.prepare(made)))
    assert all(build.cancelled() for build in builds)
    assert not list((tmp_path / "cache" / "layers").glob(".*"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FROM ubuntu:24.04\n", r"ubuntu:24.04 is not known.*headrace/base:bookworm"),
        (f"FROM {BASE_IMAGE} AS a\nFROM {BASE_IMAGE}\n", "line 2: .*only one stage"),
        (f"FROM {BASE_IMAGE}\nCOPY <<EOF /x\n1\nEOF\n", "line 2: .*here-documents"),
        (f"FROM {BASE_IMAGE}\nRUN --mount=type=cache,target=/x true\n", "line 2: .*--mount"),
        (f"FROM {BASE_IMAGE}\nCOPY --from=x /a /b\n", "line 2: .*--from"),
        (f"FROM {BASE_IMAGE}\nADD https://example.org/x /x\n", "line 2: .*is remote"),
        (f"FROM {BASE_IMAGE}\n\nCOPY nope /x\n", "line 3: .*nope was expected"),
        (f"FROM {BASE_IMAGE}\nCOPY ../../etc/passwd /x\n", "line 2: .*was expected in the build"),
        (f"FROM {BASE_IMAGE}\nFLY away\n", "line 2: FLY away: this instruction"),
        ("RUN true\n", "line 1: .*FROM was expected first"),
        ("", "a FROM instruction was expected"),
        ("?!\n", "line 1: an instruction was expected"),
    ],
)
async def test_what_cannot_be_built_here_is_refused_before_anything_is_built(
    provider: NamespaceProvider, tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(ImageError, match=said):
        await provider.prepare(recipe(tmp_path / "t", text))
    assert not (tmp_path / "cache" / "layers").exists()


async def test_a_public_debian_is_taken_as_the_base_and_said_so_once(
    provider: NamespaceProvider, tmp_path: Path, lines: list[str]
) -> None:
    for _ in range(2):
        await provider.prepare(EnvironmentRecipe(image="debian:bookworm-slim"))
    assert [line for line in lines if "is taken to mean" in line] == [
        f"debian:bookworm-slim is taken to mean {BASE_IMAGE}"
    ]


async def test_half_made_layers_of_a_dead_builder_are_swept(
    provider: NamespaceProvider, tmp_path: Path
) -> None:
    dead = await asyncio.create_subprocess_exec("true")
    await dead.wait()
    left = tmp_path / "cache" / "layers" / f".abc-{dead.pid}"
    mine = tmp_path / "cache" / "layers" / f".def-{os.getpid()}"
    for folder in (left, mine):
        (folder / "work" / "work").mkdir(parents=True)
    lines = [line for line in await provider.sweep() if str(tmp_path) in line]
    assert len(lines) == 1 and str(left) in lines[0]
    assert mine.is_dir() and not left.exists()
