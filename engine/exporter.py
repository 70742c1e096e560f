"""Prometheus metrics of a run that goes on.

Rule: what is served is the last status (`status.Status`), at most a second old; it is immutable,
so the server's thread needs no lock and costs the event loop nothing. Beside it stand the process's
own numbers as every Prometheus client tells them. Loopback only.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import headrace
from headrace.aio import in_thread
from headrace.engine.meters import PHASES, Phase
from headrace.engine.scheduler import Stage
from headrace.engine.status import Status
from headrace.errors import UsageError

HOST = "127.0.0.1"


@asynccontextmanager
async def exported(port: int, latest: Callable[[], Status | None]) -> AsyncIterator[str]:
    """Serve what `latest` says for the length of the block; gives the address.

    Raises `UsageError` when the port is taken.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Statuses(latest))
    ProcessCollector(registry=registry)
    try:
        server, thread = await in_thread(start_http_server, port, HOST, registry)
    except OSError as e:
        raise UsageError(
            f"engine.metrics_port: expected a free port, found {port}: {e.strerror or e}"
        ) from e
    try:
        yield f"http://{HOST}:{server.server_port}/metrics"
    finally:
        await in_thread(server.shutdown)
        server.server_close()
        await in_thread(thread.join)


class _Statuses(Collector):
    """Asked by the server's thread."""

    def __init__(self, latest: Callable[[], Status | None]) -> None:
        self._latest = latest

    def describe(self) -> Iterator[Metric]:
        """Nothing: what there is depends on the run."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        status = self._latest()
        if status is None:
            return
        yield _about(status)
        yield from _plan(status)
        yield from _totals(status)
        yield from _engine(status)
        yield from _model(status)
        yield from _host(status)


def _about(status: Status) -> Metric:
    info = GaugeMetricFamily(
        "headrace_run_info", "1, for its labels", labels=["run", "process", "version"]
    )
    info.add_metric([status.run, status.process, headrace.__version__], 1)
    return info


def _plan(status: Status) -> Iterator[Metric]:
    yield _gauge("planned", "Episodes of this session's plan", status.planned)
    stages = GaugeMetricFamily("headrace_episodes", "Episodes by stage", labels=["stage"])
    for stage in Stage:
        stages.add_metric([stage.value], status.stages.get(stage.value, 0))
    yield stages
    bounds = GaugeMetricFamily("headrace_bound", "Episodes that may be in a stage", labels=["of"])
    for name in ("live", "preparing", "verifying"):
        bounds.add_metric([name], getattr(status, name))
    yield bounds
    why = GaugeMetricFamily("headrace_admission", "What decided the live episodes", labels=["why"])
    why.add_metric([status.why], 1)
    yield why
    yield _gauge("warm_sandboxes", "Sandboxes open ahead of their episodes", status.warm)


def _totals(status: Status) -> Iterator[Metric]:
    totals = status.totals
    outcomes = CounterMetricFamily(
        "headrace_finished_episodes", "Durable episodes by outcome", labels=["outcome"]
    )
    for outcome in ("passed", "failed", "infrastructure"):
        outcomes.add_metric([outcome], totals.outcomes.get(outcome, 0))
    yield outcomes
    for name, what, value in (
        ("dropped_episodes", "Episodes that their groups went on without", status.dropped),
        ("turns", "Policy calls with their commands", totals.turns),
        ("sampled_tokens", "Tokens that the policy sampled", totals.sampled_tokens),
        ("sandbox_starts", "Sandboxes that were opened and answered", totals.starts),
        ("retries", "Further tries after infrastructure failures", totals.retries),
        ("pool_hits", "Sandboxes that were open when they were needed", totals.pool_hits),
        ("pool_misses", "Sandboxes that were opened when needed", totals.pool_misses),
        ("breaker_opened", "Times that sandbox starts were paused", status.failed_starts),
    ):
        yield CounterMetricFamily(f"headrace_{name}", what, value=value)


def _engine(status: Status) -> Iterator[Metric]:
    yield _gauge("breaker_open", "1 while sandbox starts are paused", status.breaker_open)
    yield _gauge(
        "loop_lag_p99_seconds", "The event loop's lag in the last second", status.lag_p99_s
    )
    yield _phases(status.phases)


def _phases(found: Mapping[str, Phase]) -> Metric:
    """A summary: the client library has no family for one with quantiles."""
    metric = Metric("headrace_phase_seconds", "Where durable episodes spent their time", "summary")
    for name in PHASES:
        phase, labels = found.get(f"{name}_s"), {"phase": name}
        if phase is None:
            continue
        for quantile, value in (("0.5", phase.p50_s), ("0.99", phase.p99_s)):
            metric.add_sample(metric.name, {**labels, "quantile": quantile}, value)
        metric.add_sample(f"{metric.name}_count", labels, phase.episodes)
        metric.add_sample(f"{metric.name}_sum", labels, phase.total_s)
    return metric


def _model(status: Status) -> Iterator[Metric]:
    model = status.model
    if model is None:
        return
    yield _gauge("model_kv_cache_ratio", "Key-value cache in use, 0 to 1", model.kv_use)
    yield _gauge("model_running", "Requests the model server works on", model.running)
    yield _gauge("model_waiting", "Requests that wait for it", model.waiting)
    for name, value in (
        ("preemptions", model.preemptions),
        ("prefix_queries", model.prefix_queries),
        ("prefix_hits", model.prefix_hits),
    ):
        yield CounterMetricFamily(
            f"headrace_model_{name}", "As the model server counts", value=value
        )


def _host(status: Status) -> Iterator[Metric]:
    host = status.host
    pressure = GaugeMetricFamily("headrace_host_pressure_ratio", "Of the last 10 s", labels=["of"])
    for name in ("cpu", "memory", "io"):
        pressure.add_metric([name], getattr(host, name))
    yield pressure
    yield _gauge("host_memory_free_ratio", "Share of the memory that is free", host.memory_free)
    if host.disk_free_bytes is not None:
        yield _gauge("host_disk_free_bytes", "Of the run folder", host.disk_free_bytes)


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(f"headrace_{name}", what, value=float(value))
