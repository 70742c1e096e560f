"""When a group is complete without its stragglers, and which tasks go first.

Rule: pure; `now` is an argument. With `enough` set, a group that has so many graded episodes lets
the others go once they have taken longer than `patience` times the slowest of those graded. What
is let go leaves no record and is not owed. Infrastructure failures do not count as graded.

To let stragglers go favours short trajectories: whoever trains or reports on such groups should
know that, so the summary counts what was let go.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from headrace.errors import ContractError

PATIENCE = 1.5


class _Group(msgspec.Struct):
    graded: int = 0
    slowest_s: float = 0.0
    under_way: dict[str, float] = msgspec.field(default_factory=dict)
    """When each began, by episode."""


class Groups:
    """The groups of one run that are under way."""

    def __init__(self, enough: int | None, patience: float = PATIENCE) -> None:
        """`enough` None: every group waits for all of its episodes."""
        if (enough is not None and enough < 1) or patience < 1:
            raise ContractError(f"expected at least 1 and 1.0, found {enough} and {patience}")
        self._enough = enough
        self._patience = patience
        self._groups: dict[str, _Group] = {}
        self._waiting: set[str] = set()
        """Complete groups of which something is under way."""

    def known(self, group: str, graded: int) -> None:
        """So many of the group were graded in an earlier session; how long they took is unknown."""
        self._of(group).graded += graded
        self._look(group)

    def graded(self, group: str) -> int:
        """How many of it are graded."""
        return self._of(group).graded

    def begun(self, group: str, id: str, now: float) -> None:
        """An episode was admitted, for the first time or again."""
        self._of(group).under_way[id] = now
        self._look(group)

    def ended(self, group: str, id: str, now: float, *, graded: bool) -> None:
        """An episode is durable, was queued again, or was cancelled. Unknown ones are fine."""
        one = self._of(group)
        began = one.under_way.pop(id, None)
        if graded:
            one.graded += 1
            one.slowest_s = max(one.slowest_s, 0.0 if began is None else now - began)
        self._look(group)

    def complete(self, group: str) -> bool:
        """Whether nothing more of the group need start."""
        return self._enough is not None and self._of(group).graded >= self._enough

    def stragglers(self, now: float) -> list[str]:
        """Episodes to let go now."""
        return [id for late_at, id in self._deadlines() if now > late_at]

    def next_at(self, since: float = -math.inf) -> float | None:
        """After this moment the next straggler is let go, as things stand; None: there is none.

        Those whose time was over before `since` are left out.
        """
        return min((at for at, _ in self._deadlines() if at >= since), default=None)

    def _deadlines(self) -> Iterator[tuple[float, str]]:
        for name in self._waiting:
            group = self._groups[name]
            for id, began in group.under_way.items():
                yield began + self._patience * group.slowest_s, id

    def _look(self, name: str) -> None:
        group = self._groups[name]
        if self.complete(name) and group.slowest_s > 0 and group.under_way:
            self._waiting.add(name)
        else:
            self._waiting.discard(name)

    def _of(self, group: str) -> _Group:
        return self._groups.setdefault(group, _Group())


def longest_first(groups: Sequence[str], seconds: Mapping[str, float]) -> list[str]:
    """Groups with the longest history first; those without one before all, in their order.

    A task nobody has seen may be the longest: begun last, it would be the run's tail.
    """
    unknown = [group for group in groups if group not in seconds]
    known = [group for group in groups if group in seconds]
    return [*unknown, *sorted(known, key=seconds.__getitem__, reverse=True)]
