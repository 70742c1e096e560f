"""Dockerfiles that our own builder does not understand, built by `buildah` for the namespace
provider: several stages, `COPY --from`, `RUN --mount`.

Rule: buildah works in a store of our own below the cache, with its overlay driver and without
containers (`--isolation chroot`); it never pulls. The layers it makes are folders an overlay can
stand on, so they are used where they are. The base is our own tree, imported once. Root only.
"""

import asyncio
import json
import os
import re
import shutil
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from headrace.aio import in_thread, run_shielded
from headrace.errors import ImageError
from headrace.sandbox.namespace_plan import Image
from headrace.sandbox.rootfs import BASE_IMAGE, cache_folder, lock
from headrace.types import EnvironmentRecipe

LOG_TAIL_BYTES = 4000
IMPORT_S = 600.0
ASK_S = 60.0
_CHUNK_BYTES = 1 << 16
_NOT_IN_A_TAG = re.compile(r"[^A-Za-z0-9_.-]")


class Buildah:
    """`buildah` on a store of ours. One for each provider."""

    def __init__(self, cache: Path | None, *, program: str = "buildah") -> None:
        self._folder = (cache or cache_folder()) / "buildah"
        self._program = program

    async def lacks(self) -> str | None:
        """None if buildah can be used, else why not and what to do."""
        if shutil.which(self._program) is None:
            return "buildah was not found (apt-get install buildah)"
        if os.geteuid() != 0:
            return "buildah is used as root only"
        return None

    async def build(
        self,
        recipe: EnvironmentRecipe,
        name: str,
        bases: Sequence[str],
        base: Path,
        progress: Callable[[str], None],
    ) -> Image:
        """The image `name`, with every one of `bases` meaning the tree `base`.

        Raises `ImageError` with the end of the build's log. The caller bounds the time.
        """
        assert recipe.dockerfile is not None
        await in_thread(lambda: self._folder.mkdir(parents=True, exist_ok=True))
        found = await in_thread(self._stored, name, base)
        if found is not None:
            return found
        await self._import(base, progress)
        for other in bases:
            if other != BASE_IMAGE:
                await self._must(("tag", _imported(base), other), ASK_S, f"name {other}")
        await self._must(("tag", _imported(base), BASE_IMAGE), ASK_S, f"name {BASE_IMAGE}")
        progress(f"{recipe.dockerfile}: buildah builds it")
        context = recipe.context or str(Path(recipe.dockerfile).parent)
        command = (
            *("build", "--isolation=chroot", "--layers", "--force-rm", "--pull-never"),
            *(f"--tag={name}", f"--file={recipe.dockerfile}", context),
        )
        await self._must(command, recipe.build_timeout_s, f"build {recipe.dockerfile}")
        image = await in_thread(self._stored, name, base)
        if image is None:
            raise ImageError(f"buildah has built {name}, but its store has no such image")
        return image

    async def names(self) -> set[str]:
        """Names of the images in the store, our imports left out."""
        path = self._folder / "root" / "overlay-images" / "images.json"
        images = await in_thread(_read, path)
        found = {tag.removeprefix("localhost/") for one in images for tag in one.get("names") or ()}
        return {name for name in found if name.startswith("headrace/task:")}

    async def remove(self, name: str) -> None:
        """Remove an image and the layers that only it uses. Raises `ImageError`."""
        await self._must(("rmi", name), IMPORT_S, f"remove {name}")

    async def _import(self, base: Path, progress: Callable[[str], None]) -> None:
        name = _imported(base)
        async with lock(self._folder / base.name, progress):
            if await in_thread(self._stored, name, base) is not None:
                return
            progress(f"importing {BASE_IMAGE} into buildah's store")
            container = (await self._must(("from", "scratch"), ASK_S, "begin an image")).split()[-1]
            await self._must(("add", "-q", container, f"{base}/", "/"), IMPORT_S, "import the base")
            await self._must(("commit", "-q", "--rm", container, name), IMPORT_S, "import the base")

    def _stored(self, name: str, base: Path) -> Image | None:
        """An image of the store as folders, our own tree in place of its import. Blocking."""
        storage = self._folder / "root"
        images = _read(storage / "overlay-images" / "images.json")
        found = {tag: one for one in images for tag in one.get("names") or ()}
        image, bottom = found.get(f"localhost/{name}"), found.get(f"localhost/{_imported(base)}")
        if image is None or bottom is None:
            return None
        parents = {
            one["id"]: one.get("parent")
            for one in _read(storage / "overlay-layers" / "layers.json")
        }
        layers: list[Path] = []
        layer = image.get("layer")
        while layer and layer != bottom.get("layer"):
            layers.append(storage / "overlay" / layer / "diff")
            layer = parents.get(layer)
        if layer is not None or not layers:
            layers.append(base)  # from scratch there is nothing below
        if not all(path.is_dir() for path in layers):
            return None
        return _configured(storage, image, tuple(layers))

    async def _must(self, arguments: Sequence[str], timeout_s: float, doing: str) -> str:
        code, said = await self._run(arguments, timeout_s)
        if code == 0:
            return said
        how = f"within {timeout_s:g} s" if code is None else f"(exit code {code})"
        raise ImageError(f"buildah could not {doing} {how}; the end of its output:\n{said}")

    async def _run(self, arguments: Sequence[str], timeout_s: float) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            self._program,
            *("--root", str(self._folder / "root"), "--runroot", str(self._folder / "run")),
            *("--storage-driver", "overlay", *arguments),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,
        )
        tail = bytearray()
        code: int | None = None
        try:
            async with asyncio.timeout(timeout_s):
                assert process.stdout is not None
                while piece := await process.stdout.read(_CHUNK_BYTES):
                    tail += piece
                    del tail[:-LOG_TAIL_BYTES]
                code = await process.wait()
        except TimeoutError:
            code = None
        finally:
            await run_shielded(_end(process))
        return code, tail.decode(errors="replace").strip()


def _imported(base: Path) -> str:
    """Name of the base in the store: another tree is another name."""
    return f"headrace/import:{_NOT_IN_A_TAG.sub('-', base.name)}"


def _configured(storage: Path, image: dict[str, Any], layers: tuple[Path, ...]) -> Image:
    config = _config(storage / "overlay-images" / image["id"])
    return Image(
        layers=layers,
        env=dict(one.split("=", 1) for one in config.get("Env") or () if "=" in one),
        workdir=config.get("WorkingDir") or "/",
        user=config.get("User") or "",
        entrypoint=tuple(config.get("Entrypoint") or ()),
    )


def _config(folder: Path) -> dict[str, Any]:
    """The configuration of an image: the one of its blobs that has one."""
    for path in sorted(folder.glob("=*")):
        with suppress(ValueError):
            found = json.loads(path.read_bytes())
            if isinstance(found, dict) and "rootfs" in found:
                return dict(found.get("config") or {})
    return {}


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return []


async def _end(process: Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
