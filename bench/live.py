"""How many sandboxes can be alive at once, every one of them answering a command?

Opens them, a bounded number at a time, then asks each for its own number at the same moment, and
closes them. Counts what each costs the machine in memory and processes while all are open. Where
one process may not open files enough for all, several share them.

    python -m bench.live --provider namespace --n 10000 [--json FILE]
"""

import argparse
import asyncio
import multiprocessing
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from threading import Barrier

import msgspec
import uvloop
from bench.report import report

from headrace.aio import fan_out, in_thread
from headrace.configs.models import SandboxConfig
from headrace.engine.host import memory_bytes, running
from headrace.engine.preflight import SPARE_FILES, prepare, raise_files
from headrace.sandbox.base import Footprint, Limits, Sandbox, SandboxSpec
from headrace.sandbox.providers import choose
from headrace.sandbox.rootfs import BASE_IMAGE
from headrace.types import EnvironmentRecipe

OPENING = {"namespace": 8, "docker": 6}
CLOSING = 32
ANSWER_S = 300.0
MEET_S = 900.0
PHASES = ("opened", "answers", "closed")
LIMITS = Limits(memory_mb=256, pids=64)


Told = dict[str, float]


def measure(name: str, n: int) -> dict[str, float | None]:
    """In as many processes as their open files ask for: root may not raise that everywhere."""
    footprint = asyncio.run(_footprint(name))
    # What is the machine's is checked for all of them, and files for those of each process.
    fitted = prepare(n, msgspec.structs.replace(footprint, files=0))
    raise_files(n * (footprint.files + 1) + SPARE_FILES)
    for note in fitted.notes:
        print(note)
    if fitted.live < n:
        raise SystemExit(f"this machine holds {fitted.live} of {n}")
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES
    parts = -(-n * (footprint.files + 1) // room)
    before = (memory_bytes()[1] or 0, running())
    with ProcessPoolExecutor(parts, multiprocessing.get_context("spawn")) as pool:
        with multiprocessing.Manager() as manager:
            meet = manager.Barrier(parts)
            share = [n // parts + (i < n % parts) for i in range(parts)]
            told = list(pool.map(_part, [name] * parts, share, [meet] * parts, [before] * parts))
    return {
        f"{name}_live": n,
        f"{name}_processes": parts,
        f"{name}_answering": sum(part["answering"] for part in told),
        **{f"{name}_{what}_s": n / max(part[what] for part in told) for what in PHASES},
        f"{name}_mb_each": max(part["used"] for part in told) / n / 1e6,
        f"{name}_threads_each": max(part["threads"] for part in told) / n,
    }


async def _footprint(name: str) -> Footprint:
    async with await choose(SandboxConfig.model_validate({"provider": name})) as chosen:
        await chosen.provider.prepare(EnvironmentRecipe(image=BASE_IMAGE))
        return chosen.provider.footprint


def _part(name: str, n: int, meet: Barrier, before: tuple[int, int]) -> Told:
    """One process of the measurement."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_open_ask_close(name, n, meet, before))


async def _open_ask_close(name: str, n: int, meet: Barrier, before: tuple[int, int]) -> Told:
    spec = SandboxSpec(image=BASE_IMAGE, episode="bench-live", limits=LIMITS)
    stacks = [AsyncExitStack() for _ in range(n)]
    async with await choose(SandboxConfig.model_validate({"provider": name})) as chosen:
        provider = chosen.provider
        await provider.prepare(EnvironmentRecipe(image=BASE_IMAGE))

        async def open_one(stack: AsyncExitStack) -> Sandbox:
            return await stack.enter_async_context(provider.open(spec))

        told: Told = {}
        try:
            with _timed(told, "opened"):
                sandboxes = await fan_out(open_one, stacks, limit=OPENING[name])
            await in_thread(meet.wait, MEET_S)
            told["used"] = before[0] - (memory_bytes()[1] or 0)
            told["threads"] = running() - before[1]
            with _timed(told, "answers"):
                told["answering"] = sum(await fan_out(_ask, list(enumerate(sandboxes)), limit=n))
            await in_thread(meet.wait, MEET_S)
        except BaseException:
            meet.abort()  # the others would wait for this one
            raise
        finally:
            with _timed(told, "closed"):
                await fan_out(AsyncExitStack.aclose, stacks, limit=CLOSING)
    return told


@contextmanager
def _timed(told: Told, what: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    told[what] = time.perf_counter() - begun


async def _ask(one: tuple[int, Sandbox]) -> bool:
    number, sandbox = one
    result = await sandbox.run(f"echo {number}", timeout_s=ANSWER_S)
    return result.stdout == b"%d\n" % number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--provider", choices=("namespace", "docker"), required=True)
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--json", type=Path, help="write {bench, commit, machine, metrics} here")
    arguments = parser.parse_args()
    metrics = measure(arguments.provider, arguments.n)
    report("live", metrics, arguments.json)


if __name__ == "__main__":
    main()
