"""A vLLM server's metrics as its load, and the load of several as one. Pure."""

from collections.abc import Mapping, Sequence

from headrace.policies.base import ModelLoad


def load_of(metrics: Mapping[str, float]) -> ModelLoad:
    """The load by metrics, by name and summed over labels."""
    return ModelLoad(
        kv_use=min(1.0, _value(metrics, "kv_cache_usage_perc")),
        running=int(_value(metrics, "num_requests_running")),
        waiting=int(_value(metrics, "num_requests_waiting")),
        preemptions=_value(metrics, "num_preemptions"),
        prefix_queries=_value(metrics, "prefix_cache_queries"),
        prefix_hits=_value(metrics, "prefix_cache_hits"),
    )


def tokens_of(metrics: Mapping[str, float]) -> float | None:
    """Tokens read and sampled since the server started: they grow while it works. None: not told"""
    if "vllm:generation_tokens_total" not in metrics:
        return None
    return _value(metrics, "prompt_tokens") + _value(metrics, "generation_tokens")


def sum_of(loads: Sequence[ModelLoad]) -> ModelLoad:
    """Equal servers as one: the sums, and the fullest cache."""
    return ModelLoad(
        kv_use=max(load.kv_use for load in loads),
        running=sum(load.running for load in loads),
        waiting=sum(load.waiting for load in loads),
        preemptions=sum(load.preemptions for load in loads),
        prefix_queries=sum(load.prefix_queries for load in loads),
        prefix_hits=sum(load.prefix_hits for load in loads),
    )


def _value(metrics: Mapping[str, float], name: str) -> float:
    return metrics.get(f"vllm:{name}", metrics.get(f"vllm:{name}_total", 0.0))
