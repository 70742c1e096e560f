"""Root filesystems: the base tree's place, image archives, and what is refused in them."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from headrace.aio import in_thread
from headrace.configs.models import ImagesConfig
from headrace.errors import ImageError
from headrace.sandbox.base import SandboxSpec
from headrace.sandbox.namespace import NamespaceProvider
from headrace.sandbox.namespace_images import Images
from headrace.sandbox.rootfs import (
    BASE_IMAGE,
    base_folder,
    base_tar,
    cache_folder,
    ensure_base,
    unpack_image,
)
from headrace.types import EnvironmentRecipe


def layer(
    *members: tuple[str, bytes | None], links: tuple[tuple[str, str, bytes], ...] = ()
) -> bytes:
    """A tar of files (with content), folders (None) and links (name, target, kind)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.uid, info.gid = os.getuid(), os.getgid()
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            else:
                info.size, info.mode = len(content), 0o755
                tar.addfile(info, io.BytesIO(content))
        for name, target, kind in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    return out.getvalue()


def saved(path: Path, *layers: bytes, config: dict[str, object] | None = None) -> Path:
    """An archive as `docker save` writes it."""
    names = [f"{i}/layer.tar" for i in range(len(layers))]
    manifest = json.dumps([{"Config": "c.json", "Layers": names}]).encode()
    described = json.dumps({"config": config or {}}).encode()
    parts = [*zip(names, layers, strict=True), ("c.json", described), ("manifest.json", manifest)]
    path.write_bytes(layer(*parts))
    return path


async def test_layers_are_put_on_top_of_each_other(tmp_path: Path) -> None:
    first = layer(("usr", None), ("usr/a", b"1"), ("usr/b", b"1"), ("d", None), ("d/old", b"1"))
    second = layer(
        ("usr/a", b"2"), ("usr/.wh.b", b""), ("d/.wh..wh..opq", b""), ("d/new", b"2"),
        links=(("bin", "usr", tarfile.SYMTYPE), ("usr/hard", "usr/a", tarfile.LNKTYPE)),
    )  # fmt: skip
    archive = saved(tmp_path / "i.tar", first, second, config={"Env": ["A=1"], "User": "me"})
    tree, config = await unpack_image(archive, cache=tmp_path)
    assert (tree / "usr/a").read_bytes() == (tree / "usr/hard").read_bytes() == b"2"
    assert not (tree / "usr/b").exists() and not (tree / "d/old").exists()
    assert (tree / "d/new").read_bytes() == b"2" and (tree / "bin").is_symlink()
    assert config == {"Env": ["A=1"], "User": "me"}
    assert await unpack_image(archive, cache=tmp_path) == (tree, config)


@pytest.mark.parametrize(
    "members",
    [
        layer(("usr", None), ("../../out", b"x")),
        layer(("usr", None), ("/out", b"x")),
        layer(("usr/x", b""), links=(("usr/h", "../../../out", tarfile.LNKTYPE),)),
    ],
)
async def test_names_stay_in_the_tree(tmp_path: Path, members: bytes) -> None:
    (tmp_path / "i.tar").write_bytes(members)
    try:
        tree, _ = await unpack_image(tmp_path / "i.tar", cache=tmp_path / "cache")
    except ImageError:
        tree = tmp_path / "cache"
    assert await in_thread(_outside, tmp_path, tree) == []


def _outside(folder: Path, tree: Path) -> list[Path]:
    return [path for path in folder.rglob("out") if not path.is_relative_to(tree)]


async def test_a_link_is_not_followed_out_of_the_tree(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, target in (("usr", tarfile.DIRTYPE, ""), ("l", tarfile.SYMTYPE, "/")):
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o755
            info.linkname = str(tmp_path / "victim") if target else ""
            tar.addfile(info)
        info = tarfile.TarInfo("l/file")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    (tmp_path / "i.tar").write_bytes(out.getvalue())
    with pytest.raises(ImageError, match="outside of its own tree"):
        await unpack_image(tmp_path / "i.tar", cache=tmp_path / "cache")
    assert list((tmp_path / "victim").iterdir()) == []
    assert not [p for p in (tmp_path / "cache" / "rootfs").iterdir() if p.is_dir()]


@pytest.mark.parametrize("content", [b"no tar", layer(("readme", b"x"))])
async def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "i.tar").write_bytes(content)
    with pytest.raises(ImageError, match="i.tar"):
        await unpack_image(tmp_path / "i.tar", cache=tmp_path / "cache")


async def test_an_archive_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nope.tar: an image archive \(docker save"):
        await unpack_image(tmp_path / "nope.tar", cache=tmp_path)


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "x"))
    assert base_folder().parent == cache_folder() / "rootfs" == tmp_path / "x" / "rootfs"
    monkeypatch.delenv("HEADRACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "headrace"


@pytest.mark.namespace
async def test_an_exported_tree_runs_as_an_image(
    tmp_path: Path, unavailable: dict[str, str | None]
) -> None:
    if unavailable["namespace"] is not None:
        pytest.skip(f"namespace: {unavailable['namespace']}")
    archive = tmp_path / "export.tar"
    base = await ensure_base()
    await in_thread(_export_little, base, tmp_path / "tree", archive)
    async with NamespaceProvider(cache=tmp_path / "cache") as provider:
        image = await provider.prepare(EnvironmentRecipe(image=str(archive)))
        assert image != BASE_IMAGE
        async with provider.open(SandboxSpec(image=image, episode="e")) as sandbox:
            result = await sandbox.run("id -u; echo $0", timeout_s=20)
    assert result.stdout == b"0\nbash\n"


def _export_little(base: Path, tree: Path, archive: Path) -> None:
    """The few programs a sandbox needs, as a container's export."""
    for name in ("bin", "lib", "lib64", "sbin"):
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    for name in ("dev", "proc", "etc", "tmp"):
        (tree / name).mkdir()
    programs = ("sh", "dash", "bash", "mkdir", "id", "cat", "head", "setsid", "true", "sleep")
    wanted = [f"usr/bin/{name}" for name in programs]
    for library in ("ld-linux*", "libc.so*", "libtinfo*", "libselinux*", "libpcre2-8*"):
        wanted += [str(p.relative_to(base)) for p in base.glob(f"usr/lib*/**/{library}")]
    for name in wanted:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(base / name, tree / name, follow_symlinks=False)
    with archive.open("wb") as out:
        out.writelines(base_tar(tree))


@pytest.mark.parametrize(
    ("line", "runs"),
    [
        ("", ("/entry", "-v")),
        ('ENTRYPOINT ["/own"]', ("/own",)),
        ("ENTRYPOINT /own $A", ("/bin/sh", "-c", "/own $A")),
        ('SHELL ["/bin/bash", "-c"]\nENTRYPOINT /own', ("/bin/bash", "-c", "/own")),
        ("ENTRYPOINT []", ()),
    ],
)
async def test_the_entrypoint_of_an_archive_stands_until_a_dockerfile_names_another(
    tmp_path: Path, line: str, runs: tuple[str, ...]
) -> None:
    config: dict[str, object] = {"Entrypoint": ["/entry", "-v"]}
    archive = saved(tmp_path / "i.tar", layer(("usr", None)), config=config)
    provider = NamespaceProvider(cache=tmp_path)
    images = Images(
        cache=tmp_path, progress=print, build=provider, config=ImagesConfig(builder="own")
    )
    names = set()
    for said in ("", line):
        (tmp_path / "Dockerfile").write_text(f"FROM {archive}\nENV A=1\n{said}\n")
        name = await images.prepare(EnvironmentRecipe(dockerfile=str(tmp_path / "Dockerfile")))
        names.add(name)
    assert (await images.get(name)).entrypoint == runs
    assert len(names) == (2 if line else 1), "another image has another name"
