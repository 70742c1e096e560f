"""The engine's numbers of a run: as configured, and as this machine can hold them.

Rule: decided once, before anything starts. What changes while a run goes on is `steering`'s.
"""

from functools import partial

from headrace.configs.models import EngineConfig, RunConfig
from headrace.engine import preflight
from headrace.engine.admission import Admission
from headrace.engine.events import Note, OnEvent
from headrace.engine.scheduler import Bounds
from headrace.sandbox.base import Provider


def fitted(
    config: RunConfig, provider: Provider, episodes: int, processes: int, on_event: OnEvent
) -> tuple[EngineConfig, int]:
    """The engine's numbers as this machine can hold them, and the sandboxes to open ahead.

    Blocking.
    """
    engine, warm, auto = config.engine, config.sandbox.warm, config.engine.live == "auto"
    first = min(engine.live_start, engine.live_most) if engine.live == "auto" else engine.live
    live = min(first, episodes)
    if warm is None:
        warm = min(engine.preparing, live)
    warm = min(warm, episodes)
    prepare = partial(preflight.prepare, footprint=provider.footprint, processes=processes)
    found = prepare(live, warm=warm, exact=not auto)
    for note in found.notes:
        on_event(Note(text=note))
    if not auto:
        return engine.model_copy(update={"live": found.live}), found.warm
    later = min(engine.live_most, episodes)  # nobody asked for that many: what fits is no news
    later = prepare(later, warm=found.warm, exact=False).live
    numbers = {"live_most": max(later, found.live), "live_start": found.live}
    return engine.model_copy(update=numbers), found.warm


def most(engine: EngineConfig) -> int:
    """Live episodes that there may be at any time."""
    return engine.live_most if engine.live == "auto" else engine.live


def opening(engine: EngineConfig) -> int:
    """Sandboxes opened ahead at once: in places of `preparing` that starts leave free."""
    return max(1, engine.preparing // 4)


def bounds(engine: EngineConfig) -> Bounds:
    return Bounds(
        live=engine.live_start if engine.live == "auto" else engine.live,
        preparing=engine.preparing,
        verifying=engine.verifying,
        tries=engine.tries,
        retries=engine.retry_budget,
    )


def admission(engine: EngineConfig) -> Admission | None:
    """None: the number of live episodes is fixed."""
    if engine.live != "auto":
        return None
    return Admission(start=engine.live_start, most=engine.live_most)
