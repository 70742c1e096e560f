"""The policies without a model: oracle, noop, scripted, replay, and how they are built."""

import shlex
import subprocess
from pathlib import Path

import pytest

from headrace.configs.models import (
    NoopConfig,
    OracleConfig,
    PolicyConfig,
    ReplayConfig,
    ScriptedConfig,
    VllmConfig,
)
from headrace.errors import ConfigError, ContractError, PolicyError
from headrace.policies.base import Budget, Policy
from headrace.policies.oracle import solution_command
from headrace.policies.registry import POLICIES, build
from headrace.policies.replay import ReplayPolicy
from headrace.policies.scripted import ScriptedPolicy
from headrace.types import (
    Action,
    AgentRecipe,
    Command,
    EnvironmentRecipe,
    SolutionRecipe,
    Task,
    Turn,
    VerifierRecipe,
)

BUDGET = Budget()


def task(name: str = "org/hello", solution: SolutionRecipe | None = None) -> Task:
    return Task(
        name=name,
        digest=f"digest of {name}",
        path="/tasks/hello",
        format="harbor",
        instruction="Say hello.",
        environment=EnvironmentRecipe(image="x"),
        agent=AgentRecipe(),
        verifier=VerifierRecipe(tests=("/tasks/hello/tests",)),
        solution=solution,
    )


def solved(folder: Path, script: str, **env: str) -> SolutionRecipe:
    folder.mkdir()
    (folder / "solve.sh").write_text(script)
    return SolutionRecipe(path=str(folder), env=env)


async def actions(policy: Policy, of: Task, turns: int = 10) -> list[Action]:
    """Every action until the policy says it is done."""
    taken: list[Action] = []
    async with policy, policy.session(of, 0) as session:
        while len(taken) < turns and not (taken and taken[-1].done):
            taken.append(await session.act((), BUDGET))
            assert (session.prompt, session.observation()) == ("", "")
    return taken


def commands(taken: list[Action]) -> list[list[str]]:
    return [[command.text for command in action.commands] for action in taken]


async def test_noop_is_done_at_once_and_runs_nothing() -> None:
    taken = await actions(build(NoopConfig()), task())
    assert commands(taken) == [[]]
    assert taken[0].done


# --- oracle ---------------------------------------------------------------------------------


async def test_the_oracle_brings_and_runs_the_solution_in_one_turn(tmp_path: Path) -> None:
    solution = solved(tmp_path / "solution", "#!/bin/bash\n:\n")
    (action,) = await actions(build(OracleConfig()), task(solution=solution))
    assert action.done
    assert [(up.source, up.target) for up in action.uploads] == [(solution.path, "/solution")]
    assert len(action.commands) == 1
    timeout_s = action.commands[0].timeout_s
    assert timeout_s is not None and timeout_s > 3600  # the engine cuts it to the agent's time


async def test_a_solution_that_went_away_is_named(tmp_path: Path) -> None:
    gone = SolutionRecipe(path=str(tmp_path))
    with pytest.raises(PolicyError, match=r"solution of task 'org/hello': .*solve\.sh"):
        await actions(build(OracleConfig()), task(solution=gone))


async def test_a_task_without_solution_is_named() -> None:
    with pytest.raises(PolicyError, match="'org/hello' has no reference solution"):
        await actions(build(OracleConfig()), task())


@pytest.mark.parametrize(
    ("script", "printed"),
    [
        ("#!/bin/sh\necho sh $V\n", "sh it's a $v\n"),
        ("# a comment first\n#!/bin/bash\n[[ 1 ]] && echo bash $V", "bash it's a $v\n"),
        ("#!/usr/bin/env python3\nimport os\nprint('py', os.environ['V'])\n", "py it's a $v\n"),
        ("echo $DEBIAN_FRONTEND; exit 3", "noninteractive\n"),
    ],
)
def test_a_solution_is_run_by_its_own_interpreter_else_by_bash(
    tmp_path: Path, script: str, printed: str
) -> None:
    solution = solved(tmp_path / "solution", script, V="it's a $v")
    text = solution_command(solution).replace("/solution/", f"{shlex.quote(solution.path)}/")
    ran = subprocess.run(["bash", "-c", text], capture_output=True, timeout=30, check=False)
    assert ran.stdout.decode() == printed, ran.stderr.decode()


async def test_a_solution_of_a_single_file_is_run_by_bash_where_its_format_wants_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "solution.sh").write_text("#!/bin/sh\ntrue\n")
    solution = SolutionRecipe(
        path=f"{tmp_path}/solution.sh", target="/oracle", script="solution.sh"
    )
    (action,) = await actions(build(OracleConfig()), task(solution=solution))
    assert [(up.source, up.target) for up in action.uploads] == [(solution.path, "/oracle")]
    assert commands([action]) == [["bash /oracle/solution.sh"]]


async def test_keystrokes_of_a_solution_are_typed_and_nothing_is_uploaded() -> None:
    typed = (
        Command(text="nano x", keys=True, timeout_s=0.1),
        Command(text="Enter", keys=True, timeout_s=2.0),
    )
    solution = SolutionRecipe(path="/t/solution.yaml", target="/oracle", keystrokes=typed)
    (action,) = await actions(build(OracleConfig()), task(solution=solution))
    assert (action.commands, action.uploads, action.done) == (typed, (), True)


# --- scripted -------------------------------------------------------------------------------


def test_a_script_that_says_nothing_is_no_silent_noop() -> None:
    with pytest.raises(ConfigError, match="nothing to do; the policy that does nothing is noop"):
        ScriptedPolicy(ScriptedConfig())


async def test_a_script_runs_one_command_per_turn_and_the_last_is_done() -> None:
    taken = await actions(build(ScriptedConfig(commands=("a", "b", "c"))), task())
    assert commands(taken) == [["a"], ["b"], ["c"]]
    assert [action.done for action in taken] == [False, False, True]


async def test_a_script_without_commands_is_done_at_once(tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text('[tasks."org/other"]\ncommands = ["there"]\n')
    taken = await actions(build(ScriptedConfig(script=str(script))), task())
    assert commands(taken) == [[]] and taken[0].done


async def test_a_script_file_has_commands_for_all_and_for_single_tasks(tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text(
        'commands = ["all"]\n[tasks."org/one"]\ncommands = ["one"]\n[tasks.two]\ncommands = []\n'
    )
    policy = build(ScriptedConfig(script=str(script), commands=("last",)))
    assert commands(await actions(policy, task("org/one"))) == [["one"], ["last"]]
    assert commands(await actions(policy, task("org/two"))) == [["last"]]
    assert commands(await actions(policy, task("org/three"))) == [["all"], ["last"]]


BAD_SCRIPTS = [
    ("broken", "commands = [", "broken TOML"),
    ("unknown key", "command = []", "unknown key command; expected answers or commands or tasks"),
    ("unknown key of a task", "[tasks.a]\ncmd = []", "unknown key tasks.'a'.cmd"),
    ("commands of a wrong type", "commands = 'ls'", "commands: expected a list of texts"),
    ("a command of a wrong type", "[tasks.a]\ncommands = [1]", "'a'.commands: expected a list"),
    ("tasks of a wrong type", "tasks = 1", "expected tables"),
    ("a task of a wrong type", "tasks = {a = 1}", "'a': expected a table"),
    ("a NUL character", 'commands = ["a\\u0000"]', "NUL"),
]


@pytest.mark.parametrize(
    ("text", "message"), [b[1:] for b in BAD_SCRIPTS], ids=[b[0] for b in BAD_SCRIPTS]
)
def test_a_bad_script_is_refused_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    script = tmp_path / "script.toml"
    script.write_text(text)
    with pytest.raises(ConfigError, match=message):
        ScriptedPolicy(ScriptedConfig(script=str(script)))


def test_a_script_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found nothing at .*none\.toml"):
        ScriptedPolicy(ScriptedConfig(script=str(tmp_path / "none.toml")))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 0"):
        ScriptedPolicy(ScriptedConfig(script=str(tmp_path / "binary.toml")))


def test_the_version_follows_the_commands() -> None:
    one, same, other = (ScriptedPolicy(ScriptedConfig(commands=(c,))) for c in ("a", "a", "b"))
    assert one.version == same.version != other.version


# --- replay ---------------------------------------------------------------------------------

RECORDED = {
    ("digest of org/hello", 0): (
        Turn(text="I look.", commands=(Command(text="ls"), Command(text="pwd", timeout_s=60.0))),
        Turn(text="odd", problems=("not read",)),
        Turn(text="Done.", done=True),
    )
}


def replay(source: str = "runs/a") -> Policy:
    return build(
        ReplayConfig(run=source), recorded=lambda digest, sample: RECORDED.get((digest, sample), ())
    )


async def test_a_replay_repeats_turns_with_their_deadlines() -> None:
    taken = await actions(replay(), task())
    assert [action.text for action in taken] == ["I look.", "odd", "Done."]
    assert taken[0].commands == RECORDED[("digest of org/hello", 0)][0].commands
    assert [action.done for action in taken] == [False, False, True]


async def test_a_recording_without_an_end_ends_when_it_is_used_up() -> None:
    turns = [Turn(text="a", commands=(Command(text="a"),))]
    taken = await actions(ReplayPolicy(lambda digest, sample: turns, source="x"), task())
    assert commands(taken) == [["a"], []]
    assert taken[-1].done


async def test_an_episode_that_was_not_recorded_is_named() -> None:
    with pytest.raises(PolicyError, match="nothing recorded for task 'org/other'"):
        await actions(replay(), task("org/other"))


def test_a_replay_without_recorded_turns_is_a_callers_mistake() -> None:
    with pytest.raises(ContractError):
        build(ReplayConfig(run="runs/a"))


# --- the table ------------------------------------------------------------------------------


def test_every_configured_type_has_a_policy(tmp_path: Path) -> None:
    configs: list[PolicyConfig] = [
        NoopConfig(), OracleConfig(), ScriptedConfig(commands=("true",)), ReplayConfig(run="a"),
        VllmConfig(),
    ]  # fmt: skip
    assert {config.type for config in configs} == set(POLICIES)
    for config in configs:
        policy = build(config, log_path=tmp_path / "log", recorded=lambda digest, sample: ())
        assert policy.name == config.type
        assert policy.version


def test_versions_tell_policies_apart() -> None:
    policies = [build(NoopConfig()), build(OracleConfig()), replay("runs/a"), replay("runs/b")]
    assert len({policy.version for policy in policies}) == 4
