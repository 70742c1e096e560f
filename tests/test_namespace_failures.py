"""What the namespace provider does when the host or an image is against it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.aio import in_thread
from headrace.errors import ImageError, SandboxEnded, SandboxError
from headrace.sandbox.base import Limits, SandboxSpec
from headrace.sandbox.namespace import NamespaceProvider
from headrace.sandbox.rootfs import BASE_IMAGE, ensure_base
from headrace.types import EnvironmentRecipe

pytestmark = pytest.mark.namespace

TOO_LONG = "x" * 200_000
"""More than one variable of a new process may hold."""


@pytest.fixture
async def provider(only_namespace: str, tmp_path: Path) -> AsyncIterator[NamespaceProvider]:
    base = await ensure_base()
    (tmp_path / "cache" / "rootfs").mkdir(parents=True)
    (tmp_path / "cache" / "rootfs" / base.name).symlink_to(base)
    async with NamespaceProvider(cache=tmp_path / "cache") as provider:
        yield provider


async def test_a_sandbox_that_cannot_be_spawned_keeps_no_descriptor(
    provider: NamespaceProvider,
) -> None:
    spec = SandboxSpec(image=BASE_IMAGE, episode="e", env={"LONG": TOO_LONG})
    await provider.prepare(EnvironmentRecipe(image=BASE_IMAGE))
    before = await in_thread(os.listdir, "/proc/self/fd")
    with pytest.raises(SandboxError, match="settings were expected of a sandbox"):
        async with provider.open(spec):
            pass
    assert len(await in_thread(os.listdir, "/proc/self/fd")) == len(before)


async def test_a_link_in_an_image_is_not_followed_on_the_host(
    provider: NamespaceProvider, tmp_path: Path
) -> None:
    target = tmp_path / "of-the-host"
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(f"FROM {BASE_IMAGE}\nRUN ln -sf {target} /etc/hosts\n")
    image = await provider.prepare(EnvironmentRecipe(dockerfile=str(dockerfile)))
    async with provider.open(SandboxSpec(image=image, episode="e")) as sandbox:
        assert (await sandbox.run("readlink /etc/hosts", timeout_s=20)).exit_code == 0
    assert not target.exists()


async def test_a_full_disk_leaves_the_sandbox_alive(provider: NamespaceProvider) -> None:
    spec = SandboxSpec(image=BASE_IMAGE, episode="e", limits=Limits(memory_mb=128))
    async with provider.open(spec) as sandbox:
        full = await sandbox.run("cat /dev/zero >/full", timeout_s=20)
        assert full.exit_code == 1 and b"No space left on device" in full.stderr
        assert (await sandbox.exec("rm /full && echo ok >/x", timeout_s=20)).exit_code == 0


async def test_a_cache_that_cannot_be_written_is_an_image_error(
    provider: NamespaceProvider, tmp_path: Path
) -> None:
    (tmp_path / "cache" / "layers").write_text("in the way")
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(f"FROM {BASE_IMAGE}\nRUN true\n")
    with pytest.raises(ImageError, match=r"image of .*Dockerfile: .*layers"):
        await provider.prepare(EnvironmentRecipe(dockerfile=str(dockerfile)))


async def test_a_sandbox_that_ended_by_itself_says_so_on_every_channel(
    provider: NamespaceProvider,
) -> None:
    async with provider.open(SandboxSpec(image=BASE_IMAGE, episode="ends")) as sandbox:
        assert sandbox.leader is not None
        os.kill(sandbox.leader.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            await sandbox.leader.ended.wait()
        with pytest.raises(SandboxEnded, match="SIGKILL"):
            await sandbox.run("true", timeout_s=5)
        with pytest.raises(SandboxEnded, match="SIGKILL"):
            await sandbox.exec("true", timeout_s=5)
