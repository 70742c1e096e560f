"""Uses of the public interface that must type-check. mypy reads it; nothing runs it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from headrace.configs.load import load
from headrace.configs.models import OracleConfig, RunConfig
from headrace.engine import runner
from headrace.engine.events import EpisodeFinished, Event
from headrace.engine.reader import find, latest_episodes
from headrace.engine.summary import Summary
from headrace.policies.base import Budget, ModelLoad, Policy, Session
from headrace.preferences import Pair, Rule, follow
from headrace.sandbox.base import Provider, Sandbox, SandboxSpec
from headrace.sandbox.docker import DockerProvider
from headrace.sandbox.fake import FakeProvider
from headrace.sandbox.namespace import NamespaceProvider
from headrace.types import Action, CommandResult, Episode, StopReason, Task, Verdict
from headrace.verifiers.base import Verifier


class OneShot:
    """A policy of one's own."""

    prompt = opening = ""

    async def act(self, results: Sequence[CommandResult], budget: Budget) -> Action:
        return Action(text="", done=True)

    def observation(self) -> str:
        return ""


class OneShotPolicy:
    name = "one-shot"
    version = "1"
    terminal = False

    @asynccontextmanager
    async def session(self, task: Task, sample: int) -> AsyncIterator[Session]:
        yield OneShot()

    async def load(self) -> ModelLoad | None:
        return None

    async def __aenter__(self) -> Policy:
        return self

    async def __aexit__(self, *exc: object) -> None: ...


class AlwaysRight:
    """A verifier of one's own."""

    async def verify(self, task: Task, sandbox: Sandbox) -> Verdict:
        result = await sandbox.exec("true", timeout_s=5.0)
        return Verdict(reward=1.0 if result.exit_code == 0 else 0.0)


policy: Policy = OneShotPolicy()
verifier: Verifier = AlwaysRight()
providers: tuple[Provider, ...] = (NamespaceProvider(), DockerProvider(), FakeProvider())


def watch(event: Event) -> None:
    if isinstance(event, EpisodeFinished):
        reward: float | None = event.reward
        del reward


async def evaluate(out: Path) -> Summary:
    config: RunConfig = load("oracle", ["attempts=2"])
    await runner.run(config, out, on_event=watch)
    await runner.run(config, out, policy=OneShotPolicy(), provider=FakeProvider())
    return await runner.run(RunConfig(policy=OracleConfig()), out)


def read(run: Path) -> dict[str, StopReason]:
    one: Episode | None = find(run, "0123456789abcdef")
    del one
    return {e.id: e.stop_reason for e in latest_episodes(run) if e.verdict.passed}


async def by_hand(provider: Provider, spec: SandboxSpec) -> bytes:
    async with provider.open(spec) as sandbox:
        return (await sandbox.run("echo hi", timeout_s=5.0)).stdout


async def consume(run: Path) -> None:
    """Pairs while a run goes on."""
    async with aclosing(follow(run, [Rule(kind="litecoder")], idle_timeout_s=60)) as pairs:
        async for pairing in pairs:
            pair: Pair = pairing.pair
            chosen: Episode = pairing.chosen
            del pair, chosen
