"""Images that were made here and are still there: what they are, what they use, and their removal.

Rule: only what has our label and our name on the engine, or lies in our own cache, is ever
removed, and nothing a container or a live sandbox uses. The base image stays: everything stands
on it. What a build of the engine left without a name is the engine's own to prune.
"""

import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from headrace.aio import in_thread
from headrace.errors import SandboxError
from headrace.sandbox import leases
from headrace.sandbox.docker_engine import EngineClient, socket_path, status_of
from headrace.sandbox.docker_images import LABEL
from headrace.sandbox.images import REPOSITORY
from headrace.sandbox.namespace_buildah import Buildah
from headrace.sandbox.namespace_images import layer_names
from headrace.sandbox.rootfs import BASE_IMAGE, cache_folder
from headrace.types import EnvironmentRecipe, Record

LIST_S = 60.0
REMOVE_S = 300.0
_OURS = (f"{REPOSITORY}:", BASE_IMAGE)


class Stored(Record, frozen=True, kw_only=True):
    """One image on the engine, or one layer of the cache."""

    name: str
    size_bytes: int
    """Layers that it shares with others included."""
    base: bool = False


class Stock(Record, frozen=True, kw_only=True):
    """What is there."""

    items: tuple[Stored, ...]
    used_bytes: int
    """By all layers, shared ones counted once. On an engine, those of foreign images too."""


class Pruned(Record, frozen=True, kw_only=True):
    """What a removal did, or would do."""

    removed: tuple[str, ...]
    kept: tuple[str, ...] = ()
    """Wanted gone but in use: a sentence each."""
    before_bytes: int
    after_bytes: int


# --- docker ---------------------------------------------------------------------------------


async def docker_stock(socket: str | None = None) -> Stock:
    """Images made here on the engine. Raises `SandboxError` when it cannot be asked."""
    async with EngineClient(socket_path(socket)) as engine:
        return await _docker_stock(engine)


async def prune_docker(
    needed: Collection[str], *, socket: str | None = None, dry_run: bool = False
) -> Pruned:
    """Remove the images made here whose names are not `needed`, with the layers only they use."""
    async with EngineClient(socket_path(socket)) as engine:
        before = await _docker_stock(engine)
        removed: list[str] = []
        kept: list[str] = []
        for one in before.items:
            if one.base or one.name in needed:
                continue
            why = None if dry_run else await _remove(engine, one.name)
            if why is None:
                removed.append(one.name)
            else:
                kept.append(f"{one.name}: {why}")
        after = before if dry_run else await _docker_stock(engine)
        return Pruned(
            removed=tuple(removed),
            kept=tuple(kept),
            before_bytes=before.used_bytes,
            after_bytes=after.used_bytes,
        )


async def _docker_stock(engine: EngineClient) -> Stock:
    params = {"filters": json.dumps({"label": [LABEL]})}
    images: list[Any] = await _get(engine, "images/json", params)
    used = (await _get(engine, "system/df", {})).get("LayersSize", 0)
    found = []
    for image in images:
        # Whatever others build from our base has our label too: the name decides.
        names = [tag for tag in image.get("RepoTags") or () if tag.startswith(_OURS)]
        size = image["Size"]
        found += [Stored(name=n, size_bytes=size, base=n == BASE_IMAGE) for n in names]
    return Stock(items=tuple(sorted(found, key=lambda one: one.name)), used_bytes=used)


async def _get(engine: EngineClient, path: str, params: dict[str, str]) -> Any:
    async with engine.call(f"ask for {path}", timeout_s=LIST_S) as docker:
        async with docker.session.get(f"http://docker/{path}", params=params) as answer:
            answer.raise_for_status()
            return await answer.json()


async def _remove(engine: EngineClient, name: str) -> str | None:
    """None, or why it stays."""
    try:
        async with engine.call(f"remove image {name}", timeout_s=REMOVE_S) as docker:
            await docker.images.delete(name)
    except SandboxError as e:
        if status_of(e) == 404:
            return None
        if status_of(e) == 409:
            return "in use"
        raise
    return None


# --- namespace ------------------------------------------------------------------------------


async def namespace_stock(cache: Path | None = None) -> Stock:
    """Layers in the cache, the base tree left out."""
    return await in_thread(_namespace_stock, cache or cache_folder())


async def prune_namespace(
    recipes: Sequence[EnvironmentRecipe],
    *,
    names: Collection[str],
    cache: Path | None = None,
    dry_run: bool = False,
) -> Pruned:
    """Remove the layers that no recipe needs, and the images of buildah that have other `names`.

    Raises `SandboxError` while sandboxes are live.
    """
    folder = cache or cache_folder()
    if not dry_run:
        await in_thread(_refuse_while_live)
    needed = await in_thread(layer_names, recipes, folder)
    done = await in_thread(_prune_layers, folder, needed, dry_run)
    buildah = Buildah(folder)
    unwanted = sorted(await buildah.names() - set(names))
    for name in unwanted if not dry_run else ():
        await buildah.remove(name)
    return msgspec.structs.replace(done, removed=(*done.removed, *unwanted))


def _namespace_stock(cache: Path) -> Stock:
    items = [Stored(name=path.name, size_bytes=_size(path)) for path in _layers(cache)]
    return Stock(items=tuple(items), used_bytes=sum(one.size_bytes for one in items))


def _layers(cache: Path) -> Iterator[Path]:
    """Whole layers and unpacked archives; what begins with a dot is still being made."""
    found = [*(cache / "layers").glob("[!.]*"), *(cache / "rootfs").glob("archive-*")]
    for path in sorted(found):
        if path.is_dir() and "partial" not in path.name:
            yield path


def _prune_layers(cache: Path, needed: Collection[str], dry_run: bool) -> Pruned:
    before = _namespace_stock(cache)
    removed = []
    left = before.used_bytes
    sizes = {one.name: one.size_bytes for one in before.items}
    for path in list(_layers(cache)):
        if path.name in needed:
            continue
        if not dry_run:
            _remove_layer(path)
            left -= sizes[path.name]
        removed.append(path.name)
    return Pruned(removed=tuple(removed), before_bytes=before.used_bytes, after_bytes=left)


def _remove_layer(path: Path) -> None:
    gone = path.with_name(f".{path.name}-{os.getpid()}")  # whole or not there, even half removed
    path.rename(gone)
    shutil.rmtree(gone)
    path.with_name(f"{path.name}.json").unlink(missing_ok=True)


def _refuse_while_live() -> None:
    live = []
    for path in (leases.runtime_folder() / "leases").glob("*.json"):
        try:
            lease = msgspec.json.decode(path.read_bytes(), type=leases.Lease)
        except (OSError, msgspec.DecodeError):
            continue
        if leases.owner_of(lease.owner.pid) == lease.owner:
            live.append(lease.what)
    if live:
        raise SandboxError(
            f"expected no live sandbox of the namespace provider, found {len(live)} "
            f"({live[0]}, ...): their layers cannot be told from others; wait for the run's end"
        )


def _size(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total
