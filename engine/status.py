"""`RUN/status/NAME.json`: what one process of a run is doing, written every second.

Rule: for people and dashboards; nothing is decided from it and a lost one loses no data. It is
replaced whole. Its age tells whether the process still runs.
"""

from pathlib import Path

import msgspec

from headrace.engine.admission import HostLoad
from headrace.engine.meters import Phase
from headrace.engine.run_folder import write_atomically
from headrace.policies.base import ModelLoad
from headrace.types import Record

STATUS = "status"
STALE_S = 5.0
"""A status older than this is of a process that has ended or hangs."""


class Rates(Record, frozen=True, kw_only=True):
    """Per second, over the last minute or since the start."""

    episodes: float = 0.0
    turns: float = 0.0
    sampled_tokens: float = 0.0


class Totals(Record, frozen=True, kw_only=True):
    """Of this process in this session."""

    turns: int = 0
    sampled_tokens: int = 0
    starts: int = 0
    """Sandboxes that were opened and answered."""
    retries: int = 0
    outcomes: dict[str, int] = {}
    """Durable episodes: `passed`, `failed` and `infrastructure`."""
    pool_hits: int = 0
    pool_misses: int = 0


class Slow(Record, frozen=True, kw_only=True):
    """An episode under way."""

    id: str
    task: str
    sample: int
    stage: str
    for_s: float
    """Since it was admitted."""


class Status(Record, frozen=True, kw_only=True):
    """One process of a run."""

    at: float
    """Unix seconds."""
    pid: int
    run: str
    process: str
    """`main`, or the number of an engine process."""
    processes: int = 1
    """Engine processes that it speaks for."""
    uptime_s: float
    planned: int
    """Of this process, in this session."""
    finished: int
    dropped: int
    failed_starts: int
    """How often the breaker has opened."""
    stages: dict[str, int]
    live: int
    preparing: int
    verifying: int
    """The bounds in force."""
    why: str
    """What decided the number of live episodes last."""
    breaker_open: bool = False
    warm: int = 0
    rates: Rates = Rates()
    totals: Totals = Totals()
    lag_p99_s: float = 0.0
    model: ModelLoad | None = None
    host: HostLoad = HostLoad()
    slowest: tuple[Slow, ...] = ()
    phases: dict[str, Phase] = {}
    """By name: see `Timing`, and `store_s`."""
    ended: bool = False
    """The last word of a process that ended in order."""

    def running(self, now: float) -> bool:
        """It has spoken within `STALE_S` and not for the last time."""
        return not self.ended and now - self.at <= STALE_S


def write(run: Path, status: Status) -> None:
    """Blocking. Raises `StoreError`."""
    folder = run / STATUS
    folder.mkdir(exist_ok=True)
    data = msgspec.json.encode(status) + b"\n"
    write_atomically(folder / f"{status.process}.json", data, durable=False)


def read(run: Path) -> list[Status]:
    """Of every process that wrote one this version reads, by name."""
    found = []
    for path in sorted((run / STATUS).glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Status))
        except (OSError, msgspec.MsgspecError):
            continue
    return found
