"""A run that goes on in this process, for those who follow it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.preferences.runs import digest_of, episode, said

from headrace.aio import in_thread
from headrace.configs import load
from headrace.engine.run_folder import RunFolder
from headrace.engine.store import Store
from headrace.types import Episode, VerdictFault

DEADLINE_S = 50
TASKS = ("org/a", "org/b", "org/c", "org/d")


@asynccontextmanager
async def session(run: Path, attempts: int = 2) -> AsyncIterator[Store]:
    """One session of a run: locked, with its store open."""
    folder = await in_thread(opened, run, attempts)
    with folder:
        async with asyncio.timeout(DEADLINE_S), Store(run) as store:
            yield store


def opened(run: Path, attempts: int) -> RunFolder:
    return RunFolder.open(
        run,
        load.load(None, ["policy.type=noop", f"attempts={attempts}"]),
        tasks={name: digest_of(name) for name in TASKS},
        policy="noop",
        policy_version="a" * 64,
        provider="namespace",
    )


def won(task: str, sample: int = 0) -> Episode:
    return episode(task, sample, 1.0, turns=said("ls", "make"), tests={"1": True, "2": True})


def lost(task: str, sample: int = 1) -> Episode:
    return episode(task, sample, 0.0, turns=said("ls", "rm"), tests={"1": True, "2": False})


def failed(task: str, sample: int) -> Episode:
    return episode(task, sample, fault=VerdictFault.INFRASTRUCTURE)


async def put(store: Store, *episodes: Episode) -> None:
    for one in episodes:
        await store.append(one)
