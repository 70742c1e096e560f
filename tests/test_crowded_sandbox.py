"""What an agent leaves running never keeps the verdict away: full process tables and fork bombs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace.configs.models import SandboxConfig
from headrace.errors import SandboxEnded
from headrace.sandbox.base import Limits, Sandbox, SandboxSpec
from headrace.sandbox.providers import choose
from headrace.types import (
    AgentRecipe,
    EnvironmentRecipe,
    Task,
    Verdict,
    VerdictFault,
    VerifierRecipe,
)
from headrace.verifiers.harbor import HarborVerifier

FULL_HOUSE = (
    "setsid bash -c 'sh -c \"while :; do sleep 1000 & done\"; : >/tmp/full' >/dev/null 2>&1 & "
    "until [ -e /tmp/full ]; do :; done"
)
"""It fills the table and ends: its shell cannot fork any more."""
SHELL_BOMB = "setsid bash -c 'b() { b | b & }; while :; do b; done' >/dev/null 2>&1 &"
FORK_BOMB = (
    "setsid perl -e 'while (1) { fork }' >/dev/null 2>&1 &"  # every copy tries again at once
)
TESTS = """#!/bin/bash
for i in $(seq 200); do sleep 60 & done
[ "$(jobs -r | wc -l)" -ge 190 ] && echo 1 > /logs/verifier/reward.txt
kill $(jobs -p)
exit 0
"""
"""Passes where 200 processes can be started."""


@asynccontextmanager
async def opened(provider: str, pids: int) -> AsyncIterator[Sandbox]:
    chosen = await choose(SandboxConfig(provider=provider))
    async with chosen:
        image = await chosen.provider.prepare(EnvironmentRecipe(image="headrace/base:bookworm"))
        spec = SandboxSpec(image=image, episode="crowded", limits=Limits(memory_mb=2048, pids=pids))
        async with chosen.provider.open(spec) as sandbox:
            yield sandbox


@pytest.fixture
async def sandbox(provider: str) -> AsyncIterator[Sandbox]:
    async with opened(provider, pids=512) as sandbox:
        yield sandbox


@pytest.fixture
async def small(provider: str) -> AsyncIterator[Sandbox]:
    """For bombs: twice as many copies take twice the time to end, and nothing else differs."""
    async with opened(provider, pids=256) as sandbox:
        yield sandbox


async def verdict(sandbox: Sandbox, folder: Path, script: str = TESTS) -> Verdict:
    (folder / "test.sh").write_text(script)
    task = Task(
        name="org/t",
        digest="0" * 64,
        path=str(folder),
        format="harbor",
        instruction="x",
        environment=EnvironmentRecipe(image="x", workdir="/tmp"),
        agent=AgentRecipe(),
        verifier=VerifierRecipe(tests=(str(folder),), timeout_s=60.0),
    )
    return await HarborVerifier().verify(task, sandbox)


async def leave(sandbox: Sandbox, command: str, timeout_s: float = 2) -> None:
    """The agent starts it, and its phase ends a moment later. Nothing here has to fork.

    At the deadline what the command started is killed, so it is short for what never ends only.
    """
    script = f"{command}\nfor ((i = 0; i < 300000; i++)); do :; done"
    await sandbox.run(script, timeout_s=timeout_s)


async def test_a_full_process_table_does_not_keep_the_tests_from_running(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    await sandbox.write("/tmp/left", b"kept")
    await leave(sandbox, FULL_HOUSE, timeout_s=60)
    found = await verdict(sandbox, tmp_path)
    assert (found.reward, found.fault, found.reason) == (1.0, None, None)
    sleeping = await sandbox.exec("grep -lz '^1000$' /proc/[0-9]*/cmdline | wc -l", timeout_s=60)
    assert int(sleeping.stdout) > 400, "what the agent left running is not killed for it"


@pytest.mark.timeout(150)
@pytest.mark.parametrize("bomb", [SHELL_BOMB, FORK_BOMB], ids=["shell", "fork"])
async def test_a_live_fork_bomb_ends_in_a_verdict_and_leaves_our_channel_working(
    small: Sandbox, tmp_path: Path, bomb: str
) -> None:
    """Or the bomb takes the sandbox's first process with it, which is told as such.

    Nothing else is raised: that would be the infrastructure's fault.
    """
    try:
        async with asyncio.timeout(140):
            await leave(small, bomb)
            found = await verdict(small, tmp_path)
            told = await small.exec("echo ours", timeout_s=30)
    except SandboxEnded:
        return
    assert found.fault in (None, VerdictFault.VERIFIER)
    assert (told.exit_code, told.stdout) == (0, b"ours\n")


async def test_our_channel_is_opened_again_when_it_was_killed(sandbox: Sandbox) -> None:
    """By whom it can be: a process of root that looks for it."""
    await sandbox.exec("true", timeout_s=10)
    hunt = (
        "for d in /proc/[0-9]*; do p=${d#/proc/}; [ $p = 1 ] || [ $p = $$ ] || "
        "case $(tr '\\0' ' ' <$d/cmdline) in sh*) kill -9 $p;; esac; done 2>/dev/null"
    )
    await sandbox.run(hunt, timeout_s=10)
    told = await sandbox.exec("echo ours", timeout_s=20)
    assert (told.exit_code, told.stdout) == (0, b"ours\n")
