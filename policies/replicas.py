"""Which of several equal model servers gets the next call of a session.

Rule: pure. A session stays where its prefix is cached. A new one goes where the fewest calls are
in flight. A session moves only when its replica is down, or has so many more calls in flight than
the least busy one that recomputing the prefix costs less than the wait; then it stays there.
"""

from collections import OrderedDict
from collections.abc import Sequence

from headrace.errors import ContractError

OVERLOAD = 1.5
"""Calls in flight of a replica over those of the least busy one, plus `SLACK`, before it moves."""
SLACK = 8
REMEMBERED = 100_000
"""Sessions whose replica is known; the one that called longest ago is forgotten first."""


class Replicas:
    """The calls in flight of each replica, and where sessions are."""

    def __init__(self, n: int, *, overload: float = OVERLOAD, slack: int = SLACK) -> None:
        if n < 1:
            raise ContractError(f"expected at least one replica, found {n}")
        self._calls = [0] * n
        self._down: set[int] = set()
        self._home: OrderedDict[str, int] = OrderedDict()
        self._overload, self._slack = overload, slack
        self._next = 0
        self.moved = 0
        """Calls whose session had to leave the replica that has its prefix."""

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def calls(self) -> Sequence[int]:
        """In flight, by replica."""
        return tuple(self._calls)

    @property
    def up(self) -> list[int]:
        return [i for i in range(len(self._calls)) if i not in self._down]

    def begin(self, session: str) -> int:
        """The replica for a call of `session`; `end` is due with it. All down: its own."""
        home = self._home.get(session)
        least = self._least()
        chosen = least if home is None or self._must_move(home, least) else home
        self.moved += home is not None and chosen != home
        self._home[session] = chosen
        self._home.move_to_end(session)
        if len(self._home) > REMEMBERED:
            self._home.popitem(last=False)
        self._calls[chosen] += 1
        return chosen

    def end(self, replica: int) -> None:
        """A call there is over, however it ended."""
        if self._calls[replica] < 1:
            raise ContractError(f"replica {replica} has no call in flight")
        self._calls[replica] -= 1

    def forget(self, session: str) -> None:
        """The session is over. Unknown ones are fine."""
        self._home.pop(session, None)

    def down(self, replica: int) -> None:
        """It does not answer; its sessions move with their next call."""
        self._down.add(replica)

    def back(self, replica: int) -> None:
        """It answers again, with an empty cache."""
        self._down.discard(replica)

    def _least(self) -> int:
        """The least busy replica that is up; equals take turns."""
        n = len(self._calls)
        order = [(self._next + i) % n for i in range(n)]
        candidates = [i for i in order if i not in self._down] or order
        least = min(candidates, key=self._calls.__getitem__)
        self._next = (least + 1) % n
        return least

    def _must_move(self, home: int, least: int) -> bool:
        if home in self._down:
            return least not in self._down
        return self._calls[home] > self._overload * self._calls[least] + self._slack
