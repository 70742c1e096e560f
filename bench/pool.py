"""What share of the sandbox starts is over before an episode needs it, and what is that worth?

The same run with the pool and without: episodes of 7 commands, whose model thinks for a given time
before each of them. A start counts as warm when the sandbox was open or on its way.

    python -m bench.pool [--provider namespace|docker] [--think-s 0.2] [--live 8] [--json FILE]
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

import uvloop
from bench.report import report

from headrace.configs.models import RunConfig
from headrace.engine import runner, status
from headrace.policies.fake import FakePolicy

TURNS = 7
MODES = {"pool": None, "cold": 0}
"""`sandbox.warm` of each."""


async def one(arguments: argparse.Namespace, warm: int | None) -> dict[str, float]:
    """A run of its own. The images are made before it."""
    config = RunConfig.model_validate(
        {
            "attempts": arguments.attempts,
            "policy": {"type": "noop"},  # in its place comes one that thinks
            "sandbox": {"provider": arguments.provider, "warm": warm},
            "engine": {"live": arguments.live, "preparing": 4, "verifying": 4},
        }
    )
    policy = FakePolicy(turns=TURNS, think_s=arguments.think_s)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        run = Path(folder, "run")
        summary = await runner.run(config, run, policy=policy)
        (last,) = status.read(run)
    if summary.infra_failures:
        raise SystemExit(f"{summary.infra_failures} infrastructure failures: no figure")
    starts = last.totals.pool_hits + last.totals.pool_misses
    return {
        "warm_share": last.totals.pool_hits / starts,
        "start_p50_s": last.phases["start_s"][0],
        "start_p99_s": last.phases["start_s"][1],
        "eps_s": summary.episodes_per_s,
    }


async def measure(arguments: argparse.Namespace) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {}
    attempts, arguments.attempts = arguments.attempts, 1
    await one(arguments, 0)  # images
    arguments.attempts = attempts
    for mode, warm in MODES.items():
        found = await one(arguments, warm)
        metrics |= {f"{arguments.provider}_{mode}_{name}": value for name, value in found.items()}
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--provider", choices=("namespace", "docker"), default="namespace")
    parser.add_argument("--attempts", type=int, default=6, help="episodes per task")
    parser.add_argument("--think-s", type=float, default=0.2, help="mean time of a model's call")
    parser.add_argument("--live", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write {bench, commit, machine, metrics} here")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        metrics = loop.run(measure(arguments))
    report("pool", metrics, arguments.json)


if __name__ == "__main__":
    main()
