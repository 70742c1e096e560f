"""Images of the Docker engine: found, pulled, imported or built, once each.

Rule: an image that is made here is named after its content (`headrace/task:<digest>`), so it is
built once per engine, whoever asks and however often; builds that begin alike take turns, so that
what they share is made once. A failure is remembered for the life of the provider: the next
episode of the same task hears the same reason at once. Nothing is replaced by a similar image.
What needs BuildKit goes to `docker buildx`, and where there is none it is refused with a way out.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path

from headrace.aio import in_thread, run_shielded
from headrace.configs.models import ImagesConfig
from headrace.errors import ImageError, SandboxError, UsageError
from headrace.sandbox.build_turns import BuildTurns, Turn
from headrace.sandbox.docker_buildx import Buildx
from headrace.sandbox.docker_context import pack
from headrace.sandbox.docker_engine import EngineClient, post_lines, status_of
from headrace.sandbox.image_layers import Chain, read_chain
from headrace.sandbox.images import lacks_of, name_of
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
PULL_ANSWER_S = 20.0
"""How long the first word of a registry may take where there is a Dockerfile to fall back on."""
_STEP = re.compile(r"Step (\d+)/\d+ : ")
_UNREACHABLE = ("dial tcp", "no such host", "timeout", "refused", "no answer", "TLS", "EOF")

Progress = Callable[[str], None]
"""Called with one line about what is being made."""


class ImageFacts(Record, frozen=True, kw_only=True):
    """What a sandbox must know of its image."""

    user: str
    """Empty: root."""
    workdir: str
    labels: dict[str, str]
    entrypoint: tuple[str, ...] = ()


class Images:
    """Makes sure of images on one engine."""

    def __init__(
        self,
        engine: EngineClient,
        *,
        run_id: str,
        progress: Progress | None,
        config: ImagesConfig,
    ) -> None:
        _refuse_builder(config.builder)
        self._engine = engine
        self._run_id = run_id
        self._progress = progress or (lambda line: None)
        self._turns = BuildTurns(config.building)
        self._builder = config.builder
        self._buildx = Buildx(engine.socket)
        self._unreachable: dict[str, str] = {}
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
        if recipe.dockerfile is None:
            if recipe.image is None:
                raise ImageError(
                    "expected an image or a Dockerfile in the task's environment: neither"
                )
            await self._named(recipe.image, recipe.build_timeout_s)
            return recipe.image
        if recipe.image is not None and await self.find(recipe.image) is not None:
            return recipe.image
        context = recipe.context or str(Path(recipe.dockerfile).parent)
        chain = await in_thread(read_chain, recipe.dockerfile, context)
        name = name_of(chain)
        if await self.find(name) is not None:
            return name
        if recipe.image is not None and await self._pulled(recipe.image, recipe):
            return recipe.image
        await self._built(recipe, context, chain, name)
        return name

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
            entrypoint=tuple(config.get("Entrypoint") or ()),
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

    async def _pulled(self, name: str, recipe: EnvironmentRecipe) -> bool:
        """Whether an image could be had that is only the quicker way to what can be built."""
        registry = _registry(name)
        if registry in self._unreachable:
            return False
        try:
            await self._pull(name, recipe.build_timeout_s, answer_s=PULL_ANSWER_S)
        except ImageError as e:
            self._progress(f"{name} cannot be had, so {recipe.dockerfile} is built: {e}")
            if any(word in str(e) for word in _UNREACHABLE):
                self._unreachable[registry] = str(e)
            return False
        return True

    async def _pull(self, name: str, timeout_s: float, *, answer_s: float | None = None) -> None:
        async with self._turns.take([f"pull {name}"]):
            if await self.find(name) is None:
                await self._pull_now(name, timeout_s, timeout_s if answer_s is None else answer_s)

    async def _pull_now(self, name: str, timeout_s: float, answer_s: float) -> None:
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
                try:
                    async with asyncio.timeout(answer_s):
                        await anext(lines, None)
                except TimeoutError:
                    raise ImageError(f"{name}: no answer within {answer_s:g} s") from None
                async for _ in lines:
                    pass

    # --- built images ---

    async def _built(
        self, recipe: EnvironmentRecipe, context: str, chain: Chain, name: str
    ) -> None:
        lacks = lacks_of(chain, recipe)
        if lacks:
            raise ImageError("; ".join(lack.message for lack in lacks))
        buildx = await self._needs_buildx(recipe, context, chain, name)
        if BASE_IMAGE in chain.bases:  # else a pull would look for it, and fail
            await self.ensure(EnvironmentRecipe(image=BASE_IMAGE))
        async with self._turns.take((*chain.steps, name)) as turn:  # the name comes last
            if await self.find(name) is not None:  # another task of the same content was first
                return
            self._progress(f"building {name} from {recipe.dockerfile}")
            try:
                if buildx:
                    labels = {LABEL: chain.key, RUN_LABEL: self._run_id}
                    await self._buildx.build(recipe, context, name, labels, self._progress)
                else:
                    await self._build(recipe, context, chain, name, turn)
            except ImageError as e:
                if status_of(e) is not None:  # the engine says so: it is not for want of time
                    turn.failed(str(e))
                raise
            turn.made(name)

    async def _needs_buildx(
        self, recipe: EnvironmentRecipe, context: str, chain: Chain, name: str
    ) -> bool:
        """Whether `docker buildx` must build it. Raises `ImageError` where that cannot be."""
        if self._builder != "buildx" and not chain.buildkit:
            return False
        reason = "images.builder = 'classic'"
        if self._builder != "classic":
            found = await self._buildx.lacks()
            if found is None:
                return True
            reason = found
        if self._builder == "buildx" and not chain.buildkit:
            raise ImageError(f"could not build {recipe.dockerfile}: {reason}")
        raise ImageError(
            f"could not build {recipe.dockerfile}: it uses {', '.join(chain.buildkit)}, which "
            f"needs BuildKit; the engine's classic builder has none, and {reason}. Build it once "
            f"with `docker buildx build --load -t {name} -f {recipe.dockerfile} {context}`, or "
            "write it without"
        )

    async def _build(
        self, recipe: EnvironmentRecipe, context: str, chain: Chain, name: str, turn: Turn
    ) -> None:
        assert recipe.dockerfile is not None
        log = LogTail()
        with await in_thread(pack, context, recipe.dockerfile) as packed:
            async with self._engine.call(
                f"could not build {recipe.dockerfile}",
                timeout_s=recipe.build_timeout_s,
                error=ImageError,
                describe=lambda found: _build_failure(found, log, chain.bases),
            ) as docker:
                params = {
                    "t": name,
                    "dockerfile": packed.dockerfile,
                    "rm": "1",
                    "forcerm": "1",
                    "labels": json.dumps({LABEL: chain.key, RUN_LABEL: self._run_id}),
                }
                body = _pieces(iter(partial(packed.tar.read, CHUNK_BYTES), b""))
                answer = post_lines(docker, "build", params=params, data=body)
                async with aclosing(answer) as lines:
                    async for line in lines:
                        said = line.get("stream", "")
                        log.add(said)
                        if begun := _STEP.match(said):
                            _tell_made(turn, chain, int(begun[1]) - 1)


def _refuse_builder(builder: str) -> None:
    if builder not in ("auto", "classic", "buildx"):
        raise UsageError(
            f"images.builder = {builder!r} builds for the namespace provider; with docker it is "
            "one of 'auto', 'classic', 'buildx'"
        )


def _tell_made(turn: Turn, chain: Chain, steps: int) -> None:
    """The builder begins the step after these: they are in its cache."""
    if 0 < steps <= len(chain.steps):
        turn.made(chain.steps[steps - 1])


class LogTail:
    """The end of a build's log."""

    def __init__(self) -> None:
        self._text = ""

    def add(self, text: str) -> None:
        self._text = (self._text + text)[-LOG_TAIL_BYTES:]

    def __str__(self) -> str:
        return self._text.strip()


def _key(recipe: EnvironmentRecipe) -> tuple[str, ...]:
    if recipe.dockerfile is None:
        return ("ready", recipe.image or "")
    return (recipe.image or "", recipe.dockerfile, recipe.context or "")


def _registry(name: str) -> str:
    """The host an image comes from."""
    host, slash, _ = name.partition("/")
    return host if slash and (host == "localhost" or "." in host or ":" in host) else "docker.io"


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


def _build_failure(found: str, log: LogTail, bases: Sequence[str]) -> str:
    """What went wrong in a build, with the end of its log and, where there is one, a way out."""
    parts = [found.strip()]
    if "pull access denied" in found or "manifest" in found or "dial tcp" in found:
        parts.append(
            f"Its base ({', '.join(bases)}) is not on this engine and could not be pulled. "
            f"Bring it here with `docker load`, or start from {BASE_IMAGE}"
        )
    tail = str(log)
    if tail:
        parts.append(f"The end of the build's log:\n{tail}")
    return ". ".join(parts)
