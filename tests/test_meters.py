"""What a run measures about itself."""

import pytest

from headrace.engine.meters import PHASE_SIZE, Meters, Reservoir


def test_a_reservoir_keeps_no_more_than_its_size_and_counts_everything() -> None:
    seen = Reservoir(size=10)
    for value in range(1000):
        seen.add(value)
    assert (len(seen.kept), seen.seen, seen.total) == (10, 1000, sum(range(1000)))


def test_percentiles_are_those_of_what_is_kept() -> None:
    seen = Reservoir()
    for value in reversed(range(100)):
        seen.add(value)
    assert seen.percentiles(0.0, 0.5, 0.99, 1.0) == [0, 50, 99, 99]
    assert seen.percentile(0.99) == 99


def test_nothing_seen_has_no_percentile() -> None:
    assert Reservoir().percentile(0.5) is None
    assert Reservoir().percentiles(0.5, 0.99) == []
    assert Meters().phases() == {}


def test_phases_are_told_whole_and_sampled_within_their_bound() -> None:
    meters = Meters()
    for _ in range(PHASE_SIZE + 5):
        meters.add_phases(act_s=2.0, store_s=0.5)
    act = meters.phases()["act_s"]
    assert (act.p50_s, act.p99_s, act.episodes) == (2.0, 2.0, PHASE_SIZE + 5)
    assert act.total_s == pytest.approx(2.0 * (PHASE_SIZE + 5))
    assert len(meters.phase_s["act_s"].kept) == PHASE_SIZE


def test_what_is_recent_is_told_once() -> None:
    meters = Meters()
    for seconds in (3.0, 1.0, 2.0):
        meters.add_start(seconds)
    assert meters.take_recent() == (2.0, 0.0)
    assert meters.take_recent() == (None, 0.0)
    assert meters.started == 3
