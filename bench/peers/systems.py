"""The systems of `bench.peers`, each as its own users would run it.

Rule: a system is a function from a number of episodes and a concurrency to an `Outcome`. Clocks
begin with the first episode and end with the last: what a program needs to be imported is not
counted, for anybody. `passed` is what the system's own verifier found.
"""

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import aiohttp
import uvloop
from bench.floors import docker_floor, namespace_floor
from bench.peers.programs import Outcome, call, settle
from bench.peers.script import ANSWERS, CHECK, INSTRUCTION
from bench.peers.tasks import TASKS, Ready

ROOT = Path(__file__).parents[2]
INSIDE = Path(__file__).parent / "inside"
PLACES = {
    "harbor": ROOT / ".harbor" / "bin" / "harbor",
    "mini_swe_agent": ROOT / ".peers" / "mini-swe-agent" / "bin" / "python",
    "verifiers": ROOT / ".peers" / "verifiers" / "bin" / "vf-eval",
    "headrace": ROOT / ".venv" / "bin" / "headrace",
}


@dataclass(frozen=True)
class Bench:
    """What a system needs to run."""

    ready: Ready
    model: str
    """Address of the model server."""
    work: Path
    """Scratch; emptied between rounds."""


@dataclass(frozen=True, kw_only=True)
class System:
    """One line of the table."""

    name: str
    title: str
    run: Callable[[Bench, int, int], Outcome]
    """Given episodes and concurrency."""
    best: int
    """The concurrency it is fastest at here, by `--sweep`."""
    default: str = ""
    """The concurrency it has when nobody says; empty for floors."""
    episodes: int
    """Of one round: some 20 s of them or more."""
    quick: int
    """Of a round of `--quick`."""
    calls: int = 0
    """Model calls of one episode."""
    levels: tuple[int, ...] = (4, 8, 16)
    """What `--sweep` tries."""
    floor: bool = False


def harbor(bench: Bench, episodes: int, concurrency: int) -> Outcome:
    jobs = bench.work / "jobs"
    line = [PLACES["harbor"], "run", "--path", bench.ready.harbors, "--jobs-dir", jobs]
    line += ["--job-name", "peers", "--agent", "terminus-2", "--model", "openai/terminus-json"]
    settings = (f"api_base={bench.model}/v1", "record_terminal_session=false")
    for setting in (*settings, "enable_summarize=false"):
        line += ["--agent-kwarg", setting]
    line += ["--n-concurrent", str(concurrency), "--n-attempts", str(-(-episodes // TASKS))]
    line += ["--n-tasks", str(min(episodes, TASKS)), "--max-retries", "0", "--yes", "--quiet"]
    _, cpu_s = call(line, bench.work)
    results = [json.loads(path.read_text()) for path in jobs.glob("*/*/result.json")]
    times = [
        datetime.fromisoformat(r[end]) for r in results for end in ("started_at", "finished_at")
    ]
    rewards = [((r["verifier_result"] or {}).get("rewards") or {}).get("reward") for r in results]
    return Outcome(
        episodes=len(results),
        passed=rewards.count(1.0),
        seconds=(max(times) - min(times)).total_seconds(),
        cpu_s=cpu_s,
    )


def mini_swe_agent(bench: Bench, episodes: int, concurrency: int) -> Outcome:
    line = [PLACES["mini_swe_agent"], INSIDE / "mini_pool.py", "--model", bench.model]
    line += ["--image", bench.ready.image, "--instruction", INSTRUCTION, "--check", CHECK]
    line += ["--out", bench.work, "--workers", str(concurrency), "--episodes", str(episodes)]
    settings = bench.work / "settings"
    told, cpu_s = call(line, bench.work, environment={"MSWEA_GLOBAL_CONFIG_DIR": str(settings)})
    settle("name=minisweagent-")
    found = json.loads(told.splitlines()[-1])
    return Outcome(**found, cpu_s=cpu_s)


def verifiers(bench: Bench, episodes: int, concurrency: int) -> Outcome:
    out = bench.work / "traces"
    tasks = min(episodes, TASKS)
    options = {
        "--client.base-url": f"{bench.model}/v1",
        "--client.api-key-var": "OPENAI_API_KEY",
        "--env.taskset.tasks": tasks,
        "--env.taskset.instruction": INSTRUCTION,
        "--env.taskset.check": CHECK,
        "--env.agent.harness.id": "line-file",
        "--env.agent.runtime.type": "docker",
        "--env.agent.runtime.image": bench.ready.image,
        "-m": "shell-block",
        "-r": -(-episodes // tasks),
        "-c": concurrency,
        "-o": out,
    }
    line = [PLACES["verifiers"], "line-file", "--no-push", "--no-rich"]
    line += [str(word) for option in options.items() for word in option]
    _, cpu_s = call(line, bench.work, environment={"PYTHONPATH": str(INSIDE)})
    settle("label=verifiers.run")
    (traces,) = out.glob("*/traces.jsonl")
    found = [json.loads(text)["traces"][0] for text in traces.read_text().splitlines()]
    passed = [trace["rewards"].get("written", {}).get("score") == 1.0 for trace in found]
    # An episode is appended when its container is gone.
    seconds = traces.stat().st_mtime - min(trace["timing"]["start"] for trace in found)
    return Outcome(episodes=len(found), passed=sum(passed), seconds=seconds, cpu_s=cpu_s)


def headrace(provider: str, protocol: str) -> Callable[[Bench, int, int], Outcome]:
    """The command line, over HTTP like the others, with a fixed number of live episodes."""

    def run(bench: Bench, episodes: int, concurrency: int) -> Outcome:
        out = bench.work / "run"
        tasks = min(episodes, TASKS)
        settings: Mapping[str, object] = {
            "tasks.limit": tasks,
            "policy.base_url": bench.model,
            "policy.served_model_name": protocol,
            "policy.protocol": protocol,
            "policy.confirm": str(protocol == "terminus-json").lower(),
            "policy.retries": 0,
            "sandbox.provider": provider,
            "engine.live": concurrency,
            "engine.preparing": concurrency,
            "engine.verifying": concurrency,
            "engine.tries": 1,
        }
        line = [PLACES["headrace"], "eval", "--tasks", bench.ready.ours, "--policy", "vllm"]
        line += ["--attempts", str(-(-episodes // tasks)), "--out", out]
        for key, value in settings.items():
            line += ["--set", f"{key}={value}"]
        _, cpu_s = call(line, bench.work)
        found = json.loads((out / "summary.json").read_text())
        return Outcome(
            episodes=found["episodes"],
            passed=found["passed"],
            seconds=found["wall_s"],
            cpu_s=cpu_s,
        )

    return run


def floor_of_docker(*, lean: bool) -> Callable[[Bench, int, int], Outcome]:
    def run(bench: Bench, episodes: int, concurrency: int) -> Outcome:
        image = bench.ready.image
        per_second = uvloop.run(docker_floor(episodes, concurrency, image, lean=lean))
        return Outcome(episodes=episodes, passed=episodes, seconds=episodes / per_second)

    return run


def floor_of_namespaces(bench: Bench, episodes: int, concurrency: int) -> Outcome:
    per_second = uvloop.run(namespace_floor(episodes, concurrency))
    return Outcome(episodes=episodes, passed=episodes, seconds=episodes / per_second)


def floor_of_asyncio(bench: Bench, episodes: int, concurrency: int) -> Outcome:
    """The model calls alone: a loop that asks, appends and asks again, with no sandbox."""
    seconds = uvloop.run(_only_calls(bench.model, episodes, concurrency))
    return Outcome(episodes=episodes, passed=episodes, seconds=seconds)


async def _only_calls(model: str, episodes: int, concurrency: int) -> float:
    left = iter(range(episodes))
    turns = len(ANSWERS["shell-block"])

    async def worker(session: aiohttp.ClientSession) -> None:
        for _ in left:
            messages = [{"role": "user", "content": INSTRUCTION}]
            for _ in range(turns):
                body = {"model": "shell-block", "messages": messages}
                async with session.post(f"{model}/v1/chat/completions", json=body) as response:
                    answer = await response.json()
                messages.append(answer["choices"][0]["message"])
                messages.append({"role": "user", "content": ""})
            if messages[-2]["content"] != ANSWERS["shell-block"][-1]:
                raise SystemExit(f"expected the last answer of the script, found {messages[-2]}")

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        begun = time.perf_counter()
        async with asyncio.timeout(180), asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker(session))
        return time.perf_counter() - begun


SYSTEMS: tuple[System, ...] = (
    System(
        name="harbor",
        title="Harbor 0.24.0, terminus-2",
        run=harbor,
        default="4",
        best=8,
        episodes=16,
        calls=8,
        quick=2,
    ),
    System(
        name="mini_swe_agent",
        title="mini-swe-agent 2.4.6",
        run=mini_swe_agent,
        default="1",
        best=8,
        episodes=64,
        calls=7,
        quick=4,
    ),
    System(
        name="verifiers",
        title="verifiers 0.4.0",
        run=verifiers,
        default="128",
        best=4,
        episodes=32,
        calls=7,
        quick=4,
        levels=(2, 4, 8, 16),
    ),
    System(
        name="headrace_docker",
        title="headrace, docker",
        run=headrace("docker", "shell-block"),
        default="auto",
        best=4,
        episodes=160,
        calls=7,
        quick=4,
        levels=(2, 4, 8),
    ),
    System(
        name="headrace_docker_terminal",
        title="headrace, docker, terminus-json in a terminal",
        run=headrace("docker", "terminus-json"),
        default="auto",
        best=4,
        episodes=100,
        calls=8,
        quick=4,
        levels=(2, 4, 8),
    ),
    System(
        name="headrace_namespace",
        title="headrace, namespace",
        run=headrace("namespace", "shell-block"),
        default="auto",
        best=16,
        episodes=1200,
        calls=7,
        quick=16,
    ),
    System(
        name="headrace_namespace_terminal",
        title="headrace, namespace, terminus-json in a terminal",
        run=headrace("namespace", "terminus-json"),
        default="auto",
        best=16,
        episodes=500,
        calls=8,
        quick=16,
    ),
    System(
        name="docker_floor",
        title="floor: engine API, create, start, remove",
        run=floor_of_docker(lean=False),
        best=4,
        episodes=120,
        quick=8,
        floor=True,
        levels=(2, 4, 8),
    ),
    System(
        name="docker_lean_floor",
        title="floor: the same, without the engine's networks",
        run=floor_of_docker(lean=True),
        best=4,
        episodes=120,
        quick=8,
        floor=True,
        levels=(2, 4, 8),
    ),
    System(
        name="namespace_floor",
        title="floor: a shell in new namespaces by bubblewrap",
        run=floor_of_namespaces,
        best=8,
        episodes=1200,
        quick=50,
        floor=True,
    ),
    System(
        name="asyncio_floor",
        title="floor: asyncio, the seven model calls alone",
        run=floor_of_asyncio,
        best=32,
        episodes=4000,
        calls=7,
        quick=50,
        floor=True,
        levels=(16, 32, 64),
    ),
)


def emptied(folder: Path) -> Path:
    """`folder`, with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
