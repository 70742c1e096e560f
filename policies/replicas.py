"""Which of several equal model servers gets the next call of a session.

Rule: pure. A session stays where its prefix is cached. A new one goes where the fewest calls are
in flight. A session moves only when its replica is down, takes several times as long for a token
as the quickest, or has so many more calls in flight than the least busy one that recomputing the
prefix costs less than the wait; then it stays there. A slow replica is tried again after a while.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from headrace.errors import ContractError

OVERLOAD = 1.5
"""Calls in flight of a replica over those of the least busy one, plus `SLACK`, before it moves."""
SLACK = 8
REMEMBERED = 100_000
"""Sessions whose replica is known; the one that called longest ago is forgotten first."""
SLOW = 4.0
"""Seconds for a token over those of the quickest replica from which on one is avoided,"""
LOST_S = 1.0
"""if it loses so much with each answer,"""
AVOIDED_S = 60.0
"""for so long; then it has to prove itself again."""
PROVEN = 8
"""Answers before a replica's pace counts."""
_KEPT = 0.9
"""Weight of what was known against one more answer: about the last ten count."""


class Call(NamedTuple):
    """One call in flight."""

    replica: int
    began_s: float


class Replicas:
    """The calls in flight of each replica, how fast it answers, and where sessions are."""

    def __init__(self, n: int, *, overload: float = OVERLOAD, slack: int = SLACK) -> None:
        if n < 1:
            raise ContractError(f"expected at least one replica, found {n}")
        self._calls = [0] * n
        self._paces = [_Pace() for _ in range(n)]
        self._down: set[int] = set()
        self._slow_until_s: dict[int, float] = {}
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

    @property
    def slow(self) -> list[int]:
        """Those that are avoided for their pace."""
        return sorted(self._slow_until_s)

    def begin(self, session: str, now_s: float, *, avoid: Collection[int] = ()) -> Call:
        """Where a call of `session` goes; `end` is due with it. All down: to its own.

        `avoid`: replicas at which this very call has failed.
        """
        self._forgive(now_s)
        home = self._home.get(session)
        least = self._least(avoid)
        chosen = least if home is None or self._must_move(home, least, avoid) else home
        self.moved += home is not None and chosen != home
        self._home[session] = chosen
        self._home.move_to_end(session)
        if len(self._home) > REMEMBERED:
            self._home.popitem(last=False)
        self._calls[chosen] += 1
        return Call(chosen, now_s)

    def end(self, call: Call, now_s: float, *, tokens: int = 0) -> None:
        """It is over, with so many tokens; 0: it failed, which says nothing of the pace."""
        i = call.replica
        if self._calls[i] < 1:
            raise ContractError(f"replica {i} has no call in flight")
        self._calls[i] -= 1
        if tokens > 0:
            self._paces[i].learn(now_s - call.began_s, tokens)
            self._judge(now_s)

    def forget(self, session: str) -> None:
        """The session is over. Unknown ones are fine."""
        self._home.pop(session, None)

    def down(self, replica: int) -> None:
        """It does not answer; its sessions move with their next call."""
        self._down.add(replica)

    def back(self, replica: int) -> None:
        """It answers again, with an empty cache."""
        if replica in self._down:
            self._down.discard(replica)
            self._paces[replica] = _Pace()
            self._slow_until_s.pop(replica, None)

    # --- where to ---

    def _least(self, avoid: Collection[int]) -> int:
        """The least busy replica of the best kind there is; equals take turns."""
        n = len(self._calls)
        if n == 1:
            return 0
        order = [(self._next + i) % n for i in range(n)]
        best = min(self._badness(i, avoid) for i in order)
        candidates = [i for i in order if self._badness(i, avoid) == best]
        least = min(candidates, key=self._calls.__getitem__)
        self._next = (least + 1) % n
        return least

    def _badness(self, replica: int, avoid: Collection[int]) -> int:
        if replica in self._down:
            return 3
        return 2 if replica in avoid else int(replica in self._slow_until_s)

    def _must_move(self, home: int, least: int, avoid: Collection[int]) -> bool:
        here, there = self._badness(home, avoid), self._badness(least, avoid)
        if here != there:
            return here > there
        return self._calls[home] > self._overload * self._calls[least] + self._slack

    # --- pace ---

    def _judge(self, now_s: float) -> None:
        if len(self._paces) == 1:
            return  # none is quicker
        proven = {i: self._paces[i] for i in self.up if self._paces[i].answers >= PROVEN}
        quickest = min((pace.s_per_token for pace in proven.values()), default=0.0)
        for i, pace in proven.items():
            slow = pace.s_per_token > SLOW * quickest and pace.lost_s(quickest) > LOST_S
            if slow and i not in self._slow_until_s:
                self._slow_until_s[i] = now_s + AVOIDED_S

    def _forgive(self, now_s: float) -> None:
        for replica in [i for i, until_s in self._slow_until_s.items() if until_s <= now_s]:
            del self._slow_until_s[replica]
            self._paces[replica] = _Pace()


class _Pace:
    """How long a replica takes for a token, by its latest answers."""

    def __init__(self) -> None:
        self.answers = 0
        self._weight = self._seconds = self._tokens = 0.0

    def learn(self, seconds: float, tokens: int) -> None:
        self.answers += 1
        self._weight = _KEPT * self._weight + 1
        self._seconds = _KEPT * self._seconds + seconds
        self._tokens = _KEPT * self._tokens + tokens

    @property
    def s_per_token(self) -> float:
        return self._seconds / self._tokens

    def lost_s(self, s_per_token: float) -> float:
        """What an answer takes longer than at such a pace."""
        return (self._seconds - self._tokens * s_per_token) / self._weight
