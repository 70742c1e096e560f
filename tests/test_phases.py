"""What a task's phases may reach, and what an episode asks of its provider for each."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from headrace.engine.episode import Attempt
from headrace.engine.limits import combine
from headrace.engine.parts import Parts, Planned
from headrace.errors import ImageError, SandboxError
from headrace.policies.base import Budget, Policy, Session
from headrace.policies.listed import ListedSession
from headrace.sandbox.base import Limits, Sandbox, SandboxSpec
from headrace.sandbox.fake import FakeProvider, FakeSandbox
from headrace.tasks.phases import Reach, asks_for_network, fold, reach, verifier_reach
from headrace.tasks.recipes import recipes_of, unsupported
from headrace.types import (
    Action,
    AgentRecipe,
    Artifact,
    CollectHook,
    Command,
    CommandResult,
    ComposeFile,
    EnvironmentRecipe,
    Episode,
    HealthCheck,
    NetworkPolicy,
    SolutionRecipe,
    StepRecipe,
    Task,
    Turn,
    Verdict,
    VerifierRecipe,
)
from headrace.verifiers.base import Verifier
from headrace.verifiers.harbor import HarborVerifier

PUBLIC = NetworkPolicy()
NONE = NetworkPolicy(mode="none")
SOME = NetworkPolicy(mode="allowlist", allowed_hosts=("example.org",))
OTHER = NetworkPolicy(mode="allowlist", allowed_hosts=("example.com",))
NOBODY = NetworkPolicy(mode="allowlist")


def task(
    world: NetworkPolicy = PUBLIC,
    agents: NetworkPolicy | None = None,
    tests: NetworkPolicy | None = None,
    **changes: object,
) -> Task:
    usual = Task(
        name="t",
        digest="d",
        path="/t",
        format="harbor",
        instruction="x",
        environment=EnvironmentRecipe(image="x", network=world),
        agent=AgentRecipe(network=agents),
        verifier=VerifierRecipe(network=tests),
    )
    return msgspec.structs.replace(usual, **changes)


# --- pure -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        ((PUBLIC, PUBLIC), Reach(network=True)),
        ((NONE, NONE), Reach(network=False)),
        ((NONE, NOBODY), Reach(network=False)),
        ((SOME, SOME), Reach(network=False, egress=SOME)),
        ((PUBLIC, NONE), Reach(network=False, egress=PUBLIC)),
        ((NONE, PUBLIC), Reach(network=False, egress=NONE)),
        ((SOME, OTHER), Reach(network=False, egress=SOME)),
    ],
)
def test_a_proxy_is_needed_only_where_the_rule_changes_or_names_hosts(
    policies: tuple[NetworkPolicy, ...], expected: Reach
) -> None:
    assert fold(policies, follow=True) == expected
    assert fold(policies, follow=False) == Reach(network=False)


def test_a_phase_without_a_policy_has_the_environments() -> None:
    assert reach(task(NONE), follow=True) == Reach(network=False)
    assert reach(task(NONE, agents=PUBLIC), follow=True) == Reach(network=False, egress=PUBLIC)
    assert reach(task(PUBLIC, agents=NONE, tests=NONE), follow=True) == Reach(network=False)


def test_what_runs_in_no_phase_needs_what_the_environment_grants() -> None:
    checked = EnvironmentRecipe(image="x", network=PUBLIC, healthcheck=HealthCheck(command="c"))
    closed = task(PUBLIC, agents=NONE, tests=NONE, environment=checked)
    assert reach(closed, follow=True) == Reach(network=False, egress=PUBLIC)


def test_a_verifier_of_its_own_does_not_open_the_agents_sandbox() -> None:
    apart = VerifierRecipe(environment=EnvironmentRecipe(image="y", network=PUBLIC))
    separate = task(NONE)
    separate = msgspec.structs.replace(separate, verifier=apart)
    assert reach(separate, follow=True) == Reach(network=False)
    assert verifier_reach(separate, follow=True) == Reach(network=True)


def step(name: str, **changes: object) -> StepRecipe:
    usual = StepRecipe(name=name, instruction="x", agent=AgentRecipe(), verifier=VerifierRecipe())
    return msgspec.structs.replace(usual, **changes)


def test_every_step_counts() -> None:
    steps = (step("a"), step("b", agent=AgentRecipe(network=SOME)))
    assert reach(task(NONE, steps=steps), follow=True) == Reach(network=False, egress=NONE)


def test_a_task_asks_for_a_network_when_any_step_or_any_verifier_does() -> None:
    assert asks_for_network(task(PUBLIC))
    assert asks_for_network(task(NONE, tests=SOME))
    assert not asks_for_network(task(NONE, agents=NOBODY))
    apart = VerifierRecipe(environment=EnvironmentRecipe(image="y", network=PUBLIC))
    assert asks_for_network(task(NONE, verifier=apart))
    assert asks_for_network(task(NONE, steps=(step("a"), step("b", verifier=apart))))
    assert asks_for_network(task(NONE, steps=(step("a", agent=AgentRecipe(network=SOME)),)))
    assert not asks_for_network(task(NONE, steps=(step("a"),)))


def test_images_are_made_for_the_agent_and_for_each_verifier_of_its_own() -> None:
    world, one, two = (EnvironmentRecipe(image=name) for name in ("x", "y", "z"))
    assert recipes_of(task()) == [world]
    apart = msgspec.structs.replace(task(), verifier=VerifierRecipe(environment=one))
    assert recipes_of(apart) == [world, one]
    verifiers = [VerifierRecipe(environment=e) for e in (one, None, two, one)]
    steps = tuple(step(str(i), verifier=v) for i, v in enumerate(verifiers))
    assert recipes_of(task(steps=steps)) == [world, one, two]


def test_steps_of_different_users_are_refused_by_name() -> None:
    assert unsupported(task(steps=(step("a"), step("b")))) is None
    mixed = (step("a"), step("b", agent=AgentRecipe(user="worker")))
    reason = unsupported(task(steps=mixed))
    assert reason is not None and "the image's own, worker" in reason


LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (
            {"environment": EnvironmentRecipe(image="x", healthcheck=HealthCheck(command=LONG))},
            "environment.healthcheck",
        ),
        ({"verifier": VerifierRecipe(collect=(CollectHook(command=LONG),))}, "verifier.collect[0]"),
        ({"artifacts": (Artifact(source="/a"), Artifact(source=f"/{LONG}"))}, "artifacts"),
        (
            {"steps": (step("a"), step("b", healthcheck=HealthCheck(command=LONG)))},
            "healthcheck of step 'b'",
        ),
    ],
)
def test_a_command_that_fits_into_no_argument_is_refused_by_name(
    changes: dict[str, object], name: str
) -> None:
    reason = unsupported(task(**changes))  # type: ignore[arg-type]
    assert reason is not None and reason.startswith(f"{name}: ")


# --- over the fake provider -----------------------------------------------------------------


class Opens(FakeProvider):
    """Keeps what it was asked to open; the agent's is the first."""

    def __init__(self, **changes: object) -> None:
        super().__init__(**changes)  # type: ignore[arg-type]
        self.specs: list[SandboxSpec] = []

    @asynccontextmanager
    async def open(self, spec: SandboxSpec) -> AsyncIterator[FakeSandbox]:
        self.specs.append(spec)
        async with super().open(spec) as sandbox:
            yield sandbox


class Watching:
    """A policy of one turn, and a verifier, that look at their sandboxes."""

    version = "1"
    terminal = False

    def __init__(self, *commands: Command, name: str = "test", terminal: bool = False) -> None:
        self.name = name
        self.terminal = terminal
        self.provider = Opens()
        self.specs: list[SandboxSpec] = []
        self.reached: list[NetworkPolicy | None] = []
        self._commands = commands

    def look(self, spec: SandboxSpec) -> None:
        self.specs.append(spec)
        self.reached.append(None if spec.egress is None else spec.egress.policy)

    @asynccontextmanager
    async def session(self, task: Task, sample: int) -> AsyncIterator[Session]:
        session = ListedSession(())

        async def act(results: Sequence[CommandResult], budget: Budget) -> Action:
            self.look(self.provider.specs[0])
            return Action(text="", commands=self._commands, done=True)

        session.act = act  # type: ignore[method-assign]
        yield session

    async def __aenter__(self) -> Policy:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    async def verify(self, task: Task, sandbox: Sandbox) -> Verdict:
        """The verifier, which looks too."""
        await asyncio.sleep(0)
        assert isinstance(sandbox, FakeSandbox)
        self.look(sandbox.spec)
        return Verdict(reward=1.0)


class NoStages:
    def prepared(self) -> None: ...

    def turn(self, turn: Turn, sampled_tokens: int) -> None: ...

    async def acted(self) -> None: ...

    def again(self) -> None: ...

    def verified(self) -> None: ...


async def attempted(
    of: Task,
    watching: Watching,
    *,
    verifier: Verifier | None = None,
    network: bool = True,
    artifacts: Path | None = None,
) -> Episode:
    limits = combine(
        of,
        max_turns=5,
        max_tokens=None,
        agent_timeout_s=None,
        command_timeout_s=5.0,
        verifier_timeout_s=None,
    )
    planned = Planned(id="e0", task=of, sample=0, limits=limits, sandbox=Limits(), network=network)
    parts = Parts(
        provider=watching.provider,
        policy=watching,
        verifier=verifier or watching,
        artifacts=artifacts,
    )
    attempt = Attempt(planned, parts)
    async with asyncio.timeout(20):
        await attempt.run(NoStages())
    assert watching.provider.live == 0
    return attempt.episode(tries=1, queue_s=0.0)


async def test_each_phase_begins_with_its_own_rule() -> None:
    watching = Watching()
    await attempted(task(SOME, agents=NONE, tests=PUBLIC), watching)
    assert watching.reached == [NONE, PUBLIC]
    assert [spec.network for spec in watching.specs] == [False, False]


async def test_a_run_without_network_has_no_proxy_either() -> None:
    watching = Watching()
    await attempted(task(SOME, agents=PUBLIC), watching, network=False)
    assert [(spec.network, spec.egress) for spec in watching.specs] == [(False, None)] * 2


async def test_a_sandbox_whose_phases_are_all_public_is_simply_connected() -> None:
    watching = Watching()
    await attempted(task(), watching)
    assert (watching.specs[0].network, watching.specs[0].egress) == (True, None)


async def test_a_verifier_of_its_own_has_its_own_sandbox_user_and_rule(tmp_path: Path) -> None:
    watching = Watching()
    environment = EnvironmentRecipe(image="y", workdir="/w", memory_mb=64, network=SOME)
    apart = task(NONE)
    recipe = VerifierRecipe(environment=environment, user="grader")
    apart = msgspec.structs.replace(apart, verifier=recipe)
    await attempted(apart, watching, artifacts=tmp_path)
    agents, verifiers = watching.specs
    assert (agents.image, agents.network, agents.egress) == ("x", False, None)
    assert (verifiers.image, verifiers.workdir, verifiers.user) == ("y", "/w", None)
    assert (verifiers.limits.memory_mb, verifiers.limits.cpus) == (64, agents.limits.cpus)
    assert watching.reached == [None, SOME]
    closed = [call.method for call in watching.provider.calls].index("close")
    assert "exec" in [call.method for call in watching.provider.calls][:closed]
    assert watching.provider.most_live == 1, "the agent's is closed first"


async def test_steps_keep_the_agents_sandbox_open_until_the_last_is_collected(
    tmp_path: Path,
) -> None:
    watching = Watching()
    apart = VerifierRecipe(environment=EnvironmentRecipe(image="y"))
    two = task(steps=(step("a", verifier=apart), step("b", verifier=apart)))
    episode = await attempted(two, watching, artifacts=tmp_path)
    assert [s.name for s in episode.steps] == ["a", "b"]
    assert [spec.image for spec in watching.specs] == ["x", "y", "x", "y"]
    assert watching.provider.opened == 3
    removed = [c for c in watching.provider.calls if c.subject.startswith("rm -rf")]
    assert removed == [], "no tests were in the agent's sandbox"


async def test_a_verifiers_image_that_cannot_be_built_is_the_infrastructures_fault() -> None:
    watching = Watching()

    class Builds(Opens):
        async def prepare(self, recipe: EnvironmentRecipe) -> str:
            if recipe.image == "y":
                raise ImageError("no such instruction")
            return await super().prepare(recipe)

    watching.provider = Builds()
    recipe = VerifierRecipe(environment=EnvironmentRecipe(image="y"))
    with pytest.raises(ImageError):
        await attempted(msgspec.structs.replace(task(), verifier=recipe), watching)


async def test_a_verifiers_sandbox_that_does_not_start_in_time_is_an_error() -> None:
    watching = Watching()

    class Slow(Opens):
        async def prepare(self, recipe: EnvironmentRecipe) -> str:
            if recipe.image == "y":
                await asyncio.Event().wait()
            return await super().prepare(recipe)

    watching.provider = Slow()
    environment = EnvironmentRecipe(image="y", build_timeout_s=0.05)
    apart = msgspec.structs.replace(task(), verifier=VerifierRecipe(environment=environment))
    with pytest.raises(SandboxError, match=r"not ready within 0\.05 s"):
        await attempted(apart, watching)


async def test_the_compose_file_and_the_first_steps_user_go_into_the_spec() -> None:
    compose = ComposeFile(path="/c.yaml", context="/", services=("main", "db"))
    environment = EnvironmentRecipe(image="x", compose=compose)
    watching = Watching()
    both = task(environment=environment, agent=AgentRecipe(user="worker"))
    await attempted(both, watching)
    assert (watching.specs[0].compose, watching.specs[0].user) == (compose, "worker")
    steps = (step("a", agent=AgentRecipe(user="maker")),)
    await attempted(task(steps=steps), watching)
    assert watching.provider.specs[1].user == "maker"


KEYS = SolutionRecipe(path="/s.yaml", keystrokes=(Command(text="ls", keys=True),))


@pytest.mark.parametrize(
    ("policy", "solution", "expected"),
    [
        (Watching(), None, False),
        (Watching(terminal=True), None, True),
        (Watching(), KEYS, False),
        (Watching(name="oracle"), KEYS, True),
        (Watching(name="oracle"), SolutionRecipe(path="/s"), False),
    ],
)
async def test_a_terminal_is_asked_for_only_where_keys_are_typed(
    policy: Watching, solution: SolutionRecipe | None, expected: bool
) -> None:
    await attempted(task(solution=solution), policy)
    assert policy.specs[0].terminal is expected


# --- what it costs --------------------------------------------------------------------------


def as_sandboxes_answer(command: str) -> bytes:
    """To the verifier whose tests wrote a reward, and to the look for `/logs/artifacts`."""
    if "headrace-ran" in command:
        return b"headrace-brought\nheadrace-ran\ntext /logs/verifier/reward.txt\n1\n\0--\n"
    return b"- 0\n" if command.endswith("look /logs/artifacts") else b""


async def test_a_task_of_one_step_costs_two_commands_of_ours_and_no_more(
    tmp_path: Path,
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test.sh").write_text("#!/bin/sh\n")
    watching = Watching(Command(text="one"))
    watching.provider = Opens(exec_script=as_sandboxes_answer)
    plain = task()
    recipe = VerifierRecipe(tests=(str(tmp_path / "tests"),))
    plain = msgspec.structs.replace(plain, verifier=recipe)
    episode = await attempted(
        plain, watching, verifier=HarborVerifier(), artifacts=tmp_path / "artifacts"
    )
    assert episode.verdict.passed
    methods = [call.method for call in watching.provider.calls]
    assert methods == ["run", "exec", "exec", "close"]
    assert not (tmp_path / "artifacts").exists()
