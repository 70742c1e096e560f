"""The shards of a run that goes on, followed: each record once, soon after it is durable.

Rules: nothing is told twice and nothing is left out, whoever writes, seals, dies or resumes: the
records are those that `reader.read_episodes` gives of the finished run. Memory holds one block.
It waits for nothing: the caller reads again when it likes, and a read of what has not changed
looks at the sizes of the unsealed shards and no more. It writes nothing and holds no lock.
"""

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from headrace.engine import shards
from headrace.engine.locks import holding
from headrace.engine.reader import SHARDS, OnDamage, Place, list_shards, placed, report
from headrace.engine.run_folder import LOCK_FILE
from headrace.engine.shards import Block, Damage, End
from headrace.errors import RunFolderError
from headrace.types import Episode

SEALED: Final = -1
"""In place of an offset: everything in the shard has been told."""


class _Look(NamedTuple):
    """What a shard was like when it was read to its end."""

    inode: int
    size: int
    changed_ns: int
    torn: bool
    """Its end might have been torn, and was no damage."""


class Tail:
    """Follows one run. Blocking, used by one thread at a time; a context manager."""

    def __init__(self, run: Path, *, on_damage: OnDamage | None = None) -> None:
        """`on_damage` None: the first damage is raised as `RunFolderError`."""
        self._folder = run / SHARDS
        self._on_damage = on_damage
        self._offsets: dict[Path, int] = {}
        """Where the next frame of each shard begins, or `SEALED`."""
        self._looks: dict[Path, _Look] = {}
        self._pass: Generator[list[tuple[Place, Episode]], None, None] | None = None

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
        """Let go of the shard that is open. Idempotent; a further read goes on after it."""
        if self._pass is not None:
            self._pass.close()
            self._pass = None

    def read(self) -> list[tuple[Place, Episode]]:
        """The records of the next block, with where they lie; empty when there is none for now.

        Of one shard in the order of storing, of several the lower number first. An episode that
        was tried again comes again: the record in the later place counts. After an empty read the
        next one looks at every shard anew.
        """
        if self._pass is None:
            self._pass = self._records()
        try:
            return next(self._pass)
        except StopIteration:
            self._pass = None
            return []

    def _records(self) -> Generator[list[tuple[Place, Episode]], None, None]:
        paths = list_shards(self._folder)
        torn = shards.may_be_torn(paths)
        for path in paths:
            if self._offsets.get(path) == SEALED:
                continue
            look = _look(path, torn=path in torn)
            if look is None or look == self._looks.get(path):
                continue
            for block in self._blocks(path, torn=look.torn):
                yield list(placed(path, block))
            self._looks[path] = look

    def _blocks(self, path: Path, *, torn: bool) -> Iterator[Block]:
        """What is new in a shard; keeps where it ended."""
        start = self._offsets.get(path, 0)
        try:
            for item in shards.scan(path, last=torn, start=start):
                match item:
                    case Block():
                        self._offsets[path] = item.offset + item.header.frame_bytes
                        yield item
                    case Damage():
                        report(item, self._on_damage)
                    case End():
                        self._offsets[path] = SEALED if item.sealed else item.offset
        except RunFolderError as e:
            # Whoever resumes a run removes an empty last shard: its number comes again.
            if not isinstance(e.__cause__, FileNotFoundError):
                raise


def session(run: Path) -> int | None:
    """A number for the session that works on a run now, another for each; None: nobody does.

    When nobody does, all that is ever stored is readable, until the run is resumed. Blocking.
    """
    return holding(run / LOCK_FILE)


def _look(path: Path, *, torn: bool) -> _Look | None:
    """None: it is not there any more."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return _Look(found.st_ino, found.st_size, found.st_mtime_ns, torn)
