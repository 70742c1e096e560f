"""The scheduler's invariants, under any order of events."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec import structs

from headrace.engine.scheduler import ENDED, LIVE, After, Bounds, Scheduler, Stage
from headrace.errors import ContractError

BOUNDS = Bounds(live=4, preparing=2, verifying=1, tries=2, retries=3)


class AnyOrder(RuleBasedStateMachine):
    """Random events; the machine keeps its own book of what it was granted."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(BOUNDS)
        self.now = 0.0
        self.planned: list[str] = []
        self.granted: dict[str, int] = {}
        self.stored_after_failure: set[str] = set()

    def _pick(self, *stages: Stage) -> str | None:
        return next((id for id in self.planned if self.scheduler.stage(id) in stages), None)

    @rule()
    def submit(self) -> None:
        id = f"e{len(self.planned)}"
        self.planned.append(id)
        self.scheduler.submit(id, self.now)

    @rule(seconds=st.floats(0, 10))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(starts=st.none() | st.integers(0, 2))
    def some_grants(self, starts: int | None) -> None:
        self.grant(starts)

    def grant(self, starts: int | None = None) -> None:
        ahead = self.scheduler.ahead(len(self.planned))
        grants = self.scheduler.grants(starts)
        for grant in grants:
            assert grant.stage in {Stage.PREPARE, Stage.VERIFY}
            if grant.stage is Stage.PREPARE:
                self.granted[grant.id] = self.granted.get(grant.id, 0) + 1
        begun = [grant.id for grant in grants if grant.stage is Stage.PREPARE]
        assert begun == ahead[: len(begun)], "what was said to come next comes next"
        assert starts is None or len(begun) <= starts
        if begun:
            counts, bounds = self.scheduler.snapshot(), self.scheduler.bounds
            assert counts.live <= bounds.live
            assert counts[Stage.PREPARE] <= bounds.preparing
        if starts is None:
            assert self.scheduler.grants() == []

    @rule(live=st.integers(1, BOUNDS.live), preparing=st.integers(1, BOUNDS.preparing))
    def other_bounds(self, live: int, preparing: int) -> None:
        before = self.scheduler.snapshot()
        self.scheduler.rebound(structs.replace(BOUNDS, live=live, preparing=preparing))
        assert self.scheduler.snapshot() == before, "nothing is ended for it"

    @rule()
    def prepared(self) -> None:
        if id := self._pick(Stage.PREPARE):
            self.scheduler.prepared(id)

    @rule()
    def acted(self) -> None:
        if id := self._pick(Stage.ACT):
            self.scheduler.acted(id, self.now)

    @rule()
    def again(self) -> None:
        if id := self._pick(Stage.VERIFY):
            tries = self.scheduler.tries(id)
            self.scheduler.again(id)
            assert self.scheduler.stage(id) is Stage.ACT
            assert self.scheduler.tries(id) == tries

    @rule()
    def verified(self) -> None:
        if id := self._pick(Stage.VERIFY):
            self.scheduler.verified(id)

    @rule()
    def finished(self) -> None:
        if id := self._pick(Stage.STORE):
            self.scheduler.finished(id)

    @rule(stage=st.sampled_from(sorted(LIVE - {Stage.STORE})), retry=st.booleans())
    def failed(self, stage: Stage, retry: bool) -> None:
        if id := self._pick(stage):
            after = self.scheduler.failed(id, self.now, retry=retry)
            if after is After.STORE:
                assert (
                    not retry
                    or self.granted[id] == BOUNDS.tries
                    or self.scheduler.retries == BOUNDS.retries
                )
                self.stored_after_failure.add(id)

    @rule(stage=st.sampled_from(sorted(LIVE - {Stage.STORE})))
    def failed_through_no_fault_of_its_own(self, stage: Stage) -> None:
        if id := self._pick(stage):
            after = self.scheduler.failed(id, self.now, counts=False)
            assert after is not After.STORE
            self.granted[id] -= after is After.RETRY

    @rule(stage=st.sampled_from(sorted(frozenset(Stage) - ENDED)))
    def cancelled(self, stage: Stage) -> None:
        if id := self._pick(stage):
            self.scheduler.cancelled(id)

    @rule(stage=st.sampled_from(sorted(frozenset(Stage) - ENDED)))
    def dropped(self, stage: Stage) -> None:
        if id := self._pick(stage):
            self.scheduler.dropped(id)

    @precondition(lambda self: len(self.planned) > 12)
    @rule()
    def drain(self) -> None:
        self.scheduler.drain()

    @invariant()
    def no_bound_is_broken(self) -> None:
        counts = self.scheduler.snapshot()
        assert counts.live <= BOUNDS.live
        assert counts[Stage.PREPARE] <= BOUNDS.preparing
        assert counts[Stage.VERIFY] <= BOUNDS.verifying

    @invariant()
    def every_planned_episode_is_in_exactly_one_stage(self) -> None:
        counts = self.scheduler.snapshot()
        assert sum(counts.stages.values()) == counts.submitted == len(self.planned)
        for stage in Stage:
            here = sum(self.scheduler.stage(id) is stage for id in self.planned)
            assert counts[stage] == here

    @invariant()
    def no_episode_is_admitted_more_often_than_it_may_be_tried(self) -> None:
        for id, times in self.granted.items():
            assert times <= BOUNDS.tries
            assert self.scheduler.tries(id) == times

    @invariant()
    def no_more_further_tries_are_granted_than_the_run_may_spend(self) -> None:
        again = sum(times - 1 for times in self.granted.values())
        assert again <= self.scheduler.retries <= (BOUNDS.retries or 0)

    def teardown(self) -> None:
        """Whatever happened, the rest can be driven to its end, each episode exactly once."""
        for _ in range(10 * len(self.planned) + 10):
            self.grant()
            self.prepared()
            self.acted()
            self.grant()
            self.verified()
            self.finished()
        assert self.scheduler.idle
        assert all(self.scheduler.stage(id) in ENDED for id in self.planned)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


def started(bounds: Bounds = BOUNDS, n: int = 1) -> Scheduler:
    scheduler = Scheduler(bounds)
    for i in range(n):
        scheduler.submit(f"e{i}", 0.0)
    scheduler.grants()
    return scheduler


def test_episodes_start_in_the_order_they_were_planned() -> None:
    scheduler = Scheduler(Bounds(live=3, preparing=3, verifying=1, tries=1))
    for id in ("b", "a", "c", "d"):
        scheduler.submit(id, 0.0)
    assert [g.id for g in scheduler.grants()] == ["b", "a", "c"]


def test_a_failed_episode_goes_first_when_it_is_tried_again() -> None:
    scheduler = started(Bounds(live=1, preparing=1, verifying=1, tries=2), n=3)
    assert scheduler.failed("e0", 1.0) is After.RETRY
    assert [g.id for g in scheduler.grants()] == ["e0"]
    assert scheduler.tries("e0") == 2


def test_a_failure_that_does_not_count_gives_its_try_back() -> None:
    scheduler = started(Bounds(live=1, preparing=1, verifying=1, tries=1, retries=0), n=2)
    assert scheduler.failed("e0", 1.0, counts=False) is After.RETRY
    assert [g.id for g in scheduler.grants()] == ["e0"]
    assert (scheduler.tries("e0"), scheduler.retries) == (1, 0)
    scheduler.drain()
    assert scheduler.failed("e0", 2.0, counts=False) is After.OWED


def test_nothing_comes_next_while_more_are_live_than_allowed() -> None:
    scheduler = started(n=3)
    assert not scheduler.above
    scheduler.rebound(structs.replace(scheduler.bounds, live=1))
    assert scheduler.above


def test_an_episode_whose_tries_are_spent_is_stored_as_failed() -> None:
    scheduler = started(Bounds(live=1, preparing=1, verifying=1, tries=1))
    assert scheduler.failed("e0", 1.0) is After.STORE
    scheduler.finished("e0")
    assert scheduler.idle


def test_the_further_tries_of_all_episodes_come_out_of_one_budget() -> None:
    scheduler = started(Bounds(live=3, preparing=3, verifying=1, tries=9, retries=2), n=3)
    told = [scheduler.failed(id, 1.0) for id in ("e0", "e1", "e2")]
    assert told == [After.RETRY, After.RETRY, After.STORE]
    scheduler.grants()
    assert scheduler.failed("e0", 2.0) is After.STORE
    assert scheduler.retries == 2


def test_a_failure_that_cannot_be_tried_again_costs_the_budget_nothing() -> None:
    scheduler = started(Bounds(live=2, preparing=2, verifying=1, tries=2, retries=1), n=2)
    assert scheduler.failed("e0", 1.0, retry=False) is After.STORE
    assert scheduler.failed("e1", 1.0) is After.RETRY


def test_a_budget_of_nothing_tries_nothing_again() -> None:
    scheduler = started(Bounds(live=1, preparing=1, verifying=1, tries=9, retries=0))
    assert scheduler.failed("e0", 1.0) is After.STORE


def test_a_failure_while_draining_is_owed_to_the_next_run() -> None:
    scheduler = started(n=3)
    assert scheduler.drain() == ["e2"]
    assert scheduler.failed("e0", 1.0) is After.OWED
    assert scheduler.stage("e0") is Stage.CANCELLED


def test_an_episode_planned_while_draining_is_owed_to_the_next_run() -> None:
    scheduler = started()
    scheduler.drain()
    scheduler.submit("late", 1.0)
    assert scheduler.stage("late") is Stage.CANCELLED


def test_draining_still_lets_live_episodes_verify() -> None:
    scheduler = started()
    scheduler.prepared("e0")
    scheduler.drain()
    scheduler.acted("e0", 1.0)
    assert [g.stage for g in scheduler.grants()] == [Stage.VERIFY]


def test_a_step_that_is_graded_gives_its_verify_slot_back_and_waits_for_one_again() -> None:
    scheduler = started(n=2)
    for id in ("e0", "e1"):
        scheduler.prepared(id)
        scheduler.acted(id, 1.0)
    assert [g.id for g in scheduler.grants()] == ["e0"]
    scheduler.again("e0")
    scheduler.acted("e0", 2.0)
    assert [g.id for g in scheduler.grants()] == ["e1"], "the other has waited longer"
    scheduler.verified("e1")
    assert [(g.id, g.stage) for g in scheduler.grants()] == [("e0", Stage.VERIFY)]


def test_a_step_is_not_followed_by_another_before_it_is_graded() -> None:
    scheduler = started()
    scheduler.prepared("e0")
    with pytest.raises(ContractError, match="e0"):
        scheduler.again("e0")


def test_waiting_for_a_verify_slot_is_measured_from_the_end_of_the_agent() -> None:
    scheduler = started()
    scheduler.prepared("e0")
    scheduler.acted("e0", 5.0)
    assert scheduler.waited_s("e0", 7.5) == 2.5


@pytest.mark.parametrize("event", ["acted", "verified", "finished", "prepared"])
def test_an_event_out_of_order_is_a_bug(event: str) -> None:
    scheduler = Scheduler(BOUNDS)
    scheduler.submit("e0", 0.0)
    arguments = ("e0", 0.0) if event == "acted" else ("e0",)
    with pytest.raises(ContractError, match="e0"):
        getattr(scheduler, event)(*arguments)


def test_the_same_episode_cannot_be_planned_twice() -> None:
    scheduler = started()
    with pytest.raises(ContractError, match="already planned"):
        scheduler.submit("e0", 0.0)


def test_an_unknown_episode_is_a_bug() -> None:
    with pytest.raises(ContractError, match="never planned"):
        Scheduler(BOUNDS).prepared("nobody")


def test_a_waiting_episode_that_is_cancelled_or_fails_frees_its_place_in_line() -> None:
    scheduler = started(n=2)
    for id in ("e0", "e1"):
        scheduler.prepared(id)
        scheduler.acted(id, 1.0)
    scheduler.cancelled("e0")
    scheduler.failed("e1", 2.0, retry=False)
    assert scheduler.grants() == []


def test_the_repr_is_the_snapshot() -> None:
    assert "submitted=1" in repr(started())


def test_a_dropped_episode_leaves_its_line_and_is_not_owed() -> None:
    scheduler = started(n=3)
    queued = scheduler.ahead(1)
    scheduler.dropped(queued[0])
    assert scheduler.ahead(3) == []
    assert scheduler.stage(queued[0]) is Stage.DROPPED
    assert queued[0] not in scheduler.drain()


def test_it_says_when_only_the_bound_of_the_live_ones_holds_episodes_back() -> None:
    scheduler = Scheduler(structs.replace(BOUNDS, live=2))
    for n in range(3):
        scheduler.submit(f"e{n}", 0.0)
    assert not scheduler.wants
    scheduler.grants()
    assert scheduler.wants
    scheduler.rebound(structs.replace(BOUNDS, live=3))
    assert not scheduler.wants
