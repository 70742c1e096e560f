"""What an episode leaves behind: collect hooks, and the files kept beside the shards.

Rule: best effort. A hook that fails and an artifact that is missing, too large or unreadable is an
entry that says so, never the end of an episode; only a sandbox that is gone raises `SandboxError`.
`/logs/artifacts` of the agent's sandbox is always taken if it holds anything. What comes out of a
sandbox lies below the episode's folder on the host, at the path it had (`destination` says
otherwise), with a `manifest.json` that lists the entries.

An episode keeps at most `MAX_BYTES`. What is larger is refused by its size before it is sent.
"""

import asyncio
import errno
import posixpath
import shlex
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import msgspec

from headrace.aio import in_thread
from headrace.engine.unpacking import TooMuch, Unpacked, unpack_below
from headrace.errors import SandboxError, StoreError, boundary
from headrace.sandbox.base import IMAGE_USER, Direct, Sandbox
from headrace.types import Artifact, Collected, CollectHook, Record, Task

MAX_BYTES = 256 << 20
LARGE_BYTES = 16 << 20
"""An archive is held whole, and more than once: of larger ones few are in memory at once."""
LOOK_TIMEOUT_S = 60.0
TRANSFER_TIMEOUT_S = 300.0
SHOWN_CHARS = 300
MAX_DIGITS = 20
ALWAYS = Artifact(source="/logs/artifacts")
MAIN = "main"
_STATUS = "headrace-tar "
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

_LOOK = """\
look() {
  if [ -d "$1" ]; then k=d; elif [ -f "$1" ]; then k=f; elif [ -e "$1" ]; then k=o; else
    echo "- 0"; return
  fi
  s=$(du -sk --apparent-size -- "$1" 2> /dev/null || du -sk -- "$1" 2> /dev/null)
  set -- ${s:-0}
  echo "$k $1"
}
"""
"""One line for each path: its kind (`d`, `f`, other, nothing) and its size in kilobytes, the holes
of its files included where `du` can tell: an archive has them too."""


class Claim(Record, frozen=True, kw_only=True):
    """An artifact and the place on the host that is its own."""

    artifact: Artifact
    destination: str
    taken_by: str | None = None
    """The source of an earlier entry that has the place already."""
    part_of: str | None = None
    """The source of an earlier entry that brings this one along, unless it could not be kept."""


def claims(artifacts: Sequence[Artifact], step: str = "") -> list[Claim]:
    """Where each artifact goes, `/logs/artifacts` first; the first of two for one place has it."""
    declared = [a for a in artifacts if _is_always(a)] or [ALWAYS]
    entries = [declared[0], *(a for a in artifacts if not _is_always(a))]
    out: list[Claim] = []
    for artifact in dict.fromkeys(entries):
        place = _relative(artifact.destination or artifact.source)
        destination = posixpath.join("steps", step, place) if step else place
        claim = Claim(artifact=artifact, destination=destination)
        prior = next((c for c in out if _overlap(c.destination, destination)), None)
        if prior is not None:
            part = _covers(prior, claim)
            which = "part_of" if part else "taken_by"
            claim = msgspec.structs.replace(claim, **{which: prior.artifact.source})
        out.append(claim)
    return out


def _covers(prior: Claim, claim: Claim) -> bool:
    """Whether `prior` brings what `claim` asks for, to the same place."""
    one, other = prior.artifact, claim.artifact
    rest = other.source.removeprefix(one.source.rstrip("/"))
    return (
        one.service == other.service
        and not one.exclude
        and other.source.startswith(f"{one.source.rstrip('/')}/")
        and claim.destination == posixpath.normpath(prior.destination + rest)
    )


def _is_always(artifact: Artifact) -> bool:
    return artifact.source.rstrip("/") == ALWAYS.source and artifact.service == MAIN


def _relative(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "root"


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


async def run_hooks(view: Task, sandbox: Sandbox) -> None:
    """Run the hooks of `view` where nothing is collected."""
    await _run_hooks(view.verifier.collect, view, sandbox)


class Keeper:
    """One episode's artifact folder."""

    def __init__(self, folder: Path, large: asyncio.Semaphore | None = None) -> None:
        """`large`: taken while a large artifact is in memory; shared by the episodes of a run."""
        self._large = large or asyncio.Semaphore()
        self.folder = folder
        """Made by the first artifact; what an earlier try left is removed before."""
        self.entries: list[Collected] = []
        self._left = MAX_BYTES
        self._fresh = False

    async def collect(self, view: Task, sandbox: Sandbox, step: str = "") -> list[Collected]:
        """Run the hooks of `view`, take its artifacts; the entries that this has added."""
        await self._make_fresh()
        hooks = view.verifier.collect
        wanted = claims(view.artifacts, step)
        found: list[Collected] = []
        # Of the agent's own service first: what the others hold cannot be changed by the agent.
        for main in (True, False):
            await _run_hooks([h for h in hooks if (h.service == MAIN) == main], view, sandbox)
            mine = [c for c in wanted if (c.artifact.service == MAIN) == main]
            found += await self._take_all(mine, view, sandbox)
        if found:
            self.entries += found
            await in_thread(_write_manifest, self.folder, self.entries)
        return found

    async def _take_all(
        self, wanted: Sequence[Claim], view: Task, sandbox: Sandbox
    ) -> list[Collected]:
        out: list[Collected] = []
        for service in dict.fromkeys(c.artifact.service for c in wanted):
            mine = [c for c in wanted if c.artifact.service == service]
            try:
                there = sandbox if service == MAIN else sandbox.service(service)
            except SandboxError as error:
                out += [_entry(c, "failed", str(error)) for c in mine]
                continue
            for claim, (kind, size_kb) in zip(mine, await _look(mine, view, there), strict=True):
                if kind == "-" and claim.artifact == ALWAYS:
                    continue
                entry = await self._take(claim, kind, size_kb, view, there)
                if entry.status == "empty" and claim.artifact == ALWAYS:
                    await in_thread(_remove_empty, self.folder, entry.destination)
                    continue
                out.append(entry)
        return out

    async def _take(
        self, claim: Claim, kind: str, size_kb: int, view: Task, sandbox: Sandbox
    ) -> Collected:
        if kind == "-":
            return _entry(claim, "missing")
        if claim.part_of is not None and await in_thread((self.folder / claim.destination).exists):
            return _entry(claim, "ok", f"part of {claim.part_of}")
        if claim.taken_by is not None:
            return _entry(claim, "failed", f"its place is taken by {claim.taken_by}")
        if kind not in "df":
            return _entry(claim, "failed", "expected a file or a folder")
        if size_kb << 10 > self._left:
            limit_mb, left_mb = MAX_BYTES >> 20, self._left >> 20
            detail = f"{size_kb >> 10} MB, with {left_mb} left of {limit_mb} for an episode"
            return _entry(claim, "failed", detail)
        async with self._large if size_kb << 10 > LARGE_BYTES else nullcontext():
            return await self._bring(claim, kind, view, sandbox)

    async def _bring(self, claim: Claim, kind: str, view: Task, sandbox: Sandbox) -> Collected:
        data = await _fetch(claim.artifact, kind, view, sandbox, self._left)
        if isinstance(data, str):
            return _entry(claim, "failed", data)
        unpacked = await in_thread(self._keep, claim, kind, data)
        if isinstance(unpacked, str):
            return _entry(claim, "failed", unpacked)
        self._left -= len(data)
        return _entry(claim, "ok" if unpacked.files else "empty", unpacked.detail)

    async def _make_fresh(self) -> None:
        if not self._fresh:
            await in_thread(shutil.rmtree, self.folder, True)
            self._fresh = True

    def _keep(self, claim: Claim, kind: str, data: bytes) -> Unpacked | str:
        """Blocking. A text is why it could not be unpacked."""
        place = self.folder / claim.destination
        try:
            if kind == "d":
                return unpack_below(data, place, max_bytes=self._left)
            return _keep_file(data, place, max_bytes=self._left)
        except (tarfile.TarError, TooMuch, OSError) as error:
            if isinstance(error, OSError) and error.errno in _FULL:
                raise StoreError(f"artifacts below {self.folder}: {error}") from error
            shutil.rmtree(place, ignore_errors=True)
            return str(error) or type(error).__name__


def _keep_file(data: bytes, place: Path, *, max_bytes: int) -> Unpacked:
    """The one file of an archive, under the name of its place."""
    aside = place.with_name(f".{place.name}.partial")
    try:
        unpacked = unpack_below(data, aside, max_bytes=max_bytes)
        files = [path for path in aside.iterdir() if path.is_file()]
        if len(files) == 1:
            files[0].replace(place)
        return unpacked
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _entry(claim: Claim, status: str, detail: str = "") -> Collected:
    return Collected(
        source=claim.artifact.source,
        destination=claim.destination,
        status=status,
        service=claim.artifact.service,
        detail=detail,
    )


def _remove_empty(folder: Path, destination: str) -> None:
    """The folder that nothing came into, with those above it that are empty then. Blocking."""
    with suppress(OSError):
        (folder / destination).rmdir()
        for above in (folder / destination).parents:
            above.rmdir()
            if above == folder:
                return


def _write_manifest(folder: Path, entries: Sequence[Collected]) -> None:
    with boundary(StoreError, f"the manifest of {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        document = msgspec.json.format(msgspec.json.encode(entries), indent=2)
        (folder / "manifest.json").write_bytes(document + b"\n")


# --- in the sandbox -------------------------------------------------------------------------


async def _run_hooks(hooks: Iterable[CollectHook], view: Task, sandbox: Sandbox) -> None:
    for hook in hooks:
        main = hook.service == MAIN
        try:
            there = sandbox if main else sandbox.service(hook.service)
        except SandboxError:
            continue  # no such service: its artifacts, if there are any, say so
        await there.exec(
            hook.command,
            timeout_s=hook.timeout_s,
            workdir=view.environment.workdir if main else None,
            env=view.environment.env if main else None,
            user=IMAGE_USER if hook.user is None else hook.user,
        )


async def _look(claims: Sequence[Claim], view: Task, sandbox: Sandbox) -> list[tuple[str, int]]:
    """Kind and size of every source, in one step; without a program where nothing is there."""
    sources = [c.artifact.source for c in claims]
    if isinstance(sandbox, Direct) and all(source.startswith("/") for source in sources):
        kinds = await sandbox.kinds(sources)
        if kinds is not None and set(kinds) == {"-"}:
            return [("-", 0)] * len(claims)
    lines = [f"look {shlex.quote(c.artifact.source)}" for c in claims]
    result = await sandbox.exec(
        _LOOK + "\n".join(lines),
        timeout_s=LOOK_TIMEOUT_S,
        workdir=view.environment.workdir,
    )
    found = [line.split(b" ") for line in result.stdout.splitlines()]
    seen = [
        (line[0].decode("ascii", "replace"), int(line[1]))
        for line in found  # the `du` that says it may be the agent's
        if len(line) == 2 and line[1].isdigit() and len(line[1]) < MAX_DIGITS
    ]
    return seen if len(seen) == len(claims) else [("-", 0)] * len(claims)


async def _fetch(
    artifact: Artifact, kind: str, view: Task, sandbox: Sandbox, max_bytes: int
) -> bytes | str:
    """An archive of the source, or why there is none."""
    source = artifact.source
    exclude = " ".join(f"--exclude={shlex.quote(pattern)}" for pattern in artifact.exclude)
    if kind == "d":
        pack = f"tar -c -f - {exclude} -C {shlex.quote(source)} ."
    else:
        folder, name = posixpath.split(source.rstrip("/"))
        at = f"-C {shlex.quote(folder)} " if folder else ""
        pack = f"tar -c -h -f - {exclude} {at}{shlex.quote(f'./{name}')}"
    room = max_bytes + max_bytes // 8 + (1 << 20)  # headers and padding
    result = await sandbox.exec(  # a sparse file may be more than its size: no more than `room`
        f'{{ {pack}; echo "{_STATUS}$?" >&2; }} | head -c {room}',
        timeout_s=TRANSFER_TIMEOUT_S,
        workdir=view.environment.workdir,
        max_output_bytes=room,
    )
    if result.timed_out:
        return f"no end within {TRANSFER_TIMEOUT_S:g} s"
    if len(result.stdout) + result.stdout_cut >= room:
        return f"more than {max_bytes >> 20} MB"
    said, _, status = result.stderr.decode("utf-8", "replace").rpartition(_STATUS)
    if status.strip() not in ("0", "1"):  # 1: a file changed while it was read
        return said.strip()[-SHOWN_CHARS:] or f"tar: exit code {status.strip() or 'unknown'}"
    return result.stdout
