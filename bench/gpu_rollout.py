"""Rollouts on a GPU: how near do they come to the model server's own speed, and how busy is it?

For each model one vLLM server of ours, and for each number of live episodes a whole run against it
and the same calls raw (`bench/rollout.py`). A model folder without weights is served with random
ones: then every turn samples all tokens it may. The device's use is sampled each second and drawn,
one picture per model. `--device cpu` runs the same on a CPU, at a size that it holds.

    python -m bench.gpu_rollout --model FOLDER [--model FOLDER ...] --out FOLDER [--json FILE]
    python -m bench.gpu_rollout --device cpu --live 4 --turns 2 --max-tokens 16 --out FOLDER
"""

import argparse
import asyncio
import os
from pathlib import Path

import msgspec
import uvloop
from bench.recorded import DEVELOPMENT, Call, Replay
from bench.report import report
from bench.rollout import Measured, Shape, measure
from bench.utilisation import Utilisation, plot

from headrace.aio import background
from headrace.configs.models import SamplingConfig, ServerConfig
from headrace.engine.preflight import raise_files
from headrace.policies.server import VllmServer
from headrace.policies.weights import SMALL_MODEL, ready_model

SERVED = "bench"
START_S = 1500.0
"""Large shapes compile and capture graphs."""
WARM_UP = ((Call(tuple(range(100, 600)), 32, True),),)
TOLD = (
    "rollout_tokens_s", "raw_tokens_s", "rollout_over_raw", "prefix_hit_rate", "eps_s",
    "engine_ms_per_turn", "lag_p99_ms", "infra_failures",
)  # fmt: skip


async def main_of(arguments: argparse.Namespace) -> dict[str, float | None]:
    """Every model in turn."""
    raise_files(4 * max(arguments.live) + 1000)
    metrics: dict[str, float | None] = {}
    for name in arguments.model:
        folder = await ready_model(name, weights=False)
        metrics |= await one_model(folder, arguments)
    return metrics


async def one_model(model: Path, arguments: argparse.Namespace) -> dict[str, float | None]:
    """Every number of live episodes against one server."""
    config = server_config(model, arguments)
    metrics: dict[str, float | None] = {}
    sampling = SamplingConfig(temperature=1.0, max_tokens=arguments.max_tokens)
    log = arguments.out / f"{model.name}.log"
    async with VllmServer(config, model, SERVED, log) as server:
        used = Utilisation(server.device)
        replay = Replay(server.base_url, SERVED, sampling)
        await replay.run(WARM_UP * min(64, max(arguments.live)), 64)
        async with background(used.watch()):
            for live in arguments.live:
                found = await one_size(model, live, sampling, server.base_url, used, arguments)
                metrics |= named(f"{model.name}_{live}", found, used, live)
    title = f"Use of the {server.device.upper()} by {model.name}, live episodes and raw calls"
    plot(used.samples, title, arguments.out / f"{model.name}.svg")
    return metrics


async def one_size(
    model: Path,
    live: int,
    sampling: SamplingConfig,
    base_url: str,
    used: Utilisation,
    arguments: argparse.Namespace,
) -> Measured:
    shape = Shape(
        provider=arguments.provider,
        live=live,
        episodes=int(arguments.rounds * live),
        tasks=arguments.tasks,
        turns=arguments.turns,
        sampling=sampling,
        seed=live,
    )

    def phase(name: str) -> None:
        used.phase = f"{live} {name}" if name else ""

    out = arguments.out / f"{model.name}-{live}"
    found = await measure(
        shape, model=model, served=SERVED, base_url=base_url, out=out, phase=phase
    )
    (out / "measured.json").write_bytes(msgspec.json.encode(found))
    print(f"{model.name} {live}: {msgspec.json.encode(found).decode()}", flush=True)
    return found


def named(prefix: str, found: Measured, used: Utilisation, live: int) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {f"{prefix}_{one}": getattr(found, one) for one in TOLD}
    metrics[f"{prefix}_use"] = used.mean(f"{live} rollout")
    metrics[f"{prefix}_raw_use"] = used.mean(f"{live} raw")
    return metrics


def server_config(model: Path, arguments: argparse.Namespace) -> ServerConfig:
    args = [*arguments.server_arg]
    if not any(model.glob("*.safetensors")):
        args += ["--load-format", "dummy"]
    return ServerConfig(
        device=arguments.device,
        max_model_len=arguments.context,
        max_num_seqs=min(arguments.max_num_seqs, max(arguments.live)),
        start_timeout_s=START_S,
        args=tuple(args),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", action="append", help=f"a folder; left out: {SMALL_MODEL}")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--live", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--rounds", type=float, default=1.0, help="episodes, as times --live")
    parser.add_argument("--tasks", type=int, default=20, help="that the episodes are of")
    parser.add_argument("--turns", type=int, default=10, help="of an episode")
    parser.add_argument("--max-tokens", type=int, default=128, help="sampled in a turn, at most")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--max-num-seqs", type=int, default=1024)
    parser.add_argument("--server-arg", action="append", default=[], help="for vLLM, as it is")
    parser.add_argument("--provider", choices=("namespace", "docker", "fake"), default="namespace")
    parser.add_argument("--out", type=Path, required=True, help="for runs, logs and pictures")
    parser.add_argument("--json", type=Path, help="write {bench, commit, machine, metrics} here")
    arguments = parser.parse_args()
    os.environ.update(DEVELOPMENT)
    arguments.model = arguments.model or [SMALL_MODEL]
    arguments.out.mkdir(parents=True, exist_ok=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        metrics = runner.run(main_of(arguments))
    report("gpu_rollout", metrics, arguments.json)


if __name__ == "__main__":
    main()
