"""Images of the namespace provider: stacks of folders, the base tree at the bottom.

Rule: an image is its layers and its configuration; a layer is named by what it was made from and
appears in the cache whole or not at all, so that the same step is never run twice. Building is in
`namespace_build.py`.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.aio import in_thread
from headrace.configs.models import ImagesConfig
from headrace.errors import ImageError, SandboxError, UsageError, boundary
from headrace.sandbox.build_turns import BuildTurns
from headrace.sandbox.image_layers import read_chain
from headrace.sandbox.images import lacks_of, name_of
from headrace.sandbox.leases import owner_of
from headrace.sandbox.namespace_build import build, remove_partial
from headrace.sandbox.namespace_buildah import Buildah
from headrace.sandbox.namespace_plan import Image, plan
from headrace.sandbox.rootfs import (
    BASE_IMAGE,
    archive_folder,
    base_folder,
    cache_folder,
    ensure_base,
    unpack_image,
)
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
        self._builder = config.builder
        self._buildah = Buildah(cache)
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
        if is_known(name):
            return await self._named(name)
        raise SandboxError(f"image {name}: `prepare` has not made it")

    async def prepare(self, recipe: EnvironmentRecipe) -> str:
        """Build or find the image of a recipe, once however many ask."""
        with boundary(ImageError, f"image of {recipe.dockerfile or recipe.image or BASE_IMAGE}"):
            return await self._prepare(recipe)

    async def _prepare(self, recipe: EnvironmentRecipe) -> str:
        if recipe.dockerfile is None:
            name = recipe.image or BASE_IMAGE
            await self._named(name)
            return name
        if recipe.image is not None and await in_thread(_is_there, recipe.image):
            await self._named(recipe.image)
            return recipe.image
        context = Path(recipe.context or Path(recipe.dockerfile).parent)
        try:
            if self._builder == "buildah":
                raise ImageError("images.builder = 'buildah'")
            steps = await in_thread(plan, Path(recipe.dockerfile), context)
        except ImageError as e:
            return await self._with_buildah(recipe, str(context), e)
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

    async def _with_buildah(
        self, recipe: EnvironmentRecipe, context: str, refused: ImageError
    ) -> str:
        """Build what our own builder refuses. Raises its refusal where buildah cannot either."""
        assert recipe.dockerfile is not None
        if self._builder == "own":
            raise refused
        chain = await in_thread(read_chain, recipe.dockerfile, context)
        lacks = lacks_of(chain, recipe)
        if lacks:
            raise ImageError("; ".join(lack.message for lack in lacks))
        reason = await self._buildah.lacks()
        if reason is not None:
            raise ImageError(f"{refused}; or let buildah build it: {reason}") from refused
        for base in chain.bases:
            if not is_known(base):
                await self._named(base)  # refuses it by name
                raise ImageError(f"{recipe.dockerfile}: buildah is not given image archives here")
        name = name_of(chain)
        async with self._locks.setdefault(name, asyncio.Lock()):
            if name in self._failed:
                raise ImageError(self._failed[name])
            if name not in self._known:
                tree = await ensure_base(self._progress, cache=self._cache)
                try:
                    async with self._turns.take((*chain.steps, name)):
                        self._known[name] = await self._buildah.build(
                            recipe, name, chain.bases, tree, self._progress
                        )
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
            if is_known(name):
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


def is_known(name: str) -> bool:
    """Whether the name stands for the base tree."""
    return name == BASE_IMAGE or name.removeprefix("docker.io/library/") in ALIASES


def _is_there(name: str) -> bool:
    return is_known(name) or Path(name).is_file()


def _of_archive(tree: Path, config: dict[str, Any]) -> Image:
    env = dict(setting.split("=", 1) for setting in config.get("Env", []) if "=" in setting)
    return Image(
        layers=(tree,),
        env=env,
        workdir=config.get("WorkingDir", "/"),
        user=config.get("User", ""),
        entrypoint=tuple(config.get("Entrypoint") or ()),
    )


def _sweep(cache: Path) -> list[str]:
    lines = []
    for partial in (*cache.glob("rootfs/*.partial-*"), *cache.glob("layers/.*-*")):
        builder = partial.name.rpartition("-")[2]
        if builder.isdigit() and owner_of(int(builder)) is None:
            remove_partial(partial)
            lines.append(f"half-made {partial} (its builder, process {builder}, is gone)")
    return lines


def layer_names(recipes: Sequence[EnvironmentRecipe], cache: Path) -> set[str]:
    """Names of the folders in the cache that the images of these recipes stand on. Blocking.

    A recipe that cannot be built here stands on none.
    """
    names: set[str] = set()
    for recipe in recipes:
        try:
            names |= _layer_names(recipe, cache)
        except ImageError:
            continue
    return names


def _layer_names(recipe: EnvironmentRecipe, cache: Path) -> set[str]:
    steps = None
    base = recipe.image or BASE_IMAGE
    if recipe.dockerfile is not None:
        context = Path(recipe.context or Path(recipe.dockerfile).parent)
        steps = plan(Path(recipe.dockerfile), context)
        base = steps.base
    tree = base_folder(cache) if is_known(base) else archive_folder(Path(base), cache=cache)
    keys = steps.keys(Image(layers=(tree,))) if steps is not None else ()
    return {tree.name, *keys}
