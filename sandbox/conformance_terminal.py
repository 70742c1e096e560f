"""The terminal: what is typed reaches programs, what they show comes back, and nobody waits long.

Rule: every test types with a `wait_s` far above what is needed and says how soon it must be over;
the bounds are generous, because the machine may be busy.
"""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from headrace.errors import ContractError, SandboxError
from headrace.sandbox.base import COLUMNS, ROWS, Sandbox, Terminal
from headrace.sandbox.conformance_suite import Suite, alive, execute, mark, run
from headrace.types import CommandResult

LONG_S = 40.0
"""A wait no test may need."""
SOON_S = 15.0
"""What returns by itself has returned by then."""


async def types(terminal: Terminal, keys: str, wait_s: float = LONG_S) -> CommandResult:
    """Type and expect the terminal to be idle again soon."""
    began = time.monotonic()
    result = await terminal.type(keys, wait_s=wait_s)
    assert not result.timed_out, result
    assert time.monotonic() - began < SOON_S, result
    assert result.exit_code is None
    return result


async def shows(terminal: Terminal, keys: str) -> list[str]:
    """The lines that typing `keys` printed, between what was typed and the prompt."""
    lines = (await types(terminal, keys)).stdout.decode().split("\n")
    return lines[1:-1]


def screen(result: CommandResult) -> str:
    assert result.screen is not None
    return result.screen.decode()


class _WithTerminal(Suite):
    @pytest_asyncio.fixture
    async def sandbox(self, _opens_on: None) -> AsyncIterator[Sandbox]:
        async with self.open(terminal=True) as sandbox:
            yield sandbox

    @pytest_asyncio.fixture
    async def terminal(self, sandbox: Sandbox) -> Terminal:
        return await sandbox.terminal()


class TerminalCommands(_WithTerminal):
    """Commands at the prompt of its shell."""

    async def test_what_a_command_prints_comes_back(self, terminal: Terminal) -> None:
        result = await types(terminal, "echo one; echo two\n")
        first, *rest = result.stdout.decode().split("\n")
        assert first == "echo one; echo two"
        assert rest[:2] == ["one", "two"]
        assert "two" in screen(result)
        assert not result.shell_lost

    async def test_it_is_a_terminal_of_the_promised_size(self, terminal: Terminal) -> None:
        told = await shows(terminal, "test -t 0 && test -t 1 && test -t 2 && stty size\n")
        assert told == [f"{ROWS} {COLUMNS}"]
        assert await shows(terminal, "test -e $(tty) && echo named\n") == ["named"]
        assert await shows(terminal, "tput colors\n") == ["256"]

    async def test_it_is_opened_once(self, sandbox: Sandbox, terminal: Terminal) -> None:
        assert await sandbox.terminal() is terminal

    async def test_directory_and_variables_live_on(self, terminal: Terminal) -> None:
        await types(terminal, "cd /tmp\n")
        await types(terminal, "kept=1\n")
        assert await shows(terminal, "pwd; echo $kept\n") == ["/tmp", "1"]

    async def test_it_is_apart_from_the_agents_other_shell(
        self, sandbox: Sandbox, terminal: Terminal
    ) -> None:
        await types(terminal, "cd /tmp; echo typed >/tmp/typed\n")
        result = await run(sandbox, "pwd; cat /tmp/typed")
        assert result.stdout == b"/\ntyped\n"

    async def test_it_has_the_sandboxes_user_folder_and_variables(self) -> None:
        async with self.open(
            terminal=True, user="nobody", workdir="/srv/x", env={"WORD": "said"}
        ) as sandbox:
            terminal = await sandbox.terminal()
            told = await shows(terminal, "id -un; pwd; echo $WORD\n")
            assert told == ["nobody", "/srv/x", "said"]
            assert await shows(terminal, "echo to it >$(tty)\n") == ["to it"]
            assert await shows(terminal, "sleep 0.3; echo slept\n") == ["slept"]

    async def test_a_slow_command_is_waited_for_and_no_longer(self, terminal: Terminal) -> None:
        result = await types(terminal, "sleep 1; echo slept\n")
        assert "slept" in result.stdout.decode().split("\n")
        assert result.duration_s >= 1

    async def test_output_after_a_silence_is_waited_for(self, terminal: Terminal) -> None:
        told = await shows(terminal, "for i in 1 2 3; do sleep 0.4; echo $i; done\n")
        assert told == ["1", "2", "3"]

    async def test_what_still_runs_after_the_wait_is_told(self, terminal: Terminal) -> None:
        result = await terminal.type("echo begun; sleep 1000\n", wait_s=0.5)
        assert result.timed_out
        assert result.duration_s < SOON_S
        assert "begun" in result.stdout.decode().split("\n")
        assert not (await types(terminal, "C-c")).timed_out
        assert await shows(terminal, "echo next\n") == ["next"]

    async def test_output_is_incremental(self, terminal: Terminal) -> None:
        await types(terminal, "echo first\n")
        second = (await types(terminal, "echo second\n")).stdout.decode()
        assert "first" not in second and second.startswith("echo second\nsecond\n")

    async def test_what_came_between_two_calls_belongs_to_the_second(
        self, sandbox: Sandbox, terminal: Terminal
    ) -> None:
        await types(terminal, "(sleep 0.3; echo late; touch /tmp/late) &\n")
        await run(sandbox, "until [ -e /tmp/late ]; do sleep 0.05; done")
        assert "late" in (await types(terminal, "echo x\n")).stdout.decode()

    async def test_a_line_is_not_entered_without_its_line_break(self, terminal: Terminal) -> None:
        assert (await types(terminal, "echo one")).stdout.decode().endswith("echo one")
        assert await shows(terminal, " two\n") == ["one two"]

    async def test_several_lines_are_several_commands(self, terminal: Terminal) -> None:
        result = await types(terminal, "echo a\nsleep 0.2\necho b\n")
        lines = result.stdout.decode().split("\n")
        assert "a" in lines and "b" in lines

    async def test_empty_keys_wait_for_what_runs(self, terminal: Terminal) -> None:
        assert (await terminal.type("sleep 1; echo over\n", wait_s=0.2)).timed_out
        assert "over" in (await types(terminal, "")).stdout.decode()

    async def test_empty_keys_at_a_prompt_wait_the_whole_time(self, terminal: Terminal) -> None:
        began = time.monotonic()
        result = await terminal.type("", wait_s=0.7)
        assert time.monotonic() - began >= 0.7
        assert (result.stdout, result.timed_out) == (b"", False)

    async def test_a_job_in_the_background_keeps_nobody_waiting(self, terminal: Terminal) -> None:
        await types(terminal, "sleep 1000 &\n")
        assert await shows(terminal, "echo next\n") == ["next"]

    async def test_a_users_prompt_and_start_files_stay(self) -> None:
        async with self.open(terminal=True, env={"HOME": "/tmp"}) as sandbox:
            await sandbox.write(
                "/tmp/.bash_profile",
                b"PS1='\\[\\e[31m\\]two\\nlines> \\[\\e[0m\\]'\nPROMPT_COMMAND='sleep 0.2'\n",
            )
            terminal = await sandbox.terminal()
            result = await types(terminal, "echo x\n")
            assert result.stdout.decode() == "echo x\nx\ntwo\nlines> "


class TerminalKeys(_WithTerminal):
    """Keys that are not text."""

    async def test_control_c_interrupts(self, sandbox: Sandbox, terminal: Terminal) -> None:
        word = mark()
        assert (await terminal.type(f"sh -c 'sleep 1000; : {word}'\n", wait_s=0.5)).timed_out
        await types(terminal, "C-c")
        assert not await alive(sandbox, word)
        assert await shows(terminal, "echo $?\n") == ["130"]

    async def test_control_d_ends_the_input_of_a_program(self, terminal: Terminal) -> None:
        await types(terminal, "cat >/tmp/typed\n")
        await types(terminal, "a line\n")
        await types(terminal, "C-d")
        assert await shows(terminal, "cat /tmp/typed\n") == ["a line"]

    async def test_control_z_stops_and_fg_goes_on(self, terminal: Terminal) -> None:
        assert (await terminal.type("sleep 2; echo woke\n", wait_s=0.3)).timed_out
        assert "Stopped" in (await types(terminal, "C-z")).stdout.decode()
        assert (await types(terminal, "fg\n")).duration_s < SOON_S
        assert await shows(terminal, "echo next\n") == ["next"]

    async def test_up_repeats_a_command(self, terminal: Terminal) -> None:
        await types(terminal, "echo $((40 + 2))\n")
        await types(terminal, "Up")
        assert "42" in (await types(terminal, "Enter")).stdout.decode().split("\n")

    async def test_editing_keys_edit(self, terminal: Terminal) -> None:
        await types(terminal, "echo abX")
        for key in ("BSpace", "c", "Home", "Right", "C-e"):
            await types(terminal, key)
        assert "abc" in (await types(terminal, "Enter")).stdout.decode().split("\n")

    async def test_a_tab_completes(self, terminal: Terminal) -> None:
        await types(terminal, "cat /etc/hostn")
        await types(terminal, "Tab")
        result = await types(terminal, "C-u")
        assert "cat" not in screen(result).splitlines()[-1]

    async def test_a_key_name_in_a_longer_text_is_text(self, terminal: Terminal) -> None:
        assert await shows(terminal, "echo C-c Up Enter\n") == ["C-c Up Enter"]

    async def test_a_stopped_terminal_goes_on(self, sandbox: Sandbox, terminal: Terminal) -> None:
        await types(terminal, "C-s")
        for _ in range(3):
            await types(terminal, "echo held\n")
        assert "held" in (await types(terminal, "C-q")).stdout.decode().split("\n")
        assert await shows(terminal, "echo next\n") == ["next"]


class TerminalScreens(_WithTerminal):
    """What is on the screen."""

    async def test_wide_and_joined_characters_come_whole(self, terminal: Terminal) -> None:
        text = "grüße 漢字 🚀 e\u0301 ❤️ end"
        assert await shows(terminal, f"printf '%s\\n' '{text}'\n") == [text]

    async def test_colours_and_titles_are_left_out(self, terminal: Terminal) -> None:
        code = r"printf '\033[1;31mred\033[0m \033]0;title\007\033[38;2;1;2;3mplain\033[m\n'"
        assert await shows(terminal, code + "\n") == ["red plain"]

    async def test_a_line_written_over_is_as_it_ends(self, terminal: Terminal) -> None:
        assert await shows(terminal, r"printf '10%%\r50%%\r100%% done\n'" + "\n") == ["100% done"]

    async def test_long_lines_are_as_the_screen_has_them(self, terminal: Terminal) -> None:
        assert await shows(terminal, "printf 'x%.0s' $(seq 200); echo\n") == ["x" * 160, "x" * 40]

    async def test_lines_that_scrolled_off_are_there(self, terminal: Terminal) -> None:
        assert await shows(terminal, "seq 500\n") == [str(i) for i in range(1, 501)]

    async def test_a_cleared_screen_is_shown_not_told(self, terminal: Terminal) -> None:
        await types(terminal, "echo before\n")
        result = await types(terminal, "clear; echo after\n")
        assert result.stdout == b""
        assert "before" not in screen(result) and screen(result).startswith("after\n")

    async def test_the_alternate_screen_comes_and_goes(self, terminal: Terminal) -> None:
        await types(terminal, "echo below\n")
        enter, leave = r"printf '\033[?1049h\033[Hfull'", r"printf '\033[?1049l'"
        result = await types(terminal, f"{enter}; read x; {leave}\n")
        assert result.stdout == b"" and screen(result) == "full"
        after = screen(await types(terminal, "Enter"))
        assert "below" in after and "full\n" not in after

    async def test_programs_that_ask_the_terminal_get_an_answer(self, terminal: Terminal) -> None:
        ask = r"printf '\033[6n'; IFS= read -rs -d R at; printf '%s\n' ${at#*[}"
        told = (await types(terminal, f"clear; {ask}\n")).screen
        assert told is not None and told.startswith(b"1;1")

    async def test_binary_junk_leaves_a_terminal(self, terminal: Terminal) -> None:
        await terminal.type("head -c 300000 /dev/urandom\n", wait_s=5)
        await terminal.type("C-c", wait_s=2)
        await terminal.type("C-u", wait_s=2)
        await types(terminal, "reset\n")
        assert "still here" in screen(await types(terminal, "echo still here\n"))


class TerminalPrograms(_WithTerminal):
    """Programs that read the terminal."""

    async def test_a_program_that_reads_a_line_gets_it(self, terminal: Terminal) -> None:
        await types(terminal, "read x; echo got $x\n")
        assert "got this" in (await types(terminal, "this\n")).stdout.decode().split("\n")

    async def test_a_hidden_answer_is_taken(self, terminal: Terminal) -> None:
        await types(terminal, "read -s x; echo got $x\n")
        result = await types(terminal, "secret\n")
        assert "got secret" in result.stdout.decode().split("\n")

    async def test_python_answers_line_by_line(self, terminal: Terminal) -> None:
        assert (await types(terminal, "python3 -q\n")).stdout.endswith(b">>> ")
        assert (await types(terminal, "6 * 7\n")).stdout.decode().split("\n")[1] == "42"
        slow = await types(terminal, "import time; time.sleep(0.6); print('woke')\n")
        assert "woke" in slow.stdout.decode().split("\n")
        await types(terminal, "C-d")
        assert await shows(terminal, "echo back\n") == ["back"]

    async def test_a_pager_pages(self, terminal: Terminal) -> None:
        first = screen(await types(terminal, "seq 200 | less\n"))
        assert first.startswith("1\n2\n")
        assert screen(await types(terminal, "NPage")).startswith("40\n")
        assert screen(await types(terminal, "G")).split("\n")[-2] == "200"
        await types(terminal, "q")
        assert await shows(terminal, "echo back\n") == ["back"]

    async def test_a_program_that_redraws_itself_is_not_waited_for(
        self, terminal: Terminal
    ) -> None:
        assert "PID" in screen(await types(terminal, "top\n"))
        await types(terminal, "q")
        assert await shows(terminal, "echo back\n") == ["back"]

    async def test_a_plain_shell_inside_is_waited_for_too(self, terminal: Terminal) -> None:
        await types(terminal, "sh\n")
        assert await shows(terminal, "sleep 0.3; echo inner\n") == ["inner"]
        await types(terminal, "C-d")
        assert await shows(terminal, "echo outer\n") == ["outer"]


class TerminalFloods(_WithTerminal):
    """Much at once, in either direction."""

    async def test_a_paste_of_200_kb_arrives_whole(
        self, sandbox: Sandbox, terminal: Terminal
    ) -> None:
        lines = "".join(f"{i:06} {'x' * 92}\n" for i in range(2000))
        await types(terminal, f"cat >/tmp/pasted <<'END'\n{lines}END\n")
        assert await sandbox.read("/tmp/pasted") == lines.encode()

    async def test_a_program_that_prints_without_end_is_bounded_and_interrupted(
        self, terminal: Terminal
    ) -> None:
        result = await terminal.type("yes\n", wait_s=1)
        assert result.timed_out and result.duration_s < SOON_S
        assert result.stdout_cut > 0 and len(result.stdout) < 1 << 20
        await types(terminal, "C-c")
        assert (await types(terminal, "echo next\n")).stdout.decode().split("\n")[1] == "next"

    async def test_the_loop_goes_on_while_much_is_printed(self, terminal: Terminal) -> None:
        longest_s = 0.0

        async def watch() -> None:
            nonlocal longest_s
            loop = asyncio.get_running_loop()
            while True:
                began = loop.time()
                await asyncio.sleep(0.01)
                longest_s = max(longest_s, loop.time() - began)

        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            await types(terminal, "seq 300000\n")
            watching.cancel()
        assert longest_s < 1

    async def test_a_large_output_keeps_its_end(self, terminal: Terminal) -> None:
        result = await types(terminal, "seq 300000; echo last\n")
        assert result.stdout_cut > 0
        assert result.stdout.decode().split("\n")[-2] == "last"


class TerminalEnds(_WithTerminal):
    """What ends, and what does not."""

    async def test_a_shell_that_ended_is_told_and_the_next_is_fresh(
        self, terminal: Terminal
    ) -> None:
        await types(terminal, "kept=1\n")
        assert (await types(terminal, "exit\n")).shell_lost
        result = await types(terminal, "echo [$kept]\n")
        assert not result.shell_lost
        assert result.stdout.decode().split("\n")[1] == "[]"

    async def test_control_d_at_the_prompt_ends_the_shell(self, terminal: Terminal) -> None:
        assert (await types(terminal, "C-d")).shell_lost
        assert await shows(terminal, "echo next\n") == ["next"]

    async def test_a_shell_killed_between_two_calls_is_told(
        self, sandbox: Sandbox, terminal: Terminal
    ) -> None:
        (pid,) = await shows(terminal, "echo $$\n")
        await execute(sandbox, f"kill -9 {pid}; while kill -0 {pid} 2>/dev/null; do :; done")
        assert (await types(terminal, "echo first\n")).shell_lost
        result = await types(terminal, "echo next\n")
        assert not result.shell_lost
        assert "next" in result.stdout.decode().split("\n")

    async def test_cancelling_leaves_what_was_typed_running(
        self, sandbox: Sandbox, terminal: Terminal
    ) -> None:
        word = mark()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await terminal.type(f"sh -c 'sleep 1000; : {word}'\n", wait_s=LONG_S)
        assert await alive(sandbox, word)
        await types(terminal, "C-c")
        assert await shows(terminal, "echo next\n") == ["next"]

    async def test_two_calls_at_once_are_refused(self, terminal: Terminal) -> None:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(terminal.type("sleep 0.5\n", wait_s=LONG_S))
            await asyncio.sleep(0)
            with pytest.raises(ContractError):
                await terminal.type("echo second\n", wait_s=1)
        assert not first.result().timed_out

    async def test_a_closed_sandbox_has_no_terminal(self) -> None:
        async with self.open(terminal=True) as sandbox:
            terminal = await sandbox.terminal()
        with pytest.raises(SandboxError):
            await terminal.type("echo x\n", wait_s=1)

    async def test_closing_the_sandbox_ends_a_wait(self) -> None:
        async with self.open(terminal=True) as sandbox:
            terminal = await sandbox.terminal()
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(_raises(terminal))
                await terminal_busy(sandbox)
                await sandbox.aclose()
            assert waiting.result()

    async def test_without_a_word_in_the_spec_there_is_none(self) -> None:
        async with self.open() as sandbox:
            with pytest.raises(ContractError):
                await sandbox.terminal()

    async def test_nothing_is_left_of_it(self) -> None:
        episode = mark()
        async with self.open(terminal=True, episode=episode) as sandbox:
            await (await sandbox.terminal()).type(f"sleep 1000 # {episode}\n", wait_s=0.2)
        assert await self.leftovers(episode) == []

    async def test_an_image_with_a_plain_shell_only_has_a_terminal(self) -> None:
        async with self.open(terminal=True) as sandbox:
            await execute(sandbox, "rm -f /bin/bash /usr/bin/bash")
            terminal = await sandbox.terminal()
            assert await shows(terminal, "sleep 0.3; echo $BASH_VERSION plain\n") == ["plain"]
            assert (await types(terminal, "exit\n")).shell_lost


async def _raises(terminal: Terminal) -> bool:
    try:
        await terminal.type("sleep 1000\n", wait_s=LONG_S)
    except SandboxError:
        return True
    return False


async def terminal_busy(sandbox: Sandbox) -> None:
    """Return once a `sleep 1000` runs."""
    await run(sandbox, "until grep -qa 'sleep.100[0]' /proc/[0-9]*/cmdline; do sleep 0.05; done")


class TerminalConformance(
    TerminalCommands,
    TerminalKeys,
    TerminalScreens,
    TerminalPrograms,
    TerminalFloods,
    TerminalEnds,
):
    """Every behaviour of `Terminal`."""
