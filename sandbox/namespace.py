"""The `namespace` provider: sandboxes without an engine, from bubblewrap over an overlay.

Each sandbox is one process tree in fresh mount, process, network, ipc, host-name and control-group
namespaces, with a tmpfs for what it writes; killing it leaves nothing. As root the kernel's
control groups limit it; otherwise unprivileged user namespaces and per-process limits serve.

What it does not do: give each sandbox a network of its own. `network = True` shares the host's,
loopback included. Writes count as memory, because the tmpfs is memory.
"""

import asyncio
import fcntl
import hashlib
import os
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from headrace.aio import in_thread, run_shielded
from headrace.configs.models import ImagesConfig
from headrace.errors import ContractError, SandboxError, boundary
from headrace.sandbox import cgroups, leases, seccomp
from headrace.sandbox.base import Footprint, Limits, SandboxSpec
from headrace.sandbox.egress_proxy import lacks, proxied, proxy_env, wants_proxy
from headrace.sandbox.launcher import can_launch
from headrace.sandbox.namespace_images import Image, Images
from headrace.sandbox.namespace_launch import (
    DEFAULT_ENV,
    PROGRAM_FD,
    SECCOMP_FD,
    Host,
    Launch,
    command,
    plan,
)
from headrace.sandbox.namespace_launcher import Launcher
from headrace.sandbox.namespace_lease import SharedLease
from headrace.sandbox.namespace_process import Leader, inherited, spawn
from headrace.sandbox.namespace_sandbox import NamespaceSandbox
from headrace.sandbox.namespace_terminal import TerminalPlace
from headrace.sandbox.refusals import no_allow_list, no_compose
from headrace.sandbox.rootfs import can_build
from headrace.sandbox.scripts import INIT_PROGRAM, KEEP_ALIVE, KEEPER_PROGRAM, beside
from headrace.types import EnvironmentRecipe, Task

START_TIMEOUT_S = 60.0
_LAUNCHED = Footprint(memory_bytes=1800 << 10, processes=2, files=6)
"""Measured with thousands of them. Most of the memory is the kernel's: for the processes and their
namespaces, and in each control group of memory a record of every filesystem on the machine."""
_SPAWNED = Footprint(memory_bytes=2 << 20, processes=7, files=9)
STORAGE_MB = 8192
"""What one sandbox may write where its spec does not say; never more than three quarters of its
memory, as which it counts."""
_SPAWN_ENV = {
    "PATH": DEFAULT_ENV["PATH"],
    "LIBMOUNT_FORCE_MOUNT2": "always",  # the newer call takes 256 bytes of layers at most
}

Progress = Callable[[str], None]


async def available() -> str | None:
    """None if this provider works here; else why not and what to do, in one sentence."""
    return await in_thread(_try_start) or await in_thread(can_build)


class NamespaceProvider:
    """See `Provider`. `async with` it; sandboxes must be closed before it is left."""

    name = "namespace"

    def __init__(
        self,
        *,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        cache: Path | None = None,
        run_id: str = "",
        progress: Progress | None = None,
        images: ImagesConfig = ImagesConfig(),  # noqa: B008 - frozen
    ) -> None:
        """`limits` bound image builds; each sandbox has those of its spec."""
        self._run_id = run_id or "run"
        self._build_limits = limits
        self._images = Images(
            cache=cache, progress=progress or (lambda line: None), build=self, config=images
        )
        self.footprint = _LAUNCHED if os.geteuid() == 0 and can_launch() else _SPAWNED
        self._here: _Here | None = None
        self._live = 0

    async def __aenter__(self) -> "NamespaceProvider":
        with boundary(SandboxError, "the namespace provider could not be opened"):
            self._here = await in_thread(_look, self._run_id)
        return self

    async def __aexit__(self, *exc: object) -> None:
        here, self._here = self._here, None
        if here is None:
            return
        try:
            if here.launcher is not None:
                await run_shielded(here.launcher.close())
        finally:
            here.close()

    def __repr__(self) -> str:
        return f"<NamespaceProvider live={self._live} images={len(self._images)}>"

    @property
    def lacks(self) -> tuple[str, ...]:
        """Limits that cannot be set on this machine: of `pids`, `memory`, `cpu`."""
        return self._there().groups.lacks

    async def prepare(self, recipe: EnvironmentRecipe) -> str:
        """See `Provider.prepare`."""
        return await self._images.prepare(recipe)

    async def refuses(self, task: Task, *, network: bool) -> str | None:
        """See `Provider.refuses`."""
        return no_compose(task) or no_allow_list(task, follow=network, lacks=lacks())

    @asynccontextmanager
    async def open(self, spec: SandboxSpec) -> AsyncIterator[NamespaceSandbox]:
        """See `Provider.open`."""
        image = await self._images.get(spec.image)
        async with self.open_over(image, spec) as sandbox:
            yield sandbox

    @asynccontextmanager
    async def open_over(
        self, image: Image, spec: SandboxSpec, *, upper: Path | None = None
    ) -> AsyncIterator[NamespaceSandbox]:
        """A sandbox over the layers of `image`; with `upper`, that folder keeps what it writes.

        That is a build: the entrypoint is not run there.
        """
        here = self._there()
        claim = _Claim(here, here.lease.name_for(spec.episode), spec.limits)
        workdir, user = spec.workdir or image.workdir, spec.user or image.user
        entry = (*image.entrypoint, *KEEP_ALIVE) if image.entrypoint and upper is None else ()
        sandbox = NamespaceSandbox(
            max_output_bytes=spec.limits.max_output_bytes,
            image_user=image.user,
            terminal=TerminalPlace(user, workdir) if spec.terminal else None,
            joined=here.launcher is not None,
        )
        self._live += 1
        try:
            await claim.take()
            launch = Launch(
                layers=image.layers,
                mount_point=here.mount_point,
                groups=claim.planned,
                env={**image.env, **proxy_env(spec), **spec.env},
                workdir=workdir,
                user=user,
                network=spec.network,
                limits=spec.limits,
                storage_mb=_storage_mb(spec.limits),
                upper=upper,
                beside=beside(image.workdir, image.user, entry),
            )
            try:
                async with asyncio.timeout(START_TIMEOUT_S):
                    await sandbox.start(
                        lambda fds: self._lead(launch, fds),
                        here.files,
                        cgroups.processes_of(claim.planned),
                    )
            except TimeoutError:
                raise SandboxError(f"no sandbox within {START_TIMEOUT_S:.0f} s") from None
            async with self._proxied(sandbox, spec):
                yield sandbox
        finally:
            self._live -= 1
            await run_shielded(self._discard(sandbox, claim))

    @asynccontextmanager
    async def _proxied(self, sandbox: NamespaceSandbox, spec: SandboxSpec) -> AsyncIterator[None]:
        """A proxy in the sandbox, where its spec has one."""
        if spec.egress is None or not wants_proxy(spec):
            yield
            return
        assert sandbox.leader is not None
        first = sandbox.leader.first  # the leader may be in the host's network
        if first is None:
            raise SandboxError("the proxy of a sandbox could not be opened: the sandbox has ended")
        async with proxied(spec.egress, [first]):
            yield

    async def sweep(self) -> list[str]:
        """See `Provider.sweep`."""
        return [*await in_thread(leases.sweep), *await self._images.sweep()]

    async def _lead(self, launch: Launch, fds: Mapping[int, int]) -> Leader:
        here = self._there()
        if here.launcher is None:
            return spawn(command(here.host, launch), _SPAWN_ENV, fds, here.inherited)
        resolv = await in_thread(_resolv) if launch.network else ""
        return await here.launcher.start(plan(launch, seccomp=here.filter, resolv=resolv), fds)

    async def _discard(self, sandbox: NamespaceSandbox, claim: "_Claim") -> None:
        try:
            await sandbox.aclose()
        finally:
            await claim.release(cleared=sandbox.leader is not None and sandbox.leader.cleared)

    def _there(self) -> "_Here":
        if self._here is None:
            raise ContractError("a provider is used inside its `async with` block")
        return self._here


def _storage_mb(limits: Limits) -> int:
    """Below the memory limit: a full disk is an error to whoever writes, not the sandbox's end."""
    wanted = limits.storage_mb or STORAGE_MB
    if limits.memory_mb is None:
        return wanted
    return min(wanted, max(1, limits.memory_mb * 3 // 4))


class _Claim:
    """The control groups of one sandbox, and its part in the provider's lease."""

    def __init__(self, here: "_Here", name: str, limits: Limits) -> None:
        outer = 0 if here.launcher is not None else 1
        self.planned = here.groups.plan(name, limits, outer=outer)
        self._here = here
        self._held = False

    async def take(self) -> None:
        """The lease first; then the groups, where no launcher makes them."""
        await self._here.lease.hold()
        self._held = True
        if self._here.launcher is None:
            await run_shielded(in_thread(cgroups.create, self.planned))

    async def release(self, *, cleared: bool) -> None:
        """`cleared`: whoever ended the sandbox has removed its groups."""
        if not cleared:
            await in_thread(cgroups.remove, self.planned)
        if self._held:
            self._held = False
            await self._here.lease.let_go()


@dataclass(frozen=True)
class _Here:
    """What was found out about this machine, once."""

    host: Host
    groups: cgroups.Cgroups
    mount_point: Path
    program: int
    """Descriptor of what the first process of a sandbox runs; `close` closes it."""
    files: dict[int, str]
    """What a sandbox gets open: that program, the system-call filter."""
    inherited: tuple[int, ...]
    """Descriptors of this process that no sandbox may see."""
    lease: SharedLease
    filter: bytes
    launcher: Launcher | None
    """What starts them; None: bubblewrap does."""

    def close(self) -> None:
        """Once no sandbox will be started."""
        os.close(self.program)


def _look(run_id: str) -> _Here:
    host = _host()
    if isinstance(host, str):
        raise SandboxError(host)
    runtime = leases.runtime_folder()
    program = seccomp.program()
    by_launcher = host.root and can_launch()
    files = {}
    if program is not None and not by_launcher:
        files[SECCOMP_FD] = _file(runtime / "seccomp.bpf", program)
    groups = cgroups.detect()
    name = f"headrace-{run_id[:20]}-{secrets.token_hex(5)}"
    first = _sealed((KEEPER_PROGRAM if by_launcher else INIT_PROGRAM).encode())
    files[PROGRAM_FD] = f"/proc/self/fd/{first}"
    return _Here(
        program=first,
        host=replace(host, seccomp=program is not None),
        groups=groups,
        mount_point=runtime / "mnt",
        files=files,
        inherited=inherited(),
        lease=SharedLease(name, groups),
        filter=program or b"",
        launcher=Launcher(inherited(), lease=name) if by_launcher else None,
    )


def _resolv() -> str:
    """The name servers of this machine; an image has none of its own that would work here."""
    try:
        return Path("/etc/resolv.conf").read_text(errors="surrogateescape")
    except OSError:
        return ""


def _sealed(content: bytes) -> int:
    """A file that nobody can write: the first process of every sandbox has it open, for root inside
    to open again.
    """
    fd = os.memfd_create("headrace", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(content)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def _file(path: Path, content: bytes) -> str:
    """A file of ours for bubblewrap, replaced whole: another driver may be reading it.

    Named by its content: a driver of another version has another one.
    """
    digest = hashlib.sha256(content).hexdigest()[:12]
    path = path.with_name(f"{path.stem}-{digest}{path.suffix}")
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
    return str(path)


def _host() -> Host | str:
    """What there is to start sandboxes with, or the sentence that says what is missing."""
    found = {name: shutil.which(name, path=DEFAULT_ENV["PATH"]) for name in _PROGRAMS}
    for name, package in _PROGRAMS.items():
        if found[name] is None and package:
            return f"{name} was not found: install it (apt-get install {package})"
    root = os.geteuid() == 0
    return Host(
        bwrap=found["bwrap"] or "",
        unshare=found["unshare"] or "",
        root=root,
        map_range=not root and found["newuidmap"] is not None and _has_subordinate_ids(),
        prlimit=found["prlimit"],
    )


_PROGRAMS = {"bwrap": "bubblewrap", "unshare": "util-linux", "prlimit": "", "newuidmap": ""}


def _has_subordinate_ids() -> bool:
    try:
        import pwd

        me = pwd.getpwuid(os.geteuid()).pw_name
        lines = Path("/etc/subuid").read_text().splitlines()
    except (OSError, KeyError):
        return False
    return any(line.split(":")[0] in (me, str(os.geteuid())) for line in lines)


def _try_start() -> str | None:
    """Start the real thing, with the host's programs below and `true` as its only process."""
    try:
        here = _look("try")
    except (SandboxError, OSError) as e:
        return str(e)
    launch = Launch(
        layers=(Path("/usr"),),  # of the root of the host, a user may not make a layer
        mount_point=here.mount_point,
        groups={},
        env={},
        workdir="/",
        user="",
        network=False,
        limits=Limits(),
        storage_mb=1,
    )
    host = replace(here.host, seccomp=False, prlimit=None)
    here.close()
    try:
        done = subprocess.run(
            command(host, launch, program=("true",)),
            env=_SPAWN_ENV,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"no sandbox could be started: {e}"
    if done.returncode == 0:
        return None
    said = done.stderr[-300:].decode(errors="replace").strip().replace("\n", "; ")
    advice = "" if here.host.root else " (allow unprivileged user namespaces, or run as root)"
    return f"no sandbox could be started: {said or f'exit code {done.returncode}'}{advice}"
