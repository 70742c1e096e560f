"""The benchmark of a rollout beside the same calls raw: a stub server, sandboxes in memory."""

from pathlib import Path

from bench.any_text import AnyText
from bench.engine import stub
from bench.recorded import Call, possible_hits, read_chains
from bench.rollout import Shape, measure

from headrace.configs.models import SamplingConfig
from headrace.policies.rendering import Chat


async def test_a_rollout_is_measured_and_its_calls_are_made_again(
    small_model: Path, chat: Chat, tmp_path: Path
) -> None:
    phases: list[str] = []
    shape = Shape(
        provider="fake",
        live=4,
        episodes=8,
        tasks=2,
        turns=3,
        sampling=SamplingConfig(max_tokens=64),
    )
    with stub(chat, 0.0) as address:
        found = await measure(
            shape,
            model=small_model,
            served="stub",
            base_url=address,
            out=tmp_path / "run",
            phase=phases.append,
        )
    chains = read_chains(tmp_path / "run")
    assert phases == ["rollout", "raw", ""]
    assert found.infra_failures == 0
    assert [len(chain) for chain in chains] == [3] * 8
    assert found.tokens_per_turn == chains[0][0].sampled
    assert 0 < found.rollout_over_raw == found.rollout_tokens_s / found.raw_tokens_s


def test_what_a_perfect_cache_would_find_is_what_stood_before() -> None:
    first = (Call((1, 2, 3, 4), 10, True), Call((5, 6), 10, False))
    sibling = (Call((1, 2, 9, 9), 10, True),)
    assert possible_hits([first]) == 14  # the second call finds the first and its sample
    assert possible_hits([first, sibling]) == 14 + 2
    assert possible_hits([first, first]) == 14 + 3 + 14  # the last token is always read


def test_the_same_text_is_the_same_command() -> None:
    agent = AnyText()
    assert agent.parse("one") == agent.parse("one")
    assert len({agent.parse(str(n)).commands for n in range(100)}) > 4
