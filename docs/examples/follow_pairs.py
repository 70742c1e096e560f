"""Pairs of a run while it goes on: `python docs/examples/follow_pairs.py RUN [KEY=VALUE ...]`.

A run of a policy that gets every other attempt right, and a consumer that takes each pair as it
comes, as a trainer would. The two know nothing of each other but the run folder.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from headrace.configs.load import load
from headrace.engine import runner
from headrace.policies.base import Session
from headrace.policies.listed import ListedSession
from headrace.policies.oracle import OraclePolicy
from headrace.preferences import Rule, follow
from headrace.types import Action, Command, Task

LOOK = Action(text="Look around.", commands=(Command(text="ls -la"),))
TASKS = 'tasks.include=["*/lock-key-file", "*/remove-tmp-files", "*/sort-scores"]'


class EveryOther(OraclePolicy):
    """The reference solution in the even attempts; the odd ones look around and give up."""

    name = version = "every-other"

    @asynccontextmanager
    async def session(self, task: Task, sample: int) -> AsyncIterator[Session]:
        if sample % 2:
            yield ListedSession([LOOK] * sample)
        else:
            async with super().session(task, sample) as solving:
                yield solving


async def consume(run: Path) -> None:
    async with aclosing(follow(run, [Rule(kind="margin")], begin_s=60)) as pairs:
        async for pair, chosen, rejected in pairs:
            over = f"{pair.chosen.sample} over {pair.rejected.sample}"
            said = f"{chosen.turns[0].text!r}, not {rejected.turns[0].text!r}"
            print(f"{pair.task}: {over}: {said}", flush=True)


async def main(run: Path, settings: list[str]) -> None:
    config = load("oracle", ["attempts=4", TASKS, *settings])
    async with asyncio.TaskGroup() as group:
        group.create_task(runner.run(config, run, policy=EveryOther()))
        group.create_task(consume(run))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
