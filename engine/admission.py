"""How many episodes may be live: follows the model and the host, so that neither is overrun.

Rule: pure. One `Reading` in, one `Decision` out; no clock, no I/O. The number grows while it is
what holds episodes back and both ends have room, by a bounded share of itself in a window of time.
It is cut at once when an end is overrun, and always to what that end was seen to carry: the share
of the live episodes that fits the key-value cache, the requests that run rather than wait, the
episodes that fit the memory. While none is live nothing was seen, and it stays. A cut has to be
lived down first: while more are live than allowed, or the numbers are older than the cut, no second
one follows. Repeated blind cuts are how such a controller falls from a thousand to eight. Where
half as many live episodes have not relieved the host, something else loads it: further cuts for
that reason come a minute apart, then two, four.

Live episodes are never ended to obey; the number is obeyed as they finish.
"""

from enum import StrEnum
from typing import NamedTuple

from headrace.errors import ContractError
from headrace.policies.base import ModelLoad
from headrace.types import Record


class HostLoad(Record, frozen=True, kw_only=True):
    """What the machine says of itself. Pressures are shares in [0, 1] of the last 10 seconds."""

    cpu: float = 0.0
    """Time in which some process waited for a CPU."""
    memory: float = 0.0
    """Time in which some process waited for memory."""
    io: float = 0.0
    """Time in which every process waited for the disk."""
    memory_free: float = 1.0
    """Share of the memory that could be given out."""
    disk_free_bytes: int | None = None
    """Of the run folder's file system; None: not known."""


class Reading(Record, frozen=True, kw_only=True):
    """What is known at one moment."""

    now_s: float
    live: int
    wanted: bool
    """Episodes wait for nothing but the number of live ones."""
    model: ModelLoad | None = None
    """None: the policy has no server, or it did not answer."""
    host: HostLoad | None = None
    start_s: float | None = None
    """Median of the sandbox starts since the last reading; None: there were none."""
    lag_s: float = 0.0
    """p99 of the event loop's lag since the last reading."""


class Marks(Record, frozen=True, kw_only=True):
    """Where growth stops and where cuts begin."""

    kv_room: float = 0.7
    """Key-value cache in use up to which it grows; cuts aim at it."""
    kv_full: float = 0.92
    waiting_room: float = 0.05
    """Waiting requests over running ones up to which it grows."""
    waiting_full: float = 0.5
    cpu_room: float = 0.6
    memory_reserve: float = 0.1
    """Share of the memory that is kept free."""
    pressure_room: float = 0.1
    """Of memory and disk."""
    pressure_full: float = 0.4
    disk_reserve_bytes: int = 2 << 30
    start_room: float = 3.0
    """Sandbox starts that take this many times the quickest seen stop growth,"""
    start_quick_s: float = 0.5
    """which counts as no quicker than this: one that was open ahead takes no time at all;"""
    start_full_s: float = 30.0
    """those that take so long cut."""
    lag_room_s: float = 0.02
    lag_full_s: float = 0.25
    growth: float = 0.25
    """Share of the number that may be added in a window; a tenth once there has been a cut."""
    window_s: float = 5.0
    cut: float = 0.8
    """Where nothing tells how much would fit."""
    unrelieved_s: float = 60.0
    """After cuts that did not relieve the host; twice as long after each further one."""
    stale_s: float = 15.0
    """Numbers of the model older than this grow nothing."""
    persist: int = 3
    """Readings in a row in which requests wait before that counts as overrun."""


class Reason(StrEnum):
    """What decided."""

    FIXED = "fixed"
    STEADY = "steady"
    GROWS = "grows"
    MOST = "as many as allowed"
    KV_CACHE = "the key-value cache"
    WAITING = "requests wait for the model"
    PREEMPTED = "the model preempts requests"
    STALE = "the model's numbers are old"
    CPU = "CPU pressure"
    MEMORY = "memory"
    DISK = "disk"
    STARTS = "slow sandbox starts"
    LAG = "the event loop's lag"


class Decision(Record, frozen=True, kw_only=True):
    live: int
    """Episodes that may be live from now on."""
    reason: Reason


class _Overrun(NamedTuple):
    """An end that is overrun."""

    fits: float
    """How many live episodes it was seen to carry."""
    why: Reason
    severity: float | None = None
    """Of the host, which others load too; None: the model's, which falls when it is relieved."""


class Admission:
    """The number of live episodes over time, between `least` and `most`."""

    def __init__(
        self,
        *,
        start: int,
        least: int = 1,
        most: int,
        marks: Marks = Marks(),  # noqa: B008 - frozen
    ) -> None:
        if not 1 <= least <= start <= most:
            raise ContractError(f"expected 1 <= {least} <= {start} <= {most}")
        self._least, self._most = least, most
        self._marks = marks
        self._live = start
        self._window_at: float | None = None
        self._window_from = start
        self._cut_at: float | None = None
        self._was_cut = False
        self._first_cut: _Overrun | None = None
        """Of a row of cuts for one reason without growth between; `fits` is what was live then."""
        self._unrelieved = 0
        """Cuts of that row that came although those before had changed nothing."""
        self._preemptions: float | None = None
        self._waiting = 0
        self._quickest_s: float | None = None

    @property
    def live(self) -> int:
        return self._live

    def observe(self, reading: Reading) -> Decision:
        """What holds from this moment on."""
        overrun = self._overrun(reading)
        if overrun is not None:
            if self._may_cut(reading, overrun):
                self._cut(reading, overrun)
            return Decision(live=self._live, reason=overrun.why)
        held = self._held(reading)
        if held is not None:
            return Decision(live=self._live, reason=held)
        if not reading.wanted:
            return Decision(live=self._live, reason=Reason.STEADY)
        if self._live >= self._most:
            return Decision(live=self._live, reason=Reason.MOST)
        return Decision(live=self._grow(reading), reason=Reason.GROWS)

    # --- cuts ---

    def _overrun(self, reading: Reading) -> "_Overrun | None":
        """How many would fit and why, when an end is overrun: the least of what the ends say."""
        found = [*self._model_overrun(reading), *self._host_overrun(reading)]
        return min(found, default=None, key=lambda one: one.fits)

    def _model_overrun(self, reading: Reading) -> "list[_Overrun]":
        model, marks = reading.model, self._marks
        if model is None or model.age_s > marks.stale_s:
            return []
        found: list[_Overrun] = []
        preempted = self._preemptions is not None and model.preemptions > self._preemptions
        self._preemptions = model.preemptions
        share = marks.kv_room / max(model.kv_use, marks.kv_room)
        if preempted:
            found.append(_Overrun(reading.live * min(share, marks.cut), Reason.PREEMPTED))
        elif model.kv_use > marks.kv_full:
            found.append(_Overrun(reading.live * share, Reason.KV_CACHE))
        full = model.waiting > marks.waiting_full * max(1, model.running)
        self._waiting = self._waiting + 1 if full else 0
        if self._waiting >= marks.persist:
            found.append(_Overrun(reading.live - model.waiting, Reason.WAITING))
        return found

    def _host_overrun(self, reading: Reading) -> "list[_Overrun]":
        host, marks, live = reading.host, self._marks, reading.live
        found: list[_Overrun] = []

        def cut(reason: Reason, severity: float, share: float = marks.cut) -> None:
            found.append(_Overrun(live * share, reason, severity))

        if reading.lag_s > marks.lag_full_s:
            cut(Reason.LAG, reading.lag_s)
        if reading.start_s is not None and reading.start_s > marks.start_full_s:
            cut(Reason.STARTS, reading.start_s)
        if host is None:
            return found
        if host.memory_free < marks.memory_reserve:
            used = 1 - host.memory_free
            cut(Reason.MEMORY, used, min(1.0, (1 - marks.memory_reserve) / used))
        if host.memory > marks.pressure_full:
            cut(Reason.MEMORY, host.memory)
        if host.io > marks.pressure_full:
            cut(Reason.DISK, host.io)
        if host.disk_free_bytes is not None and host.disk_free_bytes < marks.disk_reserve_bytes:
            cut(Reason.DISK, 1.0, 0.5)
        return found

    def _may_cut(self, reading: Reading, overrun: "_Overrun") -> bool:
        """Whether the cut before this one has had its effect, and there is something to cut."""
        if reading.live == 0:  # images are being built: to start from 1 would take minutes
            return False
        if self._cut_at is None:
            return True
        if reading.live > self._live:
            return False
        age_s = 0.0 if reading.model is None else reading.model.age_s
        wait_s = self._marks.window_s
        if self._in_vain(overrun):
            wait_s = self._marks.unrelieved_s * 2**self._unrelieved
        return reading.now_s - age_s > self._cut_at + wait_s

    def _in_vain(self, overrun: "_Overrun") -> bool:
        """Half as many are live as when this began, and the host is no better off."""
        first = self._first_cut
        return (
            first is not None
            and overrun.severity is not None
            and first.why is overrun.why
            and 2 * self._live <= first.fits
            and overrun.severity >= 0.9 * (first.severity or 0.0)
        )

    def _cut(self, reading: Reading, overrun: "_Overrun") -> None:
        if self._in_vain(overrun):
            self._unrelieved += 1
        elif self._first_cut is None or self._first_cut.why is not overrun.why:
            self._first_cut = overrun._replace(fits=min(reading.live, self._live))
            self._unrelieved = 0
        lowest = max(self._least, int(min(reading.live, self._live) * 0.5))
        self._live = min(self._live, max(lowest, int(overrun.fits)))
        self._cut_at = reading.now_s
        self._was_cut = True
        self._window_at = None
        self._waiting = 0

    # --- growth ---

    def _held(self, reading: Reading) -> Reason | None:
        """What speaks against growth, though nothing is overrun."""
        marks, model, host = self._marks, reading.model, reading.host
        if model is not None:
            if model.age_s > marks.stale_s:
                return Reason.STALE
            if model.kv_use > marks.kv_room:
                return Reason.KV_CACHE
            if model.waiting > marks.waiting_room * max(1, model.running):
                return Reason.WAITING
        if host is not None:
            if host.cpu > marks.cpu_room:
                return Reason.CPU
            if host.memory_free < 2 * marks.memory_reserve or host.memory > marks.pressure_room:
                return Reason.MEMORY
            if host.io > marks.pressure_room:
                return Reason.DISK
        if reading.lag_s > marks.lag_room_s:
            return Reason.LAG
        return Reason.STARTS if self._starts_slowly(reading) else None

    def _starts_slowly(self, reading: Reading) -> bool:
        if reading.start_s is None:
            return False
        self._quickest_s = min(reading.start_s, self._quickest_s or reading.start_s)
        quickest_s = max(self._marks.start_quick_s, self._quickest_s)
        return reading.start_s > self._marks.start_room * quickest_s

    def _grow(self, reading: Reading) -> int:
        marks = self._marks
        self._first_cut = None
        if self._window_at is None or reading.now_s - self._window_at >= marks.window_s:
            self._window_at, self._window_from = reading.now_s, self._live
            share = marks.growth if not self._was_cut else min(0.1, marks.growth)
            step = max(1, int(self._live * share))
            self._live = min(self._most, self._live + step)
        return self._live
