"""Conformance of the agent's shell: what it keeps, what a command gives, how a shell ends."""

import tracemalloc

import pytest

from headrace.errors import ContractError
from headrace.sandbox.base import Limits, Sandbox
from headrace.sandbox.conformance_suite import Suite, execute, mark, run, says

MB = 1_000_000
MARKERS = (
    b"\x1ehr0123456789abcdef0123\x1e",
    b"\x1ehr0123456789abcdef0123 0 1 1 1 5\x1e",
    b"\x1ehr",
    b"\x1e",
    b"\x1eh\x1ehr\x1e\x1e",
    b"\x1ehr" + b"f" * 500,
)
"""Like the frames of `frames.py`, whole, partial and too long."""


class ShellState(Suite):
    """What one command leaves for the next."""

    async def test_the_directory_is_kept(self, sandbox: Sandbox) -> None:
        await says(sandbox, "mkdir -p /tmp/a/b && cd /tmp/a/b")
        assert await says(sandbox, "pwd") == "/tmp/a/b\n"

    async def test_variables_are_kept(self, sandbox: Sandbox) -> None:
        await says(sandbox, "plain='two  words'; export SHOWN=yes")
        assert await says(sandbox, 'echo "$plain"; env | grep ^SHOWN=') == "two  words\nSHOWN=yes\n"

    async def test_functions_are_kept(self, sandbox: Sandbox) -> None:
        await says(sandbox, 'greet() { echo "hello $1"; }')
        assert await says(sandbox, "greet world") == "hello world\n"

    async def test_arrays_made_with_declare_are_kept(self, sandbox: Sandbox) -> None:
        await says(sandbox, "declare -A age=([ann]=31); declare -a list=(x 'y z')")
        assert await says(sandbox, 'echo "${age[ann]} ${list[1]}"') == "31 y z\n"

    async def test_shell_options_are_kept(self, sandbox: Sandbox) -> None:
        await says(sandbox, "set -o pipefail; shopt -s nullglob; umask 027")
        assert await says(sandbox, "false | true; echo $? $(echo /none/*); umask") == "1\n0027\n"

    async def test_aliases_are_kept(self, sandbox: Sandbox) -> None:
        await says(sandbox, "shopt -s expand_aliases; alias shout='echo LOUD'")
        assert await says(sandbox, "shout") == "LOUD\n"

    async def test_an_open_file_is_kept(self, sandbox: Sandbox) -> None:
        await says(sandbox, "exec 5>/tmp/kept; echo one >&5")
        assert await says(sandbox, "echo two >&5; cat /tmp/kept") == "one\ntwo\n"

    async def test_a_lock_is_kept(self, sandbox: Sandbox) -> None:
        await says(sandbox, 'for fd in 7 8 9; do eval "exec $fd>/tmp/l$fd"; flock $fd; done')
        taken = "for fd in 7 8 9; do flock -n /tmp/l$fd true && echo free; done; true"
        result = await run(sandbox, f"{taken}; cat")
        assert (result.stdout, result.stderr) == (b"", b"")

    async def test_the_exit_code_of_the_previous_command_is_seen(self, sandbox: Sandbox) -> None:
        await run(sandbox, "(exit 42)")
        assert await says(sandbox, "echo $?") == "42\n"

    async def test_files_are_kept(self, sandbox: Sandbox) -> None:
        await says(sandbox, "echo data >/tmp/file")
        assert await says(sandbox, "cat /tmp/file") == "data\n"

    async def test_a_background_job_survives_and_prints_nothing_of_ours(
        self, sandbox: Sandbox
    ) -> None:
        started = await run(sandbox, "sleep 1000 & job=$!")
        assert (started.exit_code, started.stdout, started.stderr) == (0, b"", b"")
        still = await run(sandbox, "kill -0 $job && echo there; kill $job; wait $job 2>/dev/null")
        assert still.stdout == b"there\n"
        after = await run(sandbox, "true")
        assert (after.stdout, after.stderr) == (b"", b"")

    async def test_a_server_answers_the_next_command(self, sandbox: Sandbox) -> None:
        await says(sandbox, "mkdir /tmp/s && cd /tmp/s && mkfifo ask answer")
        await says(sandbox, "(while read -r x <ask; do echo got-$x >answer; done) &")
        assert await says(sandbox, "echo 1 >ask; cat answer") == "got-1\n"
        assert await says(sandbox, "echo 2 >ask; cat answer") == "got-2\n"


class Commands(Suite):
    """What one command gives back."""

    async def test_stdout_and_stderr_are_apart(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "echo out; echo err >&2; echo out2")
        assert (result.stdout, result.stderr) == (b"out\nout2\n", b"err\n")

    async def test_stdin_is_closed(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "cat; read -r line; echo $?")
        assert (result.exit_code, result.stdout) == (0, b"1\n")

    async def test_the_exit_code_is_the_commands(self, sandbox: Sandbox) -> None:
        for code in (0, 1, 2, 42, 126, 255):
            result = await run(sandbox, f"(exit {code})")
            assert (result.exit_code, result.timed_out, result.shell_lost) == (code, False, False)

    async def test_an_unknown_command_gives_127_and_a_message(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "no-such-program-here")
        assert result.exit_code == 127
        assert b"no-such-program-here" in result.stderr

    async def test_a_child_that_dies_of_a_signal_gives_128_and_more(self, sandbox: Sandbox) -> None:
        for signal, code in (("KILL", 137), ("TERM", 143), ("SEGV", 139)):
            result = await run(sandbox, f"sh -c 'kill -{signal} $$'")
            assert (result.exit_code, result.shell_lost) == (code, False), signal

    async def test_output_without_a_newline_stays_without(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "printf out; printf err >&2")
        assert (result.stdout, result.stderr) == (b"out", b"err")

    async def test_no_output_is_empty(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "true")
        assert (result.exit_code, result.stdout, result.stderr) == (0, b"", b"")

    async def test_every_byte_passes_through_both_streams(self, sandbox: Sandbox) -> None:
        code = "import sys; d=bytes(range(256))*40; {}.buffer.write(d)"
        both = "; ".join(f"python3 -c '{code.format(f'sys.{s}')}'" for s in ("stdout", "stderr"))
        result = await run(sandbox, both)
        assert result.stdout == bytes(range(256)) * 40
        assert result.stderr == bytes(range(256)) * 40

    async def test_a_nul_byte_in_the_output_is_kept(self, sandbox: Sandbox) -> None:
        assert (await run(sandbox, r"printf 'a\0b\0'")).stdout == b"a\0b\0"

    async def test_a_nul_byte_in_the_command_is_refused(self, sandbox: Sandbox) -> None:
        with pytest.raises(ContractError):
            await run(sandbox, "echo a\0b")
        assert await says(sandbox, "echo fine") == "fine\n"

    async def test_an_empty_command_succeeds(self, sandbox: Sandbox) -> None:
        for command in ("", " ", "\n\n"):
            result = await run(sandbox, command)
            assert (result.exit_code, result.stdout, result.stderr) == (0, b"", b""), command
        assert await says(sandbox, "echo next") == "next\n"

    async def test_a_command_may_be_or_end_in_a_comment(self, sandbox: Sandbox) -> None:
        assert await says(sandbox, "# only a comment") == ""
        assert await says(sandbox, "echo x # 'end") == "x\n"
        assert await says(sandbox, "echo next") == "next\n"

    async def test_a_syntax_error_is_the_commands_own(self, sandbox: Sandbox) -> None:
        await says(sandbox, "kept=1")
        for command in (
            "if true; then",
            "echo )",
            "echo 'a",
            'echo "a',
            "for i in 1",
            "case x",
            "{",
        ):
            result = await run(sandbox, command)
            assert result.exit_code not in (0, None), command
            assert result.stderr != b"", command
            assert await says(sandbox, "echo $kept") == "1\n"

    async def test_a_command_may_have_many_lines(self, sandbox: Sandbox) -> None:
        lines = "for i in 1 2; do\n  echo $i\ndone\n\nif true\nthen echo yes\nfi\n"
        assert await says(sandbox, lines) == "1\n2\nyes\n"

    async def test_a_here_document_passes_unchanged(self, sandbox: Sandbox) -> None:
        body = 'it\'s "quoted" $HOME `date` \\n\n\ttab'
        assert await says(sandbox, f"cat <<'EOF'\n{body}\nEOF\n") == f"{body}\n"

    async def test_a_here_document_without_its_end_is_ended_by_the_command(
        self, sandbox: Sandbox
    ) -> None:
        assert (await run(sandbox, "cat <<EOF\nbody")).stdout.startswith(b"body")
        assert await says(sandbox, "echo next") == "next\n"

    async def test_what_a_command_ends_with_does_not_reach_the_next(self, sandbox: Sandbox) -> None:
        for end in ("\\", " \\", "'\\'", ";", "&&", "||", "|", "(", "<<", ">"):
            await run(sandbox, f"echo first {end}")
            assert await says(sandbox, "echo next") == "next\n", end

    async def test_quotes_and_backslashes_pass_unchanged(self, sandbox: Sandbox) -> None:
        command = r"""printf '%s\n' 'it'\''s' "a\"b" 'c\d' "\$x" '!' "!!" '`' $'\t|'"""
        assert await says(sandbox, command) == "it's\na\"b\nc\\d\n$x\n!\n!!\n`\n\t|\n"

    async def test_history_is_not_expanded(self, sandbox: Sandbox) -> None:
        assert await says(sandbox, 'echo "wow!1 !! !$"') == "wow!1 !! !$\n"

    async def test_unicode_passes_both_ways(self, sandbox: Sandbox) -> None:
        text = "grüße 漢字 🚀 \u202e end"
        assert await says(sandbox, f"echo '{text}' | tee /tmp/{mark()}-ü") == f"{text}\n"

    async def test_bytes_that_are_no_text_reach_the_shell(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, b"printf %s '\xff\xfe'".decode(errors="surrogateescape"))
        assert result.stdout == b"\xff\xfe"

    async def test_a_command_of_200_kb_runs(self, sandbox: Sandbox) -> None:
        word = "x" * 200_000
        assert await says(sandbox, f"v={word}; echo ${{#v}}") == "200000\n"

    async def test_a_command_of_20000_lines_runs(self, sandbox: Sandbox) -> None:
        assert await says(sandbox, "n=0\n" + "n=$((n+1))\n" * 20_000 + "echo $n") == "20000\n"

    async def test_ten_thousand_lines_of_output_come_whole(self, sandbox: Sandbox) -> None:
        expected = "".join(f"{i}\n" for i in range(1, 10_001))
        assert await says(sandbox, "seq 10000") == expected

    async def test_100_mb_of_output_are_cut_in_the_middle_and_counted(
        self, sandbox: Sandbox
    ) -> None:
        fill = f"head -c {100 * MB} /dev/zero | tr '\\0' x"
        tracemalloc.start()
        try:
            result = await run(sandbox, f"echo first; {fill}; echo last")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert result.exit_code == 0
        assert result.stdout.startswith(b"first\nxxx")
        assert result.stdout.endswith(b"xxxlast\n")
        assert len(result.stdout) + result.stdout_cut == 100 * MB + len(b"first\nlast\n")
        assert len(result.stdout) <= Limits().max_output_bytes
        assert peak < 32 * MB

    async def test_both_streams_are_cut_each_by_its_own(self) -> None:
        async with self.open(limits=Limits(max_output_bytes=1000)) as sandbox:
            result = await run(sandbox, "seq 1000; seq 3 >&2")
            whole = "".join(f"{i}\n" for i in range(1, 1001)).encode()
            assert (result.stderr, result.stderr_cut) == (b"1\n2\n3\n", 0)
            assert len(result.stdout) <= 1000
            assert len(result.stdout) + result.stdout_cut == len(whole)
            assert whole.startswith(result.stdout[:400])
            assert whole.endswith(result.stdout[-400:])
            err = await run(sandbox, "seq 1000 >&2")
            assert (err.stdout, err.stdout_cut) == (b"", 0)
            assert len(err.stderr) + err.stderr_cut == len(whole)

    async def test_output_at_the_limit_is_whole(self) -> None:
        async with self.open(limits=Limits(max_output_bytes=1000)) as sandbox:
            result = await run(sandbox, "printf %01000d 7")
            assert (len(result.stdout), result.stdout_cut) == (1000, 0)

    async def test_what_looks_like_our_marker_is_output(self, sandbox: Sandbox) -> None:
        for printed in MARKERS:
            octal = "".join(f"\\{byte:03o}" for byte in printed)
            result = await run(sandbox, f"printf '{octal}'; printf '{octal}' >&2")
            assert (result.stdout, result.stderr) == (printed, printed)
            assert await says(sandbox, "echo next") == "next\n"

    async def test_output_of_one_command_never_reaches_another(self, sandbox: Sandbox) -> None:
        for i in range(200):
            result = await run(sandbox, f"echo out-{i}; echo err-{i} >&2; (exit {i % 7})")
            assert result.stdout == f"out-{i}\n".encode()
            assert result.stderr == f"err-{i}\n".encode()
            assert result.exit_code == i % 7

    async def test_a_background_job_that_keeps_the_pipe_open_keeps_nobody_waiting(
        self, sandbox: Sandbox
    ) -> None:
        result = await run(sandbox, "echo done; sleep 1000 &")
        assert (result.exit_code, result.stdout, result.timed_out) == (0, b"done\n", False)
        assert result.duration_s < 20

    async def test_the_names_of_the_streams_can_be_opened(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "echo out >/dev/stdout; echo err | tee /dev/stderr >/dev/null")
        assert (result.stdout, result.stderr) == (b"out\n", b"err\n")

    async def test_the_duration_is_the_commands(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "sleep 0.3")
        assert 0.3 <= result.duration_s < 15


class ShellEnd(Suite):
    """A shell that ends, or is made useless, costs its own state and nothing else."""

    async def test_exit_gives_its_code_and_loses_the_shell(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "echo before; echo err >&2; exit 3")
        assert (result.exit_code, result.shell_lost, result.timed_out) == (3, True, False)
        assert (result.stdout, result.stderr) == (b"before\n", b"err\n")

    async def test_the_command_after_a_lost_shell_runs_in_a_fresh_one(self) -> None:
        async with self.open(workdir="/srv") as sandbox:
            await says(sandbox, "cd /tmp; kept=1; touch /tmp/file")
            await run(sandbox, "exit 0")
            told = await run(sandbox, 'pwd; echo "[$kept]"; ls /tmp/file')
            assert told.stdout == b"/srv\n[]\n/tmp/file\n"
            assert not told.shell_lost

    async def test_a_shell_that_kills_itself_is_lost(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "echo before; kill -9 $$")
        assert (result.exit_code, result.shell_lost) == (137, True)
        assert result.stdout == b"before\n"
        assert await says(sandbox, "echo next") == "next\n"

    async def test_exec_replaces_the_shell_and_its_output_is_kept(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "exec sh -c 'echo replaced; exit 7'")
        assert (result.exit_code, result.stdout, result.shell_lost) == (7, b"replaced\n", True)
        assert await says(sandbox, "echo next") == "next\n"

    async def test_exec_of_a_sleeper_ends_at_the_deadline(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "exec sleep 1000", timeout_s=1)
        assert (result.timed_out, result.shell_lost) == (True, True)
        assert await says(sandbox, "echo next") == "next\n"

    async def test_a_lost_shell_can_be_lost_again(self, sandbox: Sandbox) -> None:
        for code in (1, 2, 3):
            result = await run(sandbox, f"exit {code}")
            assert (result.exit_code, result.shell_lost) == (code, True)
        assert await says(sandbox, "echo next") == "next\n"

    async def test_a_shell_with_closed_descriptors_still_answers(self, sandbox: Sandbox) -> None:
        await run(sandbox, 'for fd in 0 1 2 3 4 5 6 7 8 9; do eval "exec $fd>&-"; done')
        result = await run(sandbox, "echo out; echo err >&2")
        assert (result.stdout, result.stderr) == (b"out\n", b"err\n")

    async def test_without_bash_a_plain_shell_serves(self, sandbox: Sandbox) -> None:
        await execute(sandbox, "rm -f /bin/bash /usr/bin/bash")
        await run(sandbox, "exit")
        assert await says(sandbox, "cd /tmp; kept=1; echo [$BASH_VERSION]") == "[]\n"
        late = await run(sandbox, "late=2; sleep 1000", timeout_s=0.5)
        assert (late.timed_out, late.shell_lost) == (True, False)
        assert await says(sandbox, "pwd; echo $kept $late") == "/tmp\n1 2\n"
        assert (await run(sandbox, "if true; then")).exit_code not in (0, None)
        result = await run(sandbox, "echo out; echo err >&2; cat; (exit 4)")
        assert (result.exit_code, result.stdout, result.stderr) == (4, b"out\n", b"err\n")
        assert (await run(sandbox, "exit 3")).shell_lost
        assert await says(sandbox, "echo next") == "next\n"
