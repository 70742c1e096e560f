"""Dealing a plan to engine processes, and their shares of the live episodes: pure."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headrace.engine.dealing import Deal, Shares, share, split
from headrace.engine.limits import EpisodeLimits
from headrace.engine.measured import Sampled, together
from headrace.engine.meters import Reservoir
from headrace.engine.parts import Planned
from headrace.errors import ContractError
from headrace.sandbox.base import Limits
from headrace.types import AgentRecipe, EnvironmentRecipe, Task, VerifierRecipe

LIMITS = EpisodeLimits(
    max_turns=5, max_tokens=None, agent_timeout_s=9.0, command_timeout_s=5.0, verifier_timeout_s=5
)
WORKERS = (1, 2, 3)


def plan(*sizes: int) -> list[Planned]:
    """A group of each size; group `n` is task `task-n`."""
    return [
        Planned(
            id=f"{group}.{sample}",
            task=Task(
                name=f"task-{group}",
                digest=f"digest-{group}",
                path="/nowhere",
                format="harbor",
                instruction="Do it.",
                environment=EnvironmentRecipe(),
                agent=AgentRecipe(),
                verifier=VerifierRecipe(),
            ),
            sample=sample,
            limits=LIMITS,
            sandbox=Limits(),
            network=False,
        )
        for group, size in enumerate(sizes)
        for sample in range(size)
    ]


def dealing(planned: list[Planned], **more: Any) -> Deal:
    deal = Deal(planned, **({"tries": 3, "held": ()} | more))
    for worker in WORKERS:
        deal.join(worker)
    return deal


def ids(dealt: list[Planned]) -> list[str]:
    return [one.id for one in dealt]


def test_a_plan_is_dealt_in_its_order_and_siblings_stay_together() -> None:
    deal = dealing(plan(2, 2, 2, 2, 2, 2))
    assert ids(deal.deal(1, 3)) == ["0.0", "0.1", "1.0", "1.1"]
    assert ids(deal.deal(2, 1)) == ["2.0", "2.1"]
    assert ids(deal.deal(1, 3)) == []
    deal.ended(1, "0.1")
    deal.ended(1, "1.0")
    assert ids(deal.deal(1, 3)) == ["3.0", "3.1"]


def test_a_short_plan_is_shared_even_when_one_could_take_it_all() -> None:
    deal = dealing(plan(1, 1, 1))
    assert [len(deal.deal(worker, 1000)) for worker in WORKERS] == [1, 1, 1]


def test_what_waits_for_an_image_is_dealt_once_it_is_there() -> None:
    deal = dealing(plan(1, 1), held=("task-0", "task-1"))
    assert deal.deal(1, 9) == []
    deal.release(["task-1"])
    assert ids(deal.deal(1, 9)) == ["1.0"]
    assert (deal.left, deal.idle) == (1, False)


def test_what_a_process_lost_goes_first_to_the_others_with_its_tries() -> None:
    deal = dealing(plan(2, 1, 1, 1, 1, 1))
    deal.deal(1, 2)
    deal.started("0.0")
    lost = deal.lost(1)
    assert (lost.again, lost.owed) == (("0.0", "0.1"), ())
    dealt = deal.deal(2, 2)
    assert ids(dealt) == ["0.0", "0.1"]
    assert deal.tries(ids(dealt)) == {"0.0": 1}


def test_what_made_too_many_processes_end_is_owed() -> None:
    deal = dealing(plan(1, 1, 1, 1), tries=1)
    deal.deal(1, 1)
    deal.started("0.0")
    assert deal.lost(1).owed == ("0.0",)
    assert ids(deal.deal(2, 9)) == ["1.0", "2.0"]


def test_what_the_last_process_lost_is_owed() -> None:
    deal = Deal(plan(1, 1), tries=3, held=())
    deal.join(1)
    deal.deal(1, 1)
    assert deal.lost(1).owed == ("0.0",)
    assert (deal.left, deal.stop(), deal.idle) == (1, 1, True)


def test_while_stopping_nothing_is_dealt_and_what_is_lost_is_owed() -> None:
    deal = dealing(plan(1, 1), held=("task-1",))
    deal.deal(1, 1)
    assert deal.stop() == 1
    deal.release(["task-1"])
    assert deal.deal(2, 9) == []
    assert deal.lost(1).owed == ("0.0",)


def test_a_process_that_comes_twice_is_a_bug() -> None:
    with pytest.raises(ContractError, match="there already"):
        dealing([]).join(1)


class DealMachine(RuleBasedStateMachine):
    """Every episode is with one process, in line, or ended; a group is with one process."""

    def __init__(self) -> None:
        super().__init__()
        self.planned = plan(3, 1, 2, 4, 1, 2)
        self.deal = Deal(self.planned, tries=2, held=("task-3",))
        self.at: dict[str, int] = {}
        self.over: Counter[str] = Counter()
        self.workers: list[int] = []
        for _ in range(3):
            self.join()

    def join(self) -> None:
        self.workers.append(len(self.workers) + 1)
        self.deal.join(self.workers[-1])
        self.alive = {*getattr(self, "alive", set()), self.workers[-1]}

    @rule(worker=st.integers(1, 3), wanted=st.integers(0, 8))
    def deals(self, worker: int, wanted: int) -> None:
        if worker in self.alive:
            for one in self.deal.deal(worker, wanted):
                assert one.id not in self.at and one.id not in self.over
                self.at[one.id] = worker

    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        if self.at:
            id = data.draw(st.sampled_from(sorted(self.at)))
            assert self.deal.ended(self.at.pop(id), id)
            self.over[id] += 1

    @rule(data=st.data())
    def starts(self, data: st.DataObject) -> None:
        if self.at:
            self.deal.started(data.draw(st.sampled_from(sorted(self.at))))

    @rule(worker=st.integers(1, 3))
    def dies(self, worker: int) -> None:
        if worker in self.alive:
            self.alive.discard(worker)
            had = {id for id, at in self.at.items() if at == worker}
            lost = self.deal.lost(worker)
            assert sorted((*lost.again, *lost.owed)) == sorted(had)
            for id in had:
                del self.at[id]
            self.over.update(lost.owed)

    @rule()
    def releases(self) -> None:
        self.deal.release(["task-3"])

    @invariant()
    def all_are_somewhere_once(self) -> None:
        assert max(self.over.values(), default=1) == 1
        assert len(self.at) + len(self.over) + self.deal.left == len(self.planned)
        for worker in self.alive:
            assert self.deal.outstanding(worker) == list(self.at.values()).count(worker)

    @invariant()
    def siblings_are_together(self) -> None:
        where: dict[str, set[int]] = {}
        for id, worker in self.at.items():
            where.setdefault(id.partition(".")[0], set()).add(worker)
        assert all(len(workers) == 1 for workers in where.values())


TestDealMachine = DealMachine.TestCase
TestDealMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

wants = st.dictionaries(st.integers(1, 6), st.integers(0, 50), max_size=6)


@given(st.integers(0, 100), wants)
def test_a_share_is_never_more_than_wanted_and_nothing_is_left_lying(
    total: int, wanted: dict[int, int]
) -> None:
    parts = share(total, wanted)
    assert sum(parts.values()) == min(total, sum(wanted.values()))
    assert all(0 <= parts[worker] <= wanted[worker] for worker in wanted)
    unserved = [parts[worker] for worker in wanted if parts[worker] < wanted[worker]]
    assert not unserved or max(parts.values()) - min(unserved) <= 1


@given(st.integers(0, 30), st.integers(1, 6), st.integers(0, 1))
def test_a_split_is_even_and_gives_everybody_the_least(total: int, n: int, least: int) -> None:
    parts = split(total, range(n), least=least)
    assert max(parts.values()) - min(parts.values()) <= 1
    assert min(parts.values()) >= least
    assert sum(parts.values()) == total or least


class SharesMachine(RuleBasedStateMachine):
    """Whatever arrives when: no more episodes are live together than the bound allows.

    The processes here start as many as they may the moment they are told, and end some at times.
    """

    TOTAL = 12

    def __init__(self) -> None:
        super().__init__()
        self.shares = Shares()
        self.sent: dict[int, list[tuple[int, int]]] = {worker: [] for worker in WORKERS}
        self.heard = dict.fromkeys(WORKERS, 0)
        self.live = dict.fromkeys(WORKERS, 0)
        for worker in WORKERS:
            self.shares.join(worker)

    @rule(wanted=st.fixed_dictionaries({w: st.integers(0, 20) for w in WORKERS}))
    def shared_out(self, wanted: dict[int, int]) -> None:
        for worker, bound in self.shares.assign(self.TOTAL, wanted).items():
            told, turn = self.shares.last(worker)
            assert told == bound
            self.sent[worker].append((turn, bound))

    @rule(worker=st.sampled_from(WORKERS))
    def arrives(self, worker: int) -> None:
        if self.sent[worker]:
            self.heard[worker], bound = self.sent[worker].pop(0)
            self.live[worker] = max(self.live[worker], bound)

    @rule(worker=st.sampled_from(WORKERS), n=st.integers(1, 5))
    def some_end(self, worker: int, n: int) -> None:
        self.live[worker] = max(0, self.live[worker] - n)

    @rule(worker=st.sampled_from(WORKERS))
    def says(self, worker: int) -> None:
        self.shares.said(worker, turn=self.heard[worker], live=self.live[worker])

    @invariant()
    def the_bound_holds(self) -> None:
        assert sum(self.live.values()) <= self.TOTAL
        assert self.shares.committed <= self.TOTAL


TestSharesMachine = SharesMachine.TestCase
TestSharesMachine.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)


def test_a_bound_that_is_cut_is_told_at_once() -> None:
    shares = Shares()
    shares.join(1)
    shares.join(2)
    many = {1: 99, 2: 99}
    assert shares.assign(10, many) == {1: 5, 2: 5}
    assert shares.assign(4, many) == {1: 2, 2: 2}


def test_places_go_on_to_who_wants_them_once_they_are_given_up() -> None:
    shares = Shares()
    shares.join(1)
    shares.join(2)
    shares.assign(10, {1: 99, 2: 99})
    assert shares.assign(10, {1: 1, 2: 99}) == {1: 1}
    shares.said(2, turn=1, live=5)
    shares.said(1, turn=2, live=3)
    assert shares.assign(10, {1: 1, 2: 99}) == {2: 7}
    shares.said(1, turn=2, live=1)
    assert shares.assign(10, {1: 1, 2: 99}) == {2: 9}


def sampled(*values: float) -> Sampled:
    return Sampled(seen=len(values), total=sum(values), kept=values)


def test_samples_of_several_processes_are_one_sample() -> None:
    both = together([sampled(1.0, 2.0), sampled(3.0)])
    assert (sorted(both.kept), both.seen, both.total) == ([1.0, 2.0, 3.0], 3, 6.0)


def test_a_process_that_saw_more_weighs_more() -> None:
    busy, idle = Reservoir(), Reservoir()
    for _ in range(90_000):
        busy.add(1.0)
    for _ in range(9_000):
        idle.add(0.0)
    both = together([Sampled(seen=r.seen, total=r.total, kept=r.kept) for r in (busy, idle)])
    assert (both.seen, both.total) == (99_000, 90_000.0)
    assert 0.85 < sum(both.kept) / len(both.kept) < 0.95
