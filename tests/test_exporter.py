"""Prometheus metrics: what a real client reads from a real endpoint."""

import socket
from collections.abc import Callable

import aiohttp
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.engine.admission import HostLoad
from headrace.engine.exporter import exported
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
    phases={"policy_s": (0.5, 2.0)},
)


async def scraped(latest: Callable[[], Status | None]) -> dict[tuple[str, ...], float]:
    """Samples by name and label values."""
    async with exported(0, latest) as address, aiohttp.ClientSession() as session:
        async with session.get(address) as answer:
            assert answer.status == 200
            text = await answer.text()
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
        ("headrace_model_kv_cache",): 0.5,
        ("headrace_model_prefix_hits_total",): 90,
        ("headrace_host_pressure", "cpu"): 0.25,
        ("headrace_host_disk_free_bytes",): 5,
    }
    assert {key: found.get(key) for key in expected} == expected


async def test_before_the_first_look_there_is_nothing_to_tell() -> None:
    assert await scraped(lambda: None) == {}


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
