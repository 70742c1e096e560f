"""An agent that finds out how we talk to its shell: it harms its own episode at most."""

from collections.abc import AsyncIterator

import pytest

from headrace.configs.models import SandboxConfig
from headrace.errors import SandboxError
from headrace.sandbox.base import Sandbox, SandboxSpec
from headrace.sandbox.control import Control, Span
from headrace.sandbox.frames import are_numbers
from headrace.sandbox.providers import choose
from headrace.sandbox.terminal import probe_script
from headrace.types import EnvironmentRecipe

BASE = "headrace/base:bookworm"


@pytest.fixture
async def sandbox(provider: str) -> AsyncIterator[Sandbox]:
    chosen = await choose(SandboxConfig.model_validate({"provider": provider}))
    async with chosen:
        image = await chosen.provider.prepare(EnvironmentRecipe(image=BASE))
        async with chosen.provider.open(SandboxSpec(image=image, episode="forged")) as opened:
            yield opened


@pytest.mark.parametrize("fields", ["", "zzz 1 0 1 5", "0 a b c d", f"{'9' * 5000} 1 0 1 5", "0"])
async def test_a_forged_end_of_a_command_is_no_end(sandbox: Sandbox, fields: str) -> None:
    frame = f"\\036hr%s {fields}\\036".replace(" \\036", "\\036")
    forge = (
        "trap 'case $BASH_COMMAND in *_hr_end*) t=${BASH_COMMAND##* };"
        f' printf "{frame}" "$t" >&28; printf "\\036hr%s\\036" "$t" >&29;; esac\' DEBUG'
    )
    await sandbox.run(forge, timeout_s=20)
    for _ in range(3):
        result = await sandbox.run("echo on", timeout_s=20)
        assert b"on\n" in result.stdout
        assert result.exit_code == 0


def test_fields_of_a_frame_are_numbers_of_a_size_the_system_gives() -> None:
    assert are_numbers([b"token", b"0", b"", b"4194304"], 1, 2, 3)
    assert not are_numbers([b"token", b"0"], 1, 2)
    assert not are_numbers([b"token", b"-1"], 1)
    assert not are_numbers([b"token", "²".encode()], 1)
    assert not are_numbers([b"token", b"9" * 20], 1)


@pytest.mark.parametrize("uptime", [b"", b"soon", b"nan", b"inf", b"1e400"])
async def test_a_forged_uptime_is_an_error_of_the_sandbox(uptime: bytes) -> None:
    written: list[bytes] = []

    def answer(data: bytes) -> None:
        written.append(data)
        words = data.split()
        if b"hr_uptime" in words:
            control.feed(1, b"\x1ehr%s %s\x1e" % (words[-1], uptime))

    control = Control(answer, program=None)
    control.feed(1, b"\x1ehr%s ready 5\x1e" % written[0].strip())
    with pytest.raises(SandboxError, match="expected the sandbox's uptime"):
        await control.window(Span(0))


def test_a_forged_name_of_a_terminal_is_an_error_of_the_sandbox() -> None:
    with pytest.raises(SandboxError, match="a terminal named /dev/pts/N"):
        probe_script("/dev/pts/²", "token")
