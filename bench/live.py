"""How many sandboxes can be alive at once, every one of them answering a command?

Opens them, a bounded number at a time, then asks each for its own number at the same moment, and
closes them. Counts what each costs the machine in memory and processes while all are open.

    python -m bench.live --provider namespace --n 10000 [--json FILE]
"""

import argparse
import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop
from bench.report import report

from headrace.aio import fan_out
from headrace.configs.models import SandboxConfig
from headrace.engine.host import memory_bytes, running
from headrace.engine.preflight import prepare
from headrace.sandbox.base import Limits, Provider, Sandbox, SandboxSpec
from headrace.sandbox.providers import choose
from headrace.types import EnvironmentRecipe

OPENING = {"namespace": 8, "docker": 6}
CLOSING = 32
ANSWER_S = 300.0


async def measure(name: str, n: int) -> dict[str, float | None]:
    async with await choose(SandboxConfig.model_validate({"provider": name})) as chosen:
        provider = chosen.provider
        fitted = prepare(n, provider.footprint)
        for note in fitted.notes:
            print(note)
        if fitted.live < n:
            raise SystemExit(f"this machine holds {fitted.live} of {n}")
        image = await provider.prepare(EnvironmentRecipe(image="headrace/base:bookworm"))
        return await _measure(provider, image, n)


async def _measure(provider: Provider, image: str, n: int) -> dict[str, float | None]:
    before = (memory_bytes()[1] or 0, running())
    stacks = [AsyncExitStack() for _ in range(n)]
    spec = SandboxSpec(image=image, episode="bench-live", limits=Limits(memory_mb=256, pids=64))

    async def open_one(stack: AsyncExitStack) -> Sandbox:
        return await stack.enter_async_context(provider.open(spec))

    try:
        begun = time.perf_counter()
        sandboxes = await fan_out(open_one, stacks, limit=OPENING[provider.name])
        open_s = time.perf_counter() - begun
        used = before[0] - (memory_bytes()[1] or 0)
        threads = running() - before[1]
        begun = time.perf_counter()
        answers = await fan_out(_ask, list(enumerate(sandboxes)), limit=n)
        answer_s = time.perf_counter() - begun
    finally:
        begun = time.perf_counter()
        await fan_out(AsyncExitStack.aclose, stacks, limit=CLOSING)
        close_s = time.perf_counter() - begun
    prefix = provider.name
    return {
        f"{prefix}_live": n,
        f"{prefix}_answering": sum(answers),
        f"{prefix}_opened_s": n / open_s,
        f"{prefix}_answers_s": n / answer_s,
        f"{prefix}_closed_s": n / close_s,
        f"{prefix}_mb_each": used / n / 1e6,
        f"{prefix}_threads_each": threads / n,
    }


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
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        metrics = runner.run(measure(arguments.provider, arguments.n))
    report("live", metrics, arguments.json)


if __name__ == "__main__":
    main()
