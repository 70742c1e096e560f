"""A run is a folder: `run.json`, `shards/`, `summary.json` and logs.

Rules: a folder belongs to one identity (configuration, tasks, policy, provider) and refuses any
other with the difference; one live run at a time; every file is replaced in one step, never
edited. What is owed is decided in `resume.py`, what is stored in `store.py`.
"""

import errno
import fnmatch
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

import headrace
from headrace.configs import load
from headrace.configs.models import RunConfig
from headrace.engine.locks import FolderLock
from headrace.engine.reader import SHARDS, finished_ids
from headrace.engine.shards import Damage, sync_folder
from headrace.errors import RunFolderError, StoreError
from headrace.types import Record

RUN_SCHEMA: Final = 1
RUN_FILE: Final = "run.json"
LOCK_FILE: Final = "run.lock"
LOGS: Final = "logs"

MAY_DIFFER: Final = {
    "engine.*": "how many at once does not change what an episode is",
    "store.*": "how records are packed does not change what they say",
    "tasks.*": "the digests of the tasks are compared instead",
    "sandbox.provider": "the provider that was chosen is compared instead",
    "sandbox.docker_socket": "where the engine listens",
    "sandbox.warm": "how many at once",
    "policy.base_url": "where the model answers",
    "policy.request_timeout_s": "how patient to be with the server",
    "policy.retries": "how patient to be with the server",
    "policy.server.host": "where the model answers",
    "policy.server.port": "where the model answers",
    "policy.server.start_timeout_s": "how long to wait for it",
    "policy.server.restarts": "how often to start it again",
    "policy.server.replicas": "how many at once",
    "policy.server.max_num_seqs": "how many at once",
    "policy.server.kv_cache_gib": "how many at once",
    "policy.server.gpu_memory_utilization": "how many at once",
}
"""Keys in which two sessions of one run may differ, and why. All others make another run."""

ANOTHER_PLACE: Final = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR,
        errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
    }
)  # fmt: skip
"""What another path mends: a mistake of whoever named this one. All else is the disk's failure."""


class RunManifest(Record, frozen=True, kw_only=True):
    """`run.json`."""

    schema: int = RUN_SCHEMA
    run: str
    """Id of the run."""
    created: str
    headrace: str
    """Version that created the folder."""
    config: dict[str, Any]
    """The resolved configuration of the latest session."""
    config_digest: str
    tasks: dict[str, str]
    """Digest of each task by name."""
    policy: str
    policy_version: str
    provider: str


class RunFolder:
    """An open run folder, locked until `close`. A context manager; blocking."""

    def __init__(self, path: Path, manifest: RunManifest, lock: FolderLock) -> None:
        self.path = path
        self.manifest = manifest
        self.damage: list[Damage] = []
        """What could not be read when `finished` was last asked for."""
        self._lock = lock

    @classmethod
    def open(
        cls,
        path: Path,
        config: RunConfig,
        *,
        tasks: Mapping[str, str],
        policy: str,
        policy_version: str,
        provider: str,
    ) -> Self:
        """Make the folder, or open it again for the same run. `tasks`: digests by name.

        Raises `RunFolderError` for a folder that is not a run, is of another run (with the
        difference), is newer than this headrace, is in use, or is where nothing can be written;
        `StoreError` if the disk fails.
        """
        given = RunManifest(
            run=secrets.token_hex(6),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            headrace=headrace.__version__,
            config=load.resolved(config),
            config_digest=load.digest(config),
            tasks=dict(tasks),
            policy=policy,
            policy_version=policy_version,
            provider=provider,
        )
        path = path.absolute()
        _refuse_foreign(path)
        _make_folder(path)
        try:
            lock = FolderLock(path / LOCK_FILE)
        except OSError as e:
            raise not_writable(f"{path} cannot be written", e) from e
        try:
            manifest = _adopt(path, given)
            if not (path / RUN_FILE).exists() or manifest != read_manifest(path):
                write_atomically(path / RUN_FILE, _pretty(manifest))
            _make_folder(path / SHARDS)
            _make_folder(path / LOGS)
        except BaseException:
            lock.close()
            raise
        return cls(path, manifest, lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process run here. Idempotent."""
        self._lock.close()

    @property
    def lock(self) -> int:
        """Descriptor of its lock. See `FolderLock.fileno`."""
        return self._lock.fileno()

    @property
    def logs(self) -> Path:
        """Folder of the log files."""
        return self.path / LOGS

    def finished(self) -> set[str]:
        """Ids of the episodes that need not run again; fills `damage`.

        Left out, and so owed: what the infrastructure failed, what was cancelled, and what can no
        longer be read.
        """
        self.damage.clear()
        return finished_ids(self.path, on_damage=self.damage.append)


def read_manifest(path: Path) -> RunManifest:
    """`run.json` of a run folder. Raises `RunFolderError`."""
    file = path / RUN_FILE
    try:
        text = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        found = "nothing there" if not path.exists() else f"no {RUN_FILE} in it"
        raise RunFolderError(
            f"{path} is not a run: expected a folder with {RUN_FILE}, found {found}."
            " Give the folder that `headrace run --out` wrote"
        ) from None
    except OSError as e:
        raise RunFolderError(f"{file} cannot be read: {e.strerror or e}") from e
    return _parse_manifest(file, text)


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace a file in one step: readers see the old or the new one. Raises `StoreError`.

    Without `durable` that holds for a killed process and not for a power cut.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"{path} cannot be written: {e.strerror or e}") from e


def differences(stored: RunManifest, given: RunManifest) -> tuple[str, ...]:
    """What makes `given` another run than `stored`; empty if it is the same.

    `attempts` may grow: the run then owes the further samples of each task. It may not shrink,
    because then the folder would hold more than its description says.
    """
    found = [
        f"{key}: stored {_show(a)}, given {_show(b)}"
        + (" (attempts may grow, not shrink)" if key == "attempts" else "")
        for key, a, b in load.difference(stored.config, given.config)
        if not may_differ(key) and not _grows(key, a, b)
    ]
    for name in sorted(stored.tasks.keys() | given.tasks.keys()):
        a, b = stored.tasks.get(name), given.tasks.get(name)
        if a is None:
            found.append(f"task {name}: not stored, given")
        elif b is None:
            found.append(f"task {name}: stored, not given")
        elif a != b:
            found.append(f"task {name}: stored with digest {a[:12]}, given with {b[:12]}")
    for what in ("policy", "policy_version", "provider"):
        a, b = getattr(stored, what), getattr(given, what)
        if a != b:
            found.append(f"{what.replace('_', ' ')}: stored {_show(a)}, given {_show(b)}")
    return tuple(found)


def may_differ(key: str) -> bool:
    """Whether a dotted key may differ between two sessions of one run."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in MAY_DIFFER)


def _grows(key: str, stored: object, given: object) -> bool:
    both = isinstance(stored, int) and isinstance(given, int)
    return key == "attempts" and both and given > stored  # type: ignore[operator]  # both are int


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise not_writable(f"{path} cannot be made", e) from e


def not_writable(what: str, e: OSError) -> RunFolderError | StoreError:
    """The error of a place that a user named: theirs to mend, or the disk's."""
    if e.errno in ANOTHER_PLACE:
        return RunFolderError(f"{what}: {e.strerror}; give a place that can be written")
    return StoreError(f"{what}: {e.strerror or e}")


def _adopt(path: Path, given: RunManifest) -> RunManifest:
    """The manifest to go on with: the given one, under the stored run's name if there is one."""
    if not (path / RUN_FILE).exists():
        return given
    stored = read_manifest(path)
    found = differences(stored, given)
    if found:
        lines = "\n".join(f"  {line}" for line in found)
        raise RunFolderError(
            f"{path} is a run of another configuration:\n{lines}\n"
            "Use another folder with --out, or the stored values to go on with this run;"
            f" `headrace resume {path}` takes them from it"
        )
    return msgspec.structs.replace(
        given, run=stored.run, created=stored.created, headrace=stored.headrace
    )


def _refuse_foreign(path: Path) -> None:
    """Refuse what is neither a run, nor empty, nor absent."""
    try:
        names = {entry.name for entry in path.iterdir()}
    except FileNotFoundError:
        return
    except NotADirectoryError:
        there = path if path.exists() else next(p for p in path.parents if p.exists())
        raise RunFolderError(f"{there} is a file; expected a folder for the run") from None
    except OSError as e:
        raise RunFolderError(f"{path} cannot be read: {e.strerror or e}") from e
    # A process that died before `run.json` was in place leaves only these two.
    foreign = sorted(n for n in names if n != LOCK_FILE and not n.startswith(f".{RUN_FILE}."))
    if RUN_FILE not in names and foreign:
        shown = ", ".join(foreign[:3])
        raise RunFolderError(
            f"{path} is neither empty nor a run (it has {shown}); use another folder with --out"
        )


def _parse_manifest(file: Path, text: bytes) -> RunManifest:
    class Version(msgspec.Struct):
        schema: int

    try:
        schema = msgspec.json.decode(text, type=Version).schema
        if schema > RUN_SCHEMA:
            raise RunFolderError(
                f"{file} was written by a newer headrace (schema {schema}; this one reads up to"
                f" {RUN_SCHEMA}). Upgrade headrace to use it"
            )
        return msgspec.json.decode(text, type=RunManifest)
    except msgspec.DecodeError as e:
        raise RunFolderError(f"{file} is not the description of a run: {e}") from e


def _pretty(manifest: RunManifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def _show(value: object) -> str:
    return value if isinstance(value, str) else repr(value)
