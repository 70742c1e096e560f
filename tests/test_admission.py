"""Admission: it fills what is there, yields at once, and does not collapse."""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.admission import Admission, Decision, HostLoad, Marks, Reading, Reason
from headrace.errors import ContractError
from headrace.policies.base import ModelLoad

IDLE = ModelLoad(kv_use=0.1, running=10, waiting=0, preemptions=0)
Changed = Callable[[float, int], Reading]


def reading(now_s: float = 0.0, live: int = 100, **changes: object) -> Reading:
    return Reading(now_s=now_s, live=live, wanted=True, **changes)  # type: ignore[arg-type]


def at(live: int, most: int = 10_000, **marks: float) -> Admission:
    return Admission(start=live, most=most, marks=Marks(**marks))  # type: ignore[arg-type]


class Server:
    """A model server as admission sees it: a cache that holds `carries` live episodes."""

    def __init__(self, carries: int, *, lag: int = 3, seats: int = 100_000) -> None:
        self.carries, self.seats = carries, seats
        self._seen: list[ModelLoad] = []
        self._lag = lag
        self._preemptions = 0.0

    def load(self, live: int) -> ModelLoad:
        use = live / self.carries
        if use > 1:
            self._preemptions += live - self.carries
        running = min(live, self.carries, self.seats)
        self._seen.append(
            ModelLoad(
                kv_use=min(1.0, use),
                running=running,
                waiting=live - running,
                preemptions=self._preemptions,
            )
        )
        return self._seen[max(0, len(self._seen) - 1 - self._lag)]


def follow(
    admission: Admission, server: Server, *, seconds: int, drains: float = 0.05
) -> Iterator[tuple[int, Decision]]:
    """Live episodes each second: new ones at once, a share of the old ones ends."""
    live = 0
    for now in range(seconds):
        live = max(admission.live, live - max(1, int(live * drains)))
        yield live, admission.observe(reading(float(now), live, model=server.load(live)))


# --- growth ---


def test_it_grows_by_a_bounded_share_in_a_window() -> None:
    admission = at(100)
    lives = [admission.observe(reading(t, 100, model=IDLE)).live for t in range(11)]
    assert lives == [125] * 5 + [156] * 5 + [195]


def test_it_never_leaves_its_bounds() -> None:
    admission = Admission(start=90, least=50, most=100)
    decisions = [admission.observe(reading(t, 90, model=IDLE)) for t in range(0, 60, 5)]
    assert max(d.live for d in decisions) == 100
    assert decisions[-1].reason is Reason.MOST
    crushed = HostLoad(memory_free=0.0)
    for t in range(100, 400):
        admission.observe(reading(t, admission.live, host=crushed))
    assert admission.live == 50


def test_it_does_not_grow_while_nobody_waits() -> None:
    admission = at(100)
    idle = Reading(now_s=0, live=20, wanted=False, model=IDLE)
    assert admission.observe(idle) == Decision(live=100, reason=Reason.STEADY)


def with_model(**changes: object) -> Callable[[], Reading]:
    fields = {"kv_use": 0.1, "running": 10, "waiting": 0, "preemptions": 0, **changes}
    return lambda: reading(model=ModelLoad(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (with_model(kv_use=0.75), Reason.KV_CACHE),
        (with_model(waiting=2), Reason.WAITING),
        (with_model(age_s=16), Reason.STALE),
        (lambda: reading(host=HostLoad(cpu=0.7)), Reason.CPU),
        (lambda: reading(host=HostLoad(memory_free=0.15)), Reason.MEMORY),
        (lambda: reading(host=HostLoad(memory=0.2)), Reason.MEMORY),
        (lambda: reading(host=HostLoad(io=0.2)), Reason.DISK),
        (lambda: reading(lag_s=0.05), Reason.LAG),
    ],
)
def test_an_end_without_room_holds_it_where_it_is(
    found: Callable[[], Reading], why: Reason
) -> None:
    assert at(100).observe(found()) == Decision(live=100, reason=why)


def test_starts_that_slow_down_hold_it() -> None:
    admission = at(100)
    assert admission.observe(reading(0, start_s=0.6)).reason is Reason.GROWS
    assert admission.observe(reading(1, start_s=2.0)).reason is Reason.STARTS


def test_a_start_beside_ones_that_were_open_ahead_is_not_slow_for_that() -> None:
    admission = Admission(start=10, most=100)
    assert admission.observe(reading(0, start_s=0.0001)).reason is Reason.GROWS
    assert admission.observe(reading(6, start_s=1.4)).reason is Reason.GROWS
    assert admission.observe(reading(12, start_s=1.6)).reason is Reason.STARTS


# --- cuts ---


@pytest.mark.parametrize(
    ("found", "live", "why"),
    [
        (with_model(kv_use=1.0), 70, Reason.KV_CACHE),
        (lambda: reading(host=HostLoad(memory_free=0.0)), 90, Reason.MEMORY),
        (lambda: reading(host=HostLoad(memory=0.5)), 80, Reason.MEMORY),
        (lambda: reading(host=HostLoad(io=0.5)), 80, Reason.DISK),
        (lambda: reading(host=HostLoad(disk_free_bytes=1 << 30)), 50, Reason.DISK),
        (lambda: reading(start_s=31.0), 80, Reason.STARTS),
        (lambda: reading(lag_s=0.3), 80, Reason.LAG),
    ],
)
def test_an_end_that_is_overrun_cuts_to_what_it_carries(
    found: Callable[[], Reading], live: int, why: Reason
) -> None:
    assert at(100).observe(found()) == Decision(live=live, reason=why)


def test_a_preemption_cuts_at_once() -> None:
    admission = at(100)
    admission.observe(with_model()())
    decision = admission.observe(with_model(kv_use=0.9, preemptions=3)())
    assert decision.reason is Reason.PREEMPTED
    assert 70 <= decision.live <= 80


def test_requests_that_wait_for_long_are_taken_off() -> None:
    admission = at(400)
    busy = {"running": 256, "waiting": 144}
    for _ in range(2):
        assert admission.observe(reading(live=400, model=model_load(**busy))).live == 400
    assert admission.observe(reading(live=400, model=model_load(**busy))).live == 256


def model_load(**changes: float) -> ModelLoad:
    return ModelLoad(**{"kv_use": 0.1, "running": 10, "waiting": 0, "preemptions": 0, **changes})  # type: ignore[arg-type]


def test_a_cut_is_lived_down_before_the_next() -> None:
    """A cascade of cuts on old numbers once took a controller from 1,024 to 8."""
    admission = at(1024)
    preemptions = 0.0
    lives = []
    live = 1024
    for now in range(120):
        preemptions += 10 if live > 900 else 0
        model = ModelLoad(kv_use=1.0, running=900, waiting=100, preemptions=preemptions)
        lives.append(admission.observe(reading(float(now), live, model=model)).live)
        live = max(lives[-1], live - 5)  # long episodes: it takes a minute to get there
    assert min(lives[:60]) >= 700
    assert lives[0] == lives[30]


@pytest.mark.parametrize("carries", [8, 60, 500, 3000])
@pytest.mark.parametrize("drains", [0.01, 0.1, 1.0])
def test_it_finds_what_the_model_carries_and_stays_near(carries: int, drains: float) -> None:
    admission = Admission(start=16, most=4096)
    server = Server(carries)
    seen = list(follow(admission, server, seconds=900, drains=drains))
    settled = [live for live, _ in seen[450:]]
    assert min(settled) >= 0.45 * carries
    assert sum(settled) / len(settled) >= 0.6 * carries
    assert sum(live > carries for live in settled) <= 0.1 * len(settled)


# --- traces: what such controllers met, second by second ---

Trace = Callable[[int, int], Reading]
"""What is read at a second when so many episodes are allowed."""


def slow_drain(now: int) -> int:
    """Long episodes: two of a thousand end in a second."""
    return max(100, 1024 - 2 * now)


def preempted_for_minutes(now: int, allowed: int) -> Reading:
    model = model_load(kv_use=1.0, running=700, waiting=300, preemptions=12.0 * now)
    return reading(now, slow_drain(now), model=model)


def numbers_every_ten_seconds(now: int, allowed: int) -> Reading:
    """A slow exporter: what it says of a full cache is repeated, and ages."""
    told = now - now % 10
    model = model_load(kv_use=1.0, running=900, preemptions=30.0 * (told // 10), age_s=now % 10)
    return reading(now, slow_drain(now), model=model)


def restarted_server(now: int, allowed: int) -> Reading:
    """Nothing for a minute; then counters begin again, and every session prefills at once."""
    if now < 60:
        return reading(now, 1024)
    waiting = max(0, 1000 - 40 * (now - 60))
    model = model_load(kv_use=0.3, running=1024 - waiting, waiting=waiting)
    return reading(now, 1024, model=model)


def a_spike_a_minute(now: int, allowed: int) -> Reading:
    return reading(now, allowed, model=model_load(kv_use=0.95 if now % 60 < 2 else 0.5))


@pytest.mark.parametrize(
    ("trace", "seconds", "least"),
    [
        (preempted_for_minutes, 120, 512),
        (numbers_every_ten_seconds, 120, 512),
        (restarted_server, 120, 512),
        (a_spike_a_minute, 600, 512),
    ],
)
def test_a_trace_that_led_to_a_collapse_does_not_here(
    trace: Trace, seconds: int, least: int
) -> None:
    """The known controller fell from 1,024 to 8 on the first of these."""
    admission = Admission(start=1024, most=2048)
    lives = [admission.observe(trace(now, admission.live)).live for now in range(seconds)]
    assert min(lives) >= least
    for now in range(seconds, seconds + 600):
        admission.observe(reading(now, min(1024, admission.live), model=IDLE))
    assert admission.live >= 1024, "it comes back once there is room"


def test_the_load_of_others_does_not_starve_a_run() -> None:
    """Cutting does not help there: after half, cuts come ever more rarely."""
    admission = Admission(start=1024, most=2048)
    lives = []
    for now in range(1200):
        late = reading(now, admission.live, lag_s=0.6, host=HostLoad(cpu=0.9))
        lives.append(admission.observe(late).live)
    assert lives[30] <= 512
    assert lives[-1] >= 128
    assert admission.observe(reading(1201, lives[-1], model=IDLE)).reason is Reason.GROWS


def test_a_host_that_is_loaded_before_anything_is_live_starts_the_run_no_smaller() -> None:
    """Images are being built."""
    admission = Admission(start=64, most=1024)
    for now in range(60):
        admission.observe(reading(now, 0, host=HostLoad(io=0.9, memory_free=0.01)))
    assert admission.live == 64
    assert admission.observe(reading(60, 64, host=HostLoad(memory_free=0.01))).live < 64


def test_a_host_that_is_relieved_by_cuts_is_cut_as_far_as_it_takes() -> None:
    admission = Admission(start=1024, most=2048)
    for now in range(120):
        busy = min(1.0, admission.live / 100) * 0.3
        admission.observe(reading(now, admission.live, lag_s=busy * admission.live / 100))
    assert 40 <= admission.live <= 110


@given(
    st.lists(
        st.builds(
            ModelLoad,
            kv_use=st.floats(0, 1),
            running=st.integers(0, 1000),
            waiting=st.integers(0, 1000),
            preemptions=st.integers(0, 50).map(float),
            age_s=st.floats(0, 30),
        ),
        max_size=80,
    ),
    st.integers(1, 2000),
)
def test_whatever_it_is_told_it_keeps_its_bounds_and_never_more_than_halves(
    loads: list[ModelLoad], start: int
) -> None:
    admission = Admission(start=start, least=1, most=2000)
    before, cut_at = start, -100.0
    for now, load in enumerate(loads):
        live = admission.observe(reading(float(now), before, model=load)).live
        assert 1 <= live <= 2000
        if live < before:
            assert live >= before // 2
            assert now - cut_at >= Marks().window_s
            cut_at = now
        before = live


def test_bounds_without_sense_are_refused() -> None:
    for start, least, most in ((0, 0, 5), (5, 6, 10), (11, 1, 10)):
        with pytest.raises(ContractError):
            Admission(start=start, least=least, most=most)
