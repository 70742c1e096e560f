"""The images of a run: made in the plan's order, beside the episodes that do not need them.

Rule: an episode is held back until every image of its task has been tried once; it takes no place
in the scheduler until then, so builds of minutes cost no `preparing` slot. A build that fails is
no error here: its episodes meet it again, from the provider's memory, and record it. How many are
built at once, and that nothing is built twice, is the provider's part.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from headrace.aio import in_thread
from headrace.engine.events import Note, OnEvent, Preparing
from headrace.errors import InfrastructureError
from headrace.sandbox.base import Provider
from headrace.sandbox.images import PlannedImage, plan_images
from headrace.types import Task


class ImagePhase:
    """Which tasks still wait for an image. `run` once; `listener` hears of those that do not."""

    def __init__(self, tasks: Sequence[Task], provider: Provider, on_event: OnEvent) -> None:
        self._tasks = tasks
        self._provider = provider
        self._on_event = on_event
        self._missing: Counter[str] = Counter()
        self._done = self._total = 0
        self.held = {task.name for task in tasks}
        """Names of tasks without all their images."""
        self.listener: Callable[[Collection[str]], None] | None = None

    async def run(self) -> None:
        """Returns when every image has been tried."""
        plan = await in_thread(plan_images, self._tasks)
        self._total = len(plan.images)
        self._missing = Counter(name for image in plan.images for name in image.tasks)
        self._release(self.held - self._missing.keys())
        async with asyncio.TaskGroup() as group:
            for image in plan.images:
                group.create_task(self._make(image), name=f"image {image.name}")

    async def _make(self, image: PlannedImage) -> None:
        try:
            await self._provider.prepare(image.recipe)
        except InfrastructureError as error:
            who = image.tasks[0] + (f" and {len(image.tasks) - 1} more" * (len(image.tasks) > 1))
            self._on_event(Note(text=f"no image for {who}: {error}"))
        self._done += 1
        fraction = self._done / self._total
        what = f"images ({self._done} of {self._total})"
        self._on_event(Preparing(what=what, fraction=fraction))
        self._missing.subtract(image.tasks)
        self._release([name for name in image.tasks if not self._missing[name]])

    def _release(self, names: Collection[str]) -> None:
        self.held.difference_update(names)
        if self.listener is not None and names:
            self.listener(names)
