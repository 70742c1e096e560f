"""Who of several engine processes gets which episodes, and how many each may have live.

Rule: pure; no clock, no I/O. `Deal`: every owed episode is with one process at a time, and so is
every group; what a process lost comes first in line again. A process gets no more than it needs to
stay busy, so that all end about together. `Shares`: what all processes may have live together stays
within the bound, also while one gives up places and another takes them over.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from headrace.engine.parts import Planned
from headrace.errors import ContractError
from headrace.types import Record


class Lost(Record, frozen=True, kw_only=True):
    """What becomes of the episodes that a process had."""

    again: tuple[str, ...] = ()
    """Dealt again."""
    owed: tuple[str, ...] = ()
    """Their tries are spent, or the run is stopping."""


class Deal:
    """The plan of a session, in order, over processes that come and go."""

    def __init__(self, planned: Sequence[Planned], *, tries: int, held: Collection[str]) -> None:
        """`held`: names of tasks that wait for an image. `tries`: of one episode, by all."""
        self._planned = {one.id: one for one in planned}
        self._max_tries = tries
        self._tries: dict[str, int] = {}
        self._line: deque[list[str]] = deque()
        self._held: dict[str, list[list[str]]] = {}
        names = set(held)
        for group in self._grouped(self._planned):
            name = self._planned[group[0]].task.name
            if name in names:
                self._held.setdefault(name, []).append(group)
            else:
                self._line.append(group)
        self._left = len(self._planned)
        self._with: dict[int, dict[str, None]] = {}
        self._started: set[str] = set()
        self._stopped = False

    @property
    def left(self) -> int:
        """Dealt to nobody yet, those that are held included."""
        return self._left

    @property
    def idle(self) -> bool:
        """Nothing is left and nobody has anything."""
        return self._left == 0 and not any(self._with.values())

    def join(self, worker: int) -> None:
        """A process is ready."""
        if worker in self._with:
            raise ContractError(f"process {worker} is there already")
        self._with[worker] = {}

    def outstanding(self, worker: int) -> int:
        """Dealt to it and not ended."""
        return len(self._with.get(worker, ()))

    def tries(self, ids: Collection[str]) -> dict[str, int]:
        """How often each was tried by processes that died of it, or with it; 0 is left out."""
        return {id: self._tries[id] for id in ids if id in self._tries}

    def release(self, tasks: Collection[str]) -> None:
        """The episodes of these tasks may be dealt."""
        for name in tasks:
            self._line.extend(self._held.pop(name, ()))

    def deal(self, worker: int, wanted: int) -> list[Planned]:
        """Whole groups in order until it has `wanted`, or its part of what is not ended.

        A group is given whole where any of it is, so it may come to have more.
        """
        its = self._with[worker]
        everything = self._left + sum(map(len, self._with.values()))
        most = min(wanted, -(-everything // len(self._with)))
        dealt: list[Planned] = []
        while self._line and len(its) < most:
            group = self._line.popleft()
            its.update(dict.fromkeys(group))
            dealt += [self._planned[id] for id in group]
        self._left -= len(dealt)
        return dealt

    def started(self, id: str) -> None:
        """It is being tried."""
        self._started.add(id)

    def ended(self, worker: int, id: str) -> bool:
        """It is durable, was let go, or is owed. False when the process did not have it."""
        self._started.discard(id)
        return self._with.get(worker, {}).pop(id, "") is None

    def has(self, worker: int) -> tuple[str, ...]:
        """What is with a process, in the order it was dealt."""
        return tuple(self._with.get(worker, ()))

    def lost(self, worker: int) -> Lost:
        """A process is gone: what it had goes to others, group by group, ahead of the rest."""
        its = self._with.pop(worker, {})
        for id in self._started.intersection(its):
            self._tries[id] = self._tries.get(id, 0) + 1
            self._started.discard(id)
        again = [id for id in its if self._tries.get(id, 0) < self._max_tries]
        if self._stopped or not self._with:
            again = []
        self._line.extendleft(reversed(self._grouped(again)))
        self._left += len(again)
        kept = set(again)
        return Lost(again=tuple(again), owed=tuple(id for id in its if id not in kept))

    def stop(self) -> int:
        """Nothing more is dealt; how many are owed for it."""
        self._stopped = True
        owed, self._left = self._left, 0
        self._line.clear()
        self._held.clear()
        return owed

    def _grouped(self, ids: Iterable[str]) -> list[list[str]]:
        groups: dict[str, list[str]] = {}
        for id in ids:
            groups.setdefault(self._planned[id].task.digest, []).append(id)
        return list(groups.values())


def share(total: int, wants: Mapping[int, int]) -> dict[int, int]:
    """`total` places over those who want some: equal parts, and what one does not want goes on.

    No one gets more than it wants. All together get `total`, or all they want.
    """
    parts = dict.fromkeys(wants, 0)
    left = max(0, total)
    still = sorted(worker for worker in wants if wants[worker] > 0)
    while left > 0 and still:
        each, odd = divmod(left, len(still))
        for at, worker in enumerate(still):
            given = min(each or int(at < odd), wants[worker] - parts[worker])
            parts[worker] += given
            left -= given
        still = [worker for worker in still if parts[worker] < wants[worker]]
    return parts


def split(total: int, workers: Collection[int], *, least: int = 0) -> dict[int, int]:
    """`total` in equal parts, the odd ones to the first; at least `least` each."""
    parts = share(total, dict.fromkeys(workers, total))
    return {worker: max(least, part) for worker, part in parts.items()}


class _Place(msgspec.Struct):
    """What one process may have live, as far as is known."""

    turn: int = 0
    """Counts the bounds it was sent."""
    told: int = 0
    """The last of them."""
    obeyed: int = 0
    """The one it last said it keeps,"""
    live: int = 0
    """and how many it had then."""
    under_way: deque[tuple[int, int]] = msgspec.field(default_factory=deque)
    """Turns and bounds it may not have heard of."""

    @property
    def most(self) -> int:
        """It may have so many at this moment."""
        return max(self.obeyed, self.live, *(bound for _, bound in self.under_way), 0)

    def tell(self, bound: int) -> None:
        self.turn += 1
        self.told = bound
        self.under_way.append((self.turn, bound))

    def said(self, turn: int, live: int) -> None:
        self.live = live
        while self.under_way and self.under_way[0][0] <= turn:
            self.obeyed = self.under_way.popleft()[1]


class Shares:
    """The live episodes of all processes together, within one bound."""

    def __init__(self) -> None:
        self._places: dict[int, _Place] = {}

    def join(self, worker: int) -> None:
        self._places[worker] = _Place()

    def leave(self, worker: int) -> None:
        self._places.pop(worker, None)

    def said(self, worker: int, *, turn: int, live: int) -> None:
        """What a process keeps to, as the number of the bound it heard of last, and what it has."""
        self._places[worker].said(turn, live)

    def last(self, worker: int) -> tuple[int, int]:
        """The bound that holds for it, and its number, to be sent along."""
        place = self._places[worker]
        return place.told, place.turn

    @property
    def committed(self) -> int:
        """What all together may have live at this moment."""
        return sum(place.most for place in self._places.values())

    def assign(self, total: int, wants: Mapping[int, int]) -> dict[int, int]:
        """The bounds to send now, only those that change.

        Who is to have fewer is told at once; who is to have more gets what others have given up.
        """
        wanted = share(total, {worker: wants.get(worker, 0) for worker in self._places})
        changed: dict[int, int] = {}
        for worker, place in self._places.items():
            if wanted[worker] < place.told:
                changed[worker] = wanted[worker]
                place.tell(wanted[worker])
        for worker, place in self._places.items():
            room = total - (self.committed - place.most)
            more = min(wanted[worker], room)
            if more > place.told:
                changed[worker] = more
                place.tell(more)
        return changed
