"""Tells the pool what comes next, while the run goes on.

Rule: a task beside the driver. It looks at the schedule a few times a second and reads nothing
else; images are made by whoever holds the episodes back until they are there (`image_phase`).
"""

import asyncio

from headrace.engine.driver import Driver
from headrace.engine.parts import Parts, Planned
from headrace.engine.world import agents_spec
from headrace.errors import InfrastructureError
from headrace.sandbox.base import SandboxSpec
from headrace.sandbox.pool import Pool

EVERY_S = 0.1


async def keep_warm(driver: Driver, pool: Pool, parts: Parts, *, every_s: float = EVERY_S) -> None:
    """Until cancelled."""
    before: list[str] | None = None
    while True:
        ahead = [] if driver.breaker.is_open else driver.ahead(pool.most)
        ids = [planned.id for planned in ahead]
        if ids != before or pool.warm < len(ids):
            before = ids
            pool.expect(await _specs(ahead, parts))
        await asyncio.sleep(every_s)


async def _specs(ahead: list[Planned], parts: Parts) -> list[SandboxSpec]:
    """A task whose image cannot be made has none: its episodes find out themselves."""
    found = []
    for planned in ahead:
        try:
            found.append(await agents_spec(planned, parts))
        except InfrastructureError:
            continue
    return found
