"""The first prompts of conversations, against a server that answers every call alike."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from bench.engine import stub

from headrace.configs.models import SamplingConfig, VllmConfig
from headrace.policies.base import Budget
from headrace.policies.rendering import Chat
from headrace.policies.vllm import VllmPolicy
from headrace.types import Task


async def test_attempts_at_a_task_share_their_first_prompt_and_others_have_their_own(
    small_model: Path, chat: Chat, a_task: Callable[..., Task]
) -> None:
    names = [f"task {n % 100}" for n in range(110)]  # more tasks than openings are kept
    tasks = [a_task(name, f"Write {name} to a file.") for name in names]
    server = stub(chat, 0.0)
    address = await asyncio.to_thread(server.__enter__)
    try:
        config = VllmConfig(
            model=str(small_model),
            base_url=address,
            protocol="shell-block",
            sampling=SamplingConfig(max_tokens=100),
        )
        async with VllmPolicy(config) as policy, asyncio.timeout(60):
            found = {}
            for sample, task in enumerate([tasks[0], *tasks]):
                async with policy.session(task, sample) as session:
                    action = await session.act([], Budget())
                    assert action.sample is not None
                    said = chat.vocabulary.decode(action.sample.prompt_ids, control=True)
                    assert said == session.prompt
                    assert f"Write {task.name} to a file." in session.opening
                    assert session.opening in session.prompt
                    assert "<|im_start|>" not in session.opening
                    found[sample] = (action.sample.prompt_ids, session.prompt)
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)
    assert found[0][0] is found[1][0]
    assert len({found[sample] for sample in range(1, 101)}) == 100
    assert found[101] == found[1]  # forgotten between, and the same once more
    assert found[101][0] is not found[1][0]
