"""Images of the namespace provider: stacks of folders, the base tree at the bottom.

Rule: an image is its layers and its configuration; a layer is named by what it was made from and
appears in the cache whole or not at all, so that the same step is never run twice. Building is in
`namespace_build.py`.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.aio import in_thread
from headrace.configs.models import ImagesConfig
from headrace.errors import ImageError, SandboxError, UsageError, boundary
from headrace.sandbox.build_turns import BuildTurns
from headrace.sandbox.leases import owner_of
from headrace.sandbox.namespace_build import build, remove_partial
from headrace.sandbox.namespace_plan import Image, plan
from headrace.sandbox.rootfs import BASE_IMAGE, cache_folder, ensure_base, unpack_image
from headrace.types import EnvironmentRecipe

if TYPE_CHECKING:
    from headrace.sandbox.namespace import NamespaceProvider

__all__ = ["Image", "Images"]

ALIASES = (
    "debian:bookworm",
    "debian:bookworm-slim",
    "debian:12",
    "debian:12-slim",
    "debian:stable",
    "debian:stable-slim",
    "debian:latest",
)
"""Names of public images that stand for the base tree here: the same Debian, more packages."""


class Images:
    """What `prepare` has made, by the name it returned."""

    def __init__(
        self,
        *,
        cache: Path | None,
        progress: Callable[[str], None],
        build: "NamespaceProvider",
        config: ImagesConfig,
    ) -> None:
        if config.builder not in ("auto", "own", "buildah"):
            raise UsageError(
                f"images.builder = {config.builder!r} builds for the docker provider; with "
                "namespace it is one of 'auto', 'own', 'buildah'"
            )
        self._turns = BuildTurns(config.building)
        self._cache = cache
        self._progress = progress
        self._provider = build
        self._known: dict[str, Image] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._failed: dict[str, str] = {}
        self._noted: set[str] = set()

    def __len__(self) -> int:
        return len(self._known)

    async def get(self, name: str) -> Image:
        """The image of that name; the named base image needs no `prepare`."""
        image = self._known.get(name)
        if image is not None:
            return image
        if _is_known(name):
            return await self._named(name)
        raise SandboxError(f"image {name}: `prepare` has not made it")

    async def prepare(self, recipe: EnvironmentRecipe) -> str:
        """Build or find the image of a recipe, once however many ask."""
        with boundary(ImageError, f"image of {recipe.dockerfile or recipe.image or BASE_IMAGE}"):
            return await self._prepare(recipe)

    async def _prepare(self, recipe: EnvironmentRecipe) -> str:
        if recipe.image is not None or recipe.dockerfile is None:
            name = recipe.image or BASE_IMAGE
            await self._named(name)
            return name
        context = Path(recipe.context or Path(recipe.dockerfile).parent)
        steps = await in_thread(plan, Path(recipe.dockerfile), context)
        base = await self._named(steps.base)
        name = steps.name(base)
        async with self._locks.setdefault(name, asyncio.Lock()):
            if name in self._failed:
                raise ImageError(self._failed[name])
            if name not in self._known:
                try:
                    keys = steps.keys(base)
                    async with (
                        self._turns.take((*keys, name)) as turn,
                        asyncio.timeout(recipe.build_timeout_s),
                    ):
                        self._known[name] = await build(
                            steps, base, self._provider, self._folder(), self._progress, turn
                        )
                except TimeoutError:
                    self._failed[name] = (
                        f"{recipe.dockerfile}: not built within {recipe.build_timeout_s:.0f} s"
                    )
                    raise ImageError(self._failed[name]) from None
                except ImageError as e:
                    self._failed[name] = str(e)
                    raise
        return name

    async def sweep(self) -> list[str]:
        """Remove half-made trees and layers of builders that are gone; a line for each."""
        return await in_thread(_sweep, self._cache or cache_folder())

    async def _named(self, name: str) -> Image:
        async with self._locks.setdefault(f"named {name}", asyncio.Lock()):
            if name in self._known:
                return self._known[name]
            if _is_known(name):
                image = Image(layers=(await ensure_base(self._progress, cache=self._cache),))
                if name != BASE_IMAGE and name not in self._noted:
                    self._noted.add(name)
                    self._progress(f"{name} is taken to mean {BASE_IMAGE}")
            elif await in_thread(Path(name).is_file):
                image = _of_archive(*await unpack_image(Path(name), cache=self._cache))
            else:
                known = ", ".join((BASE_IMAGE, *ALIASES))
                raise ImageError(
                    f"image {name} is not known to the namespace provider, which has no registry;"
                    f" known are {known} and paths of image archives (docker save, docker export)."
                    " Use one of these in FROM, or the docker provider"
                )
            self._known[name] = image
            return image

    def _folder(self) -> Path:
        return (self._cache or cache_folder()) / "layers"


def _is_known(name: str) -> bool:
    return name == BASE_IMAGE or name.removeprefix("docker.io/library/") in ALIASES


def _of_archive(tree: Path, config: dict[str, Any]) -> Image:
    env = dict(setting.split("=", 1) for setting in config.get("Env", []) if "=" in setting)
    return Image(
        layers=(tree,),
        env=env,
        workdir=config.get("WorkingDir", "/"),
        user=config.get("User", ""),
    )


def _sweep(cache: Path) -> list[str]:
    lines = []
    for partial in (*cache.glob("rootfs/*.partial-*"), *cache.glob("layers/.*-*")):
        builder = partial.name.rpartition("-")[2]
        if builder.isdigit() and owner_of(int(builder)) is None:
            remove_partial(partial)
            lines.append(f"half-made {partial} (its builder, process {builder}, is gone)")
    return lines
