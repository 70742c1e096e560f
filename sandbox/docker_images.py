"""Images of the Docker engine: found, pulled, imported or built, once each.

Rule: an image that is made here is named after its content (`headrace/task:<digest>`), so it is
built once per engine, whoever asks and however often. A failure is remembered for the life of the
provider: the next episode of the same task hears the same reason at once. Nothing is replaced
by a similar image. The classic builder is used; what needs BuildKit is refused with a way out.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path

from headrace.aio import in_thread, run_shielded
from headrace.errors import ImageError, SandboxError
from headrace.sandbox.docker_context import Context, inspect, pack
from headrace.sandbox.docker_engine import EngineClient, post_lines, status_of
from headrace.sandbox.rootfs import BASE_IMAGE, base_folder, base_tar, ensure_base
from headrace.types import EnvironmentRecipe, Record

LABEL = "dev.headrace.image"
"""On every image made here. Images outlive runs, so no sweep removes them."""
RUN_LABEL = "dev.headrace.image.run"
BASE_LABEL = "dev.headrace.image.base"
"""On the base image: which root filesystem it was imported from."""
LOG_TAIL_BYTES = 4000
CHUNK_BYTES = 1 << 20
INSPECT_S = 30.0
IMPORT_S = 600.0

Progress = Callable[[str], None]
"""Called with one line about what is being made."""


class ImageFacts(Record, frozen=True, kw_only=True):
    """What a sandbox must know of its image."""

    user: str
    """Empty: root."""
    workdir: str
    labels: dict[str, str]


class Images:
    """Makes sure of images on one engine."""

    def __init__(self, engine: EngineClient, *, run_id: str, progress: Progress | None) -> None:
        self._engine = engine
        self._run_id = run_id
        self._progress = progress or (lambda line: None)
        self._names: dict[tuple[str, ...], str] = {}
        self._failures: dict[tuple[str, ...], str] = {}
        self._facts: dict[str, ImageFacts] = {}
        self._locks: dict[tuple[str, ...], asyncio.Lock] = {}

    async def ensure(self, recipe: EnvironmentRecipe) -> str:
        """The name of the image of `recipe`, made if need be. Raises `ImageError`."""
        key = _key(recipe)
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key in self._failures:
                raise ImageError(self._failures[key])
            if key not in self._names:
                try:
                    self._names[key] = await self._make(recipe)
                except ImageError as e:
                    self._failures[key] = str(e)
                    raise
            return self._names[key]

    async def _make(self, recipe: EnvironmentRecipe) -> str:
        if recipe.image is not None:
            await self._named(recipe.image, recipe.build_timeout_s)
            return recipe.image
        if recipe.dockerfile is None:
            raise ImageError("expected an image or a Dockerfile in the task's environment: neither")
        context = recipe.context or str(Path(recipe.dockerfile).parent)
        with await in_thread(pack, context, recipe.dockerfile) as packed:
            return await self._built(recipe, packed)

    # --- named images ---

    async def facts(self, name: str) -> "ImageFacts":
        """What a sandbox must know of an image that is there. Raises `ImageError` if it is not."""
        found = self._facts.get(name) or await self.find(name)
        if found is None:
            raise ImageError(
                f"expected the image {name} on the engine, found none: `prepare` makes it"
            )
        self._facts[name] = found
        return found

    async def find(self, name: str) -> "ImageFacts | None":
        """An image as it is on the engine now, None if it is not there."""
        try:
            async with self._engine.call(f"inspect image {name}", timeout_s=INSPECT_S) as docker:
                config = (await docker.images.inspect(name))["Config"] or {}
        except SandboxError as e:
            if status_of(e) == 404:
                return None
            raise
        return ImageFacts(
            user=config.get("User") or "",
            workdir=config.get("WorkingDir") or "/",
            labels=dict(config.get("Labels") or {}),
        )

    async def _named(self, name: str, timeout_s: float) -> None:
        found = await self.find(name)
        if name == BASE_IMAGE:
            if found is None or found.labels.get(BASE_LABEL) != base_folder().name:
                await self._import_base()
        elif found is None:
            await self._pull(name, timeout_s)

    async def _import_base(self) -> None:
        folder = await ensure_base(self._progress)
        self._progress(f"importing {BASE_IMAGE} into the engine")
        repository, _, tag = BASE_IMAGE.rpartition(":")
        params = {
            "fromSrc": "-",
            "repo": repository,
            "tag": tag,
            "changes": f"LABEL {LABEL}={folder.name} {BASE_LABEL}={folder.name}",
        }
        async with (
            self._engine.call(
                f"import {BASE_IMAGE}", timeout_s=IMPORT_S, error=ImageError
            ) as docker,
            aclosing(_pieces(base_tar(folder))) as tar,
            aclosing(post_lines(docker, "images/create", params=params, data=tar)) as lines,
        ):
            async for _ in lines:
                pass

    async def _pull(self, name: str, timeout_s: float) -> None:
        self._progress(f"pulling {name}")
        async with self._engine.call(
            f"image {name} is not on this engine and could not be pulled",
            timeout_s=timeout_s,
            error=ImageError,
            describe=lambda found: (
                f"{found.strip()}. Check the name and the network, or bring the image here with "
                f"`docker load` or `docker build -t {name} ...`"
            ),
        ) as docker:
            params = {"fromImage": name} if _has_tag(name) else {"fromImage": name, "tag": "latest"}
            async with aclosing(post_lines(docker, "images/create", params=params)) as lines:
                async for _ in lines:
                    pass

    # --- built images ---

    async def _built(self, recipe: EnvironmentRecipe, packed: Context) -> str:
        assert recipe.dockerfile is not None
        text = await in_thread(_read, recipe.dockerfile)
        digest = packed.digest
        if BASE_IMAGE in inspect(text).bases:  # else a pull would look for it, and fail
            await self.ensure(EnvironmentRecipe(image=BASE_IMAGE))
            digest = hashlib.sha256(f"{digest} {base_folder().name}".encode()).hexdigest()
        name = f"headrace/task:{digest[:24]}"
        # Two tasks may have the same content; two builds at once would leave one without a name.
        async with self._locks.setdefault(("content", name), asyncio.Lock()):
            if await self.find(name) is None:
                await self._build(recipe, packed, text, name, digest)
        return name

    async def _build(
        self, recipe: EnvironmentRecipe, packed: Context, text: str, name: str, digest: str
    ) -> None:
        self._progress(f"building {name} from {recipe.dockerfile}")
        log = LogTail()
        async with self._engine.call(
            f"could not build {recipe.dockerfile}",
            timeout_s=recipe.build_timeout_s,
            error=ImageError,
            describe=lambda found: _build_failure(found, log, text, name, recipe),
        ) as docker:
            params = {
                "t": name,
                "dockerfile": packed.dockerfile,
                "rm": "1",
                "forcerm": "1",
                "labels": json.dumps({LABEL: digest, RUN_LABEL: self._run_id}),
            }
            body = _pieces(iter(partial(packed.tar.read, CHUNK_BYTES), b""))
            answer = post_lines(docker, "build", params=params, data=body)
            async with aclosing(answer) as lines:
                async for line in lines:
                    log.add(line.get("stream", ""))


class LogTail:
    """The end of a build's log."""

    def __init__(self) -> None:
        self._text = ""

    def add(self, text: str) -> None:
        self._text = (self._text + text)[-LOG_TAIL_BYTES:]

    def __str__(self) -> str:
        return self._text.strip()


def _key(recipe: EnvironmentRecipe) -> tuple[str, ...]:
    if recipe.image is not None:
        return ("image", recipe.image)
    return ("build", recipe.dockerfile or "", recipe.context or "")


def _has_tag(name: str) -> bool:
    return "@" in name or ":" in name.rpartition("/")[2]


async def _pieces(source: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    """A body from a blocking source, read in threads."""
    try:
        # Shielded: a generator that still runs in its thread cannot be closed.
        while piece := await run_shielded(in_thread(next, source, b"")):
            yield piece
    finally:
        if isinstance(source, Generator):
            await run_shielded(in_thread(source.close))


def _read(path: str) -> str:
    return Path(path).read_text(errors="replace")


def _build_failure(
    found: str, log: LogTail, dockerfile: str, name: str, recipe: EnvironmentRecipe
) -> str:
    """What went wrong in a build, with the end of its log and, where there is one, a way out."""
    seen = inspect(dockerfile)
    parts = [found.strip()]
    if seen.buildkit:
        parts.append(
            f"The Dockerfile uses {', '.join(seen.buildkit)}, which needs BuildKit; the engine's "
            f"classic builder has none. Build it once with `docker buildx build --load -t {name} "
            f"-f {recipe.dockerfile} {recipe.context}`, or write it without"
        )
    elif "pull access denied" in found or "manifest" in found or "dial tcp" in found:
        parts.append(
            f"Its base ({', '.join(seen.bases)}) is not on this engine and could not be pulled. "
            f"Bring it here with `docker load`, or start from {BASE_IMAGE}"
        )
    tail = str(log)
    if tail:
        parts.append(f"The end of the build's log:\n{tail}")
    return ". ".join(parts[:-1] + [parts[-1]]) if len(parts) > 1 else parts[0]
