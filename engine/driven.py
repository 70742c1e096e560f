"""What steers, shows and tells of a run's episodes needs of whoever drives them.

Rule: one driver (`driver.py`) or several processes with one each (`fleet.py`) look the same.
"""

from collections.abc import Iterator
from typing import Protocol

from headrace.engine.scheduler import Bounds, Snapshot
from headrace.engine.status import Slow
from headrace.sandbox.base import Footprint


class Starts(Protocol):
    """Whether sandboxes can be started: see `breaker.py`."""

    @property
    def opened(self) -> int: ...

    @property
    def is_open(self) -> bool: ...


class Warmth(Protocol):
    """Sandboxes that are opened ahead: see `sandbox/pool.py`."""

    footprint: Footprint

    @property
    def warm(self) -> int: ...

    @property
    def most(self) -> int: ...

    @most.setter
    def most(self, most: int) -> None: ...

    @property
    def hits(self) -> int: ...

    @property
    def misses(self) -> int: ...


class Driven(Protocol):
    """Episodes under way, and the bounds on them."""

    @property
    def bounds(self) -> Bounds: ...

    @bounds.setter
    def bounds(self, bounds: Bounds) -> None: ...

    @property
    def breaker(self) -> Starts: ...

    @property
    def wants(self) -> bool: ...

    @property
    def retries(self) -> int: ...

    @property
    def planned(self) -> int: ...

    @property
    def finished(self) -> int: ...

    @property
    def dropped(self) -> int: ...

    def snapshot(self) -> Snapshot: ...

    def under_way(self) -> Iterator[Slow]: ...
