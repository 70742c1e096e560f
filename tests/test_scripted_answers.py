"""The scripted policy with a model's answers in place of commands."""

import json
from pathlib import Path

import pytest
from msgspec import structs

from headrace.configs.models import ScriptedConfig
from headrace.errors import ConfigError
from headrace.policies.base import Budget
from headrace.policies.scripted import ScriptedPolicy
from headrace.types import (
    Action,
    AgentRecipe,
    Command,
    CommandResult,
    EnvironmentRecipe,
    McpServer,
    Task,
    VerifierRecipe,
)


def task(name: str = "org/one") -> Task:
    return Task(
        name=name,
        digest=name,
        path="/tasks/one",
        format="harbor",
        instruction="Say hello.",
        environment=EnvironmentRecipe(image="x"),
        agent=AgentRecipe(),
        verifier=VerifierRecipe(tests=()),
    )


def answer(keystrokes: str, *, done: bool = False) -> str:
    commands = [{"keystrokes": keystrokes, "duration": 2.0}]
    return json.dumps({"analysis": "", "plan": "", "commands": commands, "task_complete": done})


async def taken(policy: ScriptedPolicy, of: Task, result: CommandResult) -> list[Action]:
    """The actions of a session whose every command has `result`."""
    actions: list[Action] = []
    async with policy.session(of, 0) as session:
        while not actions or not actions[-1].done:
            given = [result for _ in actions[-1].commands] if actions else []
            actions.append(await session.act(given, Budget()))
    return actions


RESULT = CommandResult(exit_code=None, stdout=b"hello\n$ ", screen=b"$ ")


async def test_answers_are_read_as_a_models_turn_by_turn() -> None:
    answers = (answer("ls\n"), "no JSON", answer("C-d", done=True), answer("never\n"))
    policy = ScriptedPolicy(ScriptedConfig(answers=answers))
    first, second, third = await taken(policy, task(), RESULT)
    assert first.commands == (Command(text="ls\n", timeout_s=2.0, keys=True),)
    assert second.problems and second.commands == ()
    assert third.done and third.commands[0].text == "C-d"
    assert policy.terminal


async def test_after_the_last_answer_the_policy_is_done() -> None:
    policy = ScriptedPolicy(ScriptedConfig(answers=(answer("ls\n"),)))
    last = (await taken(policy, task(), RESULT))[-1]
    assert (last.done, last.commands) == (True, ())


async def test_the_session_is_shown_what_a_model_would_be() -> None:
    policy = ScriptedPolicy(ScriptedConfig(answers=(answer("ls\n"), answer("x\n", done=True))))
    async with policy.session(task(), 0) as session:
        assert session.prompt.endswith("Say hello.")
        assert session.opening == session.prompt
        await session.act([], Budget())
        assert session.observation() == ""
        await session.act([RESULT], Budget())
        assert session.observation() == "New Terminal Output:\nhello\n$"


async def test_the_tool_servers_of_a_task_are_listed_in_the_prompt() -> None:
    servers = (
        McpServer(name="files", transport="stdio", command="mcp files", args=("--root", "/a b")),
        McpServer(name="web", transport="sse", url="http://web:8000/sse"),
    )
    offered = structs.replace(task(), environment=EnvironmentRecipe(mcp_servers=servers))
    policy = ScriptedPolicy(ScriptedConfig(answers=(answer("ls\n"),)))
    async with policy.session(offered, 0) as session:
        assert session.prompt.endswith(
            "Say hello.\n\nMCP servers that can be reached from the shell:\n"
            "- files (stdio): 'mcp files' --root '/a b'\n"
            "- web (sse): http://web:8000/sse"
        )


async def test_answers_of_another_protocol_are_read_by_it() -> None:
    config = ScriptedConfig(answers=("```bash\nls\n```", "DONE"), protocol="shell-block")
    policy = ScriptedPolicy(config)
    first, second = await taken(policy, task(), CommandResult(exit_code=0))
    assert first.commands == (Command(text="ls"),) and second.done
    assert not policy.terminal


async def test_a_script_file_has_answers_by_task(tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text(
        f"answers = ['{answer('all', done=True)}']\n"
        f"[tasks.one]\nanswers = ['{answer('one', done=True)}']\n[tasks.two]\ncommands = ['two']\n"
    )
    policy = ScriptedPolicy(ScriptedConfig(script=str(script)))
    for name, keys in (("org/one", "one"), ("org/two", "two"), ("org/three", "all")):
        (only,) = await taken(policy, task(name), RESULT)
        assert only.commands[0].text == keys
    assert policy.terminal


def test_commands_and_answers_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="commands or answers, found both"):
        ScriptedPolicy(ScriptedConfig(commands=("ls",), answers=("DONE",)))


def test_the_protocol_that_reads_the_answers_is_part_of_the_version() -> None:
    def version(protocol: str) -> str:
        config = ScriptedConfig.model_validate({"answers": ["DONE"], "protocol": protocol})
        return ScriptedPolicy(config).version

    assert version("terminus-json") != version("shell-block")


async def test_completion_may_be_asked_for_twice() -> None:
    answers = (
        answer("one\n", done=True),
        answer("two\n"),
        answer("three\n", done=True),
        "no JSON",
        answer("four\n", done=True),
    )
    policy = ScriptedPolicy(ScriptedConfig(answers=answers, confirm=True))
    shown = []
    async with policy.session(task(), 0) as session:
        action = await session.act([], Budget())
        while not action.done:
            action = await session.act([RESULT] * len(action.commands), Budget())
            shown.append("say once more" in session.observation())
    assert action.commands[0].text == "four\n"
    assert shown == [True, False, True, False]


async def test_each_session_is_asked_for_itself() -> None:
    policy = ScriptedPolicy(ScriptedConfig(answers=(answer("x\n", done=True),) * 2, confirm=True))
    for _ in range(2):
        first, second = await taken(policy, task(), RESULT)
        assert (first.done, second.done) == (False, True)
