"""A run with a policy and a provider of one's own."""

from pathlib import Path

from bench.engine import verifies

from headrace.configs.models import EngineConfig, RunConfig, TasksConfig
from headrace.engine import runner
from headrace.engine.events import Event, RunStarted
from headrace.engine.reader import latest_episodes
from headrace.policies.fake import FakePolicy
from headrace.sandbox.fake import FakeProvider


async def test_they_take_the_place_of_what_the_configuration_names(tmp_path: Path) -> None:
    seen: list[Event] = []
    provider = FakeProvider(exec_script=verifies)
    config = RunConfig(tasks=TasksConfig(limit=2), attempts=3, engine=EngineConfig(live=4))
    summary = await runner.run(
        config,
        tmp_path / "run",
        policy=FakePolicy(turns=2),
        provider=provider,
        on_event=seen.append,
    )
    assert (summary.passed, summary.owed, summary.turns) == (6, 0, 12)
    assert {e.policy for e in latest_episodes(tmp_path / "run")} == {"fake"}
    assert {e.provider for e in latest_episodes(tmp_path / "run")} == {"fake"}
    (started,) = [event for event in seen if isinstance(event, RunStarted)]
    assert started.provider_reason == "fake: as given"
    assert provider.live == 0
