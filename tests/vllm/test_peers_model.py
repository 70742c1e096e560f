"""The fake model server of `bench.peers`, in its own process, asked as its clients ask it."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.peers.model import calls, serving
from bench.peers.script import ANSWERS, COMMANDS, SUBMIT

from headrace.configs.models import VllmConfig
from headrace.policies.base import Budget
from headrace.policies.vllm import VllmPolicy
from headrace.types import CommandResult, Task

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def model(small_model: Path) -> Iterator[str]:
    with serving(small_model) as address:
        yield address


def ask(address: str, name: str, said: int) -> dict[str, Any]:
    """The message that chat completions give after `said` answers."""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    body = {"model": name, "messages": messages[:1] + messages[1:] * said}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        message: dict[str, Any] = json.load(answer)["choices"][0]["message"]
    return message


async def test_a_session_of_tokens_is_given_the_script_answer_by_answer(
    model: str, small_model: Path, a_task: Callable[..., Task]
) -> None:
    config = VllmConfig(
        model=str(small_model),
        base_url=model,
        served_model_name="shell-block",
        protocol="shell-block",
    )
    results = (CommandResult(exit_code=0, stdout=b"answer.txt DONE\n"),)
    async with VllmPolicy(config) as policy, policy.session(a_task(), 0) as session:
        actions = [await session.act((), Budget())]
        while not actions[-1].done and len(actions) < 20:
            actions.append(await session.act(results, Budget()))
    assert [action.text for action in actions] == list(ANSWERS["shell-block"])
    said = [c.text for action in actions for c in action.commands]
    assert said == list(COMMANDS)


def test_chat_completions_give_the_same_answers(model: str) -> None:
    said = [ask(model, "terminus-json", n)["content"] for n in range(8)]
    assert said == list(ANSWERS["terminus-json"])


def test_a_model_with_tools_answers_by_calling_one(model: str) -> None:
    messages = [ask(model, "bash-tool", n) for n in (0, 6)]
    calls = [message["tool_calls"][0]["function"] for message in messages]
    assert [json.loads(call["arguments"])["command"] for call in calls] == [COMMANDS[0], SUBMIT]
    assert {call["name"] for call in calls} == {"bash"}


def test_calls_are_counted(model: str) -> None:
    before = calls(model)
    ask(model, "shell-block", 0)
    assert calls(model) == before + 1


def test_another_models_name_is_refused(model: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="400"):
        ask(model, "a-real-one", 0)
