"""The groups of a run that goes on, until each has yielded its pairs.

Rule: pure, and sound: what a group yields on the way is what its rules make of it when the run has
ended, in whatever order the attempts come. So a rule whose choice a later attempt can change waits
until the group is complete, and a rule waits for those before it, which may make the same pair.

What it does not do: it does not know whether an attempt that failed is tried again; it is told.
"""

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

import msgspec

from headrace.preferences.attempt import Attempt
from headrace.preferences.pairing import Proposed, propose
from headrace.preferences.rules import Rule
from headrace.types import Record

_TOO_FEW = frozenset({"alone", "too_few"})
"""Reasons (see `pairing.REASONS`) that further attempts may do away with."""


class Found(NamedTuple):
    """A pair of one group, and the rule that made it."""

    rule: Rule
    proposed: Proposed
    before: tuple[Rule, ...] = ()
    """Earlier rules that made a pair of the same two; theirs comes first."""


class When(Enum):
    """When a rule can say what it makes of a group."""

    EACH = "each"
    """Of any two attempts as soon as both are there: no other attempt changes it."""
    FIRST = "first"
    """When the first attempts by sample are there, as many as it takes."""
    COMPLETE = "complete"
    """When no attempt is to come."""


class PendingSnapshot(Record, frozen=True, kw_only=True):
    """What waits."""

    groups: int
    attempts: int
    done: int
    """Groups that have yielded everything."""


class _Group(msgspec.Struct):
    attempts: dict[str, Attempt] = msgspec.field(default_factory=dict)
    """The newest record of each, by id."""
    open: set[str] = msgspec.field(default_factory=set)
    """Those that may be tried again."""
    yielded: list[set[tuple[str, str]]] = msgspec.field(default_factory=list)
    """By rule: the pairs it has made, as chosen and rejected id."""
    decided: set[int] = msgspec.field(default_factory=set)
    """Rules that make no more pairs."""

    def final(self) -> list[Attempt]:
        """Those that stay as they are, by sample."""
        there = [one for id, one in self.attempts.items() if id not in self.open]
        return sorted(there, key=lambda one: one.sample)


class Pending:
    """The groups of one run under a sequence of rules."""

    def __init__(self, rules: Sequence[Rule], planned: int | None) -> None:
        """`planned`: attempts at each task; None: unknown, so a group is complete at the end."""
        self._rules = tuple((rule, when(rule)) for rule in rules)
        self._planned = planned
        self._groups: dict[tuple[str, str], _Group] = {}
        self._done: set[tuple[str, str]] = set()

    def snapshot(self) -> PendingSnapshot:
        return PendingSnapshot(
            groups=len(self._groups),
            attempts=sum(len(group.attempts) for group in self._groups.values()),
            done=len(self._done),
        )

    def __repr__(self) -> str:
        return f"Pending({self.snapshot()})"

    def offer(self, one: Attempt, *, final: bool = True) -> list[Found]:
        """The pairs that are certain now that this attempt is stored.

        `final` False: it does not count and may be tried again. Its newer record replaces it.
        """
        key = one.task_digest, one.policy_version
        if key in self._done:
            return []
        group = self._groups.setdefault(key, _Group(yielded=[set() for _ in self._rules]))
        if one.id in group.attempts and one.place < group.attempts[one.id].place:
            return []
        group.attempts[one.id] = one
        group.open.discard(one.id)
        if not final:
            group.open.add(one.id)
            return []
        found = list(self._look(group, complete=self._is_complete(group)))
        if len(group.decided) == len(self._rules):
            del self._groups[key]
            self._done.add(key)
        return found

    def finish(self) -> Iterator[Found]:
        """The pairs of what is left, now that nothing more is stored."""
        while self._groups:
            key, group = next(iter(self._groups.items()))
            group.open.clear()
            yield from self._look(group, complete=True)
            del self._groups[key]
            self._done.add(key)

    def _is_complete(self, group: _Group) -> bool:
        if self._planned is None or group.open:
            return False
        return len({one.sample for one in group.final()} & set(range(self._planned))) == (
            self._planned
        )

    def _look(self, group: _Group, *, complete: bool) -> Iterator[Found]:
        """What the rules make of a group now, in their order, and not before."""
        for number, (rule, at) in enumerate(self._rules):
            if number in group.decided:
                continue
            there = group.final()
            if at is When.FIRST and not complete:
                there = [one for place, one in enumerate(there) if one.sample == place]
            if at is When.COMPLETE and not complete:
                return
            proposal = propose(there, rule)
            if complete or (at is When.FIRST and not proposal.left_out.keys() & _TOO_FEW):
                group.decided.add(number)
            for proposed in proposal.pairs:
                two = proposed.chosen.id, proposed.rejected.id
                if two not in group.yielded[number]:
                    group.yielded[number].add(two)
                    earlier = zip(self._rules, group.yielded[:number], strict=False)
                    before = tuple(other for (other, _), made in earlier if two in made)
                    yield Found(rule, proposed, before)
            if at is When.FIRST and number not in group.decided:
                return


def when(rule: Rule) -> When:
    """When a rule can say what it makes of a group."""
    if rule.kind == "litecoder":
        return When.FIRST
    # `auto` compares rewards as soon as one attempt of the group has no tests.
    apart = rule.kind in ("all-margins", "near-miss") and rule.score != "auto"
    return When.EACH if apart and rule.per_task is None else When.COMPLETE
