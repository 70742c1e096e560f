"""One measured rollout against a model server, and the same calls made of it raw, right after.

Rule: the rollout is a whole run as users have it: tasks, sandboxes, protocol, verifiers, store,
steering. Only how text becomes commands is `any_text`'s. The server is up before the clock starts,
and its prefix cache is emptied before each of the two.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec
from bench.any_text import AnyText
from bench.engine import OUTPUT, verifies
from bench.recorded import Replay, forget, possible_hits, read_chains

from headrace.aio import in_thread
from headrace.configs.models import (
    EngineConfig,
    LimitsConfig,
    RunConfig,
    SamplingConfig,
    SandboxConfig,
    TasksConfig,
    VllmConfig,
)
from headrace.engine import runner
from headrace.policies.client import CompletionClient
from headrace.policies.load import load_of
from headrace.policies.vllm import VllmPolicy
from headrace.sandbox.base import Provider
from headrace.sandbox.fake import FakeProvider


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What is rolled out."""

    provider: str
    """`fake`: sandboxes answer from memory, where a machine has none."""
    live: int
    episodes: int
    tasks: int
    turns: int
    sampling: SamplingConfig
    seed: int = 0


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout beside the same calls raw."""

    rollout_tokens_s: float
    raw_tokens_s: float
    rollout_over_raw: float
    prefix_hit_rate: float
    """Of the prompt tokens that could be found in the cache."""
    raw_prefix_hit_rate: float
    eps_s: float
    turns_s: float
    tokens_per_turn: float
    prompt_tokens_per_turn: float
    rollout_s: float
    raw_s: float
    engine_ms_per_turn: float
    lag_p99_ms: float
    infra_failures: int


async def measure(
    shape: Shape,
    *,
    model: Path,
    served: str,
    base_url: str,
    out: Path,
    phase: Callable[[str], object] = lambda name: None,
) -> Measured:
    """Roll out into the folder `out`, then replay. `phase` is told what begins."""
    async with CompletionClient(base_url) as client:
        await forget(base_url)
        start = load_of(await client.metrics())
        phase("rollout")
        summary = await runner.run(
            config := _config(shape, model, base_url),
            out,
            policy=await in_thread(_policy, config),
            provider=_provider(shape),
        )
        middle = load_of(await client.metrics())
        chains = await in_thread(read_chains, out)
        await forget(base_url)
        phase("raw")
        replay = Replay(base_url, served, shape.sampling)
        raw = await replay.run(chains, shape.live)
        end = load_of(await client.metrics())
    phase("")
    if raw.tokens != summary.sampled_tokens:
        raise SystemExit(f"{summary.sampled_tokens} tokens rolled out, {raw.tokens} replayed")
    possible = await in_thread(possible_hits, chains)
    rollout_tokens_s = summary.sampled_tokens / summary.wall_s
    raw_tokens_s = raw.tokens / raw.wall_s
    return Measured(
        rollout_tokens_s=rollout_tokens_s,
        raw_tokens_s=raw_tokens_s,
        rollout_over_raw=rollout_tokens_s / raw_tokens_s,
        prefix_hit_rate=(middle.prefix_hits - start.prefix_hits) / possible,
        raw_prefix_hit_rate=(end.prefix_hits - middle.prefix_hits) / possible,
        eps_s=summary.episodes_per_s,
        turns_s=summary.turns_per_s,
        tokens_per_turn=summary.sampled_tokens / summary.turns,
        prompt_tokens_per_turn=(middle.prefix_queries - start.prefix_queries) / summary.turns,
        rollout_s=summary.wall_s,
        raw_s=raw.wall_s,
        engine_ms_per_turn=1000 * (summary.engine.cpu_s_per_turn or 0.0),
        lag_p99_ms=1000 * (summary.engine.loop_lag_p99_s or 0.0),
        infra_failures=summary.infra_failures,
    )


def _config(shape: Shape, model: Path, base_url: str) -> RunConfig:
    starts = min(16, shape.live)
    return RunConfig(
        attempts=-(-shape.episodes // shape.tasks),
        seed=shape.seed,
        tasks=TasksConfig(source="first-steps", limit=shape.tasks),
        policy=VllmConfig(
            model=str(model), base_url=base_url, protocol="shell-block", sampling=shape.sampling
        ),
        sandbox=SandboxConfig(provider="auto" if shape.provider == "fake" else shape.provider),
        limits=LimitsConfig(max_turns=shape.turns, agent_timeout_s=7200.0),
        engine=EngineConfig(live=shape.live, preparing=starts, verifying=starts),
    )


def _policy(config: RunConfig) -> VllmPolicy:
    assert isinstance(config.policy, VllmConfig)
    return VllmPolicy(config.policy, seed=config.seed, agent=AnyText())


def _provider(shape: Shape) -> Provider | None:
    """None: the one that the configuration names."""
    if shape.provider != "fake":
        return None
    return FakeProvider(
        lambda command: OUTPUT,
        exec_script=verifies,
        record=False,
    )
