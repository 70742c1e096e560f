"""Limits that may be changed while a run goes on: a small file in its folder.

Rule: the file is replaced whole, so a reader sees the old one or the new one. What it does not
name stays as it is. A file that cannot be read changes nothing and is told once. The run's
configuration is not touched: a resumed run starts from that again, and the file is removed.
"""

from pathlib import Path
from typing import Literal

import msgspec

from headrace.engine.run_folder import write_atomically
from headrace.errors import UsageError
from headrace.types import Record

LIMITS_FILE = "limits.json"
MOST = 1_000_000


class LiveLimits(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What was asked for; None: not changed."""

    live: int | Literal["auto"] | None = None
    preparing: int | None = None
    verifying: int | None = None
    warm: int | None = None

    def check(self) -> None:
        """Raises `UsageError` for a number without sense."""
        for name, least in (("live", 1), ("preparing", 1), ("verifying", 1), ("warm", 0)):
            value = getattr(self, name)
            if isinstance(value, int) and not least <= value <= MOST:
                raise UsageError(f"{name}: expected {least} to {MOST}, found {value}")


def write(run: Path, limits: LiveLimits) -> LiveLimits:
    """Ask a run for `limits`, on top of what it was asked for before; returns both together."""
    limits.check()
    before = read(run) or LiveLimits()
    given = {f: v for f in limits.__struct_fields__ if (v := getattr(limits, f)) is not None}
    both = msgspec.structs.replace(before, **given)
    write_atomically(run / LIMITS_FILE, msgspec.json.encode(both) + b"\n")
    return both


def read(run: Path) -> LiveLimits | None:
    """What the run is asked for; None: nothing. Raises `UsageError` for a file it cannot use."""
    try:
        data = (run / LIMITS_FILE).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise UsageError(f"{run / LIMITS_FILE}: {e.strerror}") from e
    try:
        limits = msgspec.json.decode(data, type=LiveLimits)
    except msgspec.MsgspecError as e:
        raise UsageError(f"{run / LIMITS_FILE}: expected limits, found: {e}") from None
    limits.check()
    return limits


def clear(run: Path) -> None:
    """A session begins: what an earlier one was asked for is over."""
    (run / LIMITS_FILE).unlink(missing_ok=True)


def words(limits: LiveLimits) -> str:
    """For people: `live = 64, warm = 8`."""
    fields = ((name, getattr(limits, name)) for name in limits.__struct_fields__)
    return ", ".join(f"{name} = {value}" for name, value in fields if value is not None)
