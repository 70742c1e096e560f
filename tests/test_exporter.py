"""Prometheus metrics: what a real client reads from a real endpoint."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import aiohttp
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

import headrace
from headrace.configs.models import (
    EngineConfig,
    RunConfig,
    SandboxConfig,
    ScriptedConfig,
    TasksConfig,
)
from headrace.engine import runner
from headrace.engine.admission import HostLoad
from headrace.engine.events import Event, Note
from headrace.engine.exporter import exported
from headrace.engine.meters import PHASES, Phase
from headrace.engine.status import Rates, Status, Totals
from headrace.errors import UsageError
from headrace.policies.base import ModelLoad

STATUS = Status(
    at=0.0,
    pid=1,
    run="r",
    process="main",
    uptime_s=1.0,
    planned=100,
    finished=7,
    dropped=1,
    failed_starts=2,
    stages={"act": 5},
    live=16,
    preparing=4,
    verifying=4,
    why="grows",
    breaker_open=True,
    warm=3,
    rates=Rates(episodes=1.0),
    totals=Totals(turns=70, sampled_tokens=900, outcomes={"passed": 6}, pool_hits=5),
    lag_p99_s=0.004,
    model=ModelLoad(kv_use=0.5, running=8, waiting=2, preemptions=1, prefix_hits=90),
    host=HostLoad(cpu=0.25, disk_free_bytes=5),
    phases={"policy_s": Phase(0.5, 2.0, 6, 4.5), "act_s": Phase(1.0, 3.0, 6, 7.0)},
)


async def scraped(latest: Callable[[], Status | None]) -> dict[tuple[str, ...], float]:
    """Samples by name and label values."""
    async with exported(0, latest) as address, aiohttp.ClientSession() as session:
        return samples(await text_of(session, address))


async def text_of(session: aiohttp.ClientSession, address: str) -> str:
    async with session.get(address) as answer:
        text = await answer.text()
        assert answer.status == 200, text
        return text


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_a_client_reads_stages_totals_and_both_ends() -> None:
    found = await scraped(lambda: STATUS)
    expected = {
        ("headrace_planned",): 100,
        ("headrace_episodes", "act"): 5,
        ("headrace_episodes", "queued"): 0,
        ("headrace_bound", "live"): 16,
        ("headrace_admission", "grows"): 1,
        ("headrace_warm_sandboxes",): 3,
        ("headrace_finished_episodes_total", "passed"): 6,
        ("headrace_finished_episodes_total", "infrastructure"): 0,
        ("headrace_dropped_episodes_total",): 1,
        ("headrace_turns_total",): 70,
        ("headrace_sampled_tokens_total",): 900,
        ("headrace_pool_hits_total",): 5,
        ("headrace_breaker_opened_total",): 2,
        ("headrace_breaker_open",): 1,
        ("headrace_loop_lag_p99_seconds",): 0.004,
        ("headrace_phase_seconds", "policy", "0.99"): 2.0,
        ("headrace_phase_seconds_count", "policy"): 6,
        ("headrace_phase_seconds_sum", "policy"): 4.5,
        ("headrace_phase_seconds_sum", "act"): None,
        ("headrace_model_kv_cache_ratio",): 0.5,
        ("headrace_model_prefix_hits_total",): 90,
        ("headrace_host_pressure_ratio", "cpu"): 0.25,
        ("headrace_host_disk_free_bytes",): 5,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["headrace_run_info", "main", "r", headrace.__version__] == 1
    assert found["process_cpu_seconds_total",] > 0


async def test_before_the_first_look_there_is_nothing_to_tell() -> None:
    names = {name for name, *_ in await scraped(lambda: None)}
    assert not [name for name in names if not name.startswith("process_")]


async def test_a_policy_without_a_server_has_no_model() -> None:
    found = await scraped(lambda: msgspec.structs.replace(STATUS, model=None))
    assert not [name for name, *_ in found if name.startswith("headrace_model")]


async def test_a_taken_port_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"engine.metrics_port: .* found {port}"):
            async with exported(port, lambda: None):
                raise AssertionError("it was free")


async def test_the_port_is_free_again_afterwards() -> None:
    async with exported(0, lambda: None) as address:
        port = int(address.rpartition(":")[2].partition("/")[0])
    async with exported(port, lambda: None):
        pass


SLOW = ScriptedConfig(commands=("sleep 1.5", "echo done"))


@pytest.mark.timeout(60)
async def test_a_run_that_goes_on_is_scraped(only_namespace: str, tmp_path: Path) -> None:
    config = RunConfig(
        tasks=TasksConfig(limit=3),
        policy=SLOW,
        sandbox=SandboxConfig.model_validate({"provider": only_namespace}),
        engine=EngineConfig(live=2, metrics_port=0),
    )
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def hear(event: Event) -> None:
        if isinstance(event, Note) and event.text.startswith("metrics: "):
            told.set_result(event.text.removeprefix("metrics: "))

    async def look(address: str) -> dict[tuple[str, ...], float]:
        async with aiohttp.ClientSession() as session:
            while True:
                found = samples(await text_of(session, address))
                if found.get(("headrace_episodes", "act"), 0) > 0:
                    return found

    async with asyncio.timeout(50), asyncio.TaskGroup() as group:
        run = group.create_task(runner.run(config, tmp_path / "run", on_event=hear))
        found = await look(await told)
    assert (found["headrace_planned",], found["headrace_bound", "live"]) == (3, 2)
    assert 1 <= found["headrace_episodes", "act"] <= 2
    assert run.result().episodes == 3
    phases = run.result().engine.phases
    assert set(PHASES) <= set(phases)
    assert phases["command"].p50_s >= 1.5 and phases["command"].total_s >= 4.5
    assert phases["start"].p50_s > 0 and phases["verify"].p50_s > 0 and phases["store"].p50_s > 0


async def test_every_metric_and_label_is_in_the_manual() -> None:
    manual = (Path(__file__).parents[1] / "docs" / "howto" / "observe.md").read_text()
    async with exported(0, lambda: STATUS) as address, aiohttp.ClientSession() as session:
        text = await text_of(session, address)
    for family in text_string_to_metric_families(text):
        if family.name.startswith("headrace_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            (line,) = (
                line for line in manual.splitlines() if f"| `{name}`" in line.replace(", ", "| ")
            )
            for sample in family.samples:
                assert all(f"`{label}`" in line for label in sample.labels)
