"""Conformance of our own channel: `exec` stands apart from the shell and outlives its wreck."""

from pathlib import Path

import pytest

from headrace.sandbox.base import IMAGE_USER, Limits, Provider, Sandbox
from headrace.sandbox.conformance_suite import (
    SOON_S,
    Suite,
    alive,
    answers,
    execute,
    mark,
    run,
    says,
)
from headrace.types import EnvironmentRecipe

_WITH_A_USER = "FROM headrace/base:bookworm\nRUN useradd --uid 4321 maker\nUSER maker\n"


class Exec(Suite):
    """A fresh process for each command, as root."""

    async def test_exec_gives_streams_and_code_apart(self, sandbox: Sandbox) -> None:
        result = await execute(sandbox, "echo out; echo err >&2; exit 5")
        assert (result.exit_code, result.stdout, result.stderr) == (5, b"out\n", b"err\n")
        assert not result.timed_out

    async def test_exec_does_not_see_the_shell(self) -> None:
        async with self.open(workdir="/srv") as sandbox:
            await says(sandbox, "cd /tmp; export secret=1; f() { echo f; }; export -f f")
            result = await execute(sandbox, 'pwd; echo "[$secret]"; f')
            assert result.stdout == b"/srv\n[]\n"
            assert result.exit_code == 127

    async def test_the_shell_does_not_see_exec(self, sandbox: Sandbox) -> None:
        await run(sandbox, "cd /srv; kept=1; (exit 9)")
        await execute(sandbox, "cd /tmp; kept=2; export other=3; umask 077; exit 4")
        assert await says(sandbox, 'echo $?; pwd; echo "$kept [$other]"') == "9\n/srv\n1 []\n"

    async def test_one_exec_does_not_see_another(self, sandbox: Sandbox) -> None:
        await execute(sandbox, "cd /tmp; export x=1; ulimit -n 17; umask 0")
        result = await execute(sandbox, 'echo "[$x]"; ulimit -n; umask')
        assert result.stdout.startswith(b"[]\n")
        assert b"\n17\n" not in result.stdout
        assert result.stdout.endswith(b"0022\n")

    async def test_exec_is_root_also_when_the_shell_is_not(self) -> None:
        async with self.open(user="nobody") as sandbox:
            assert await says(sandbox, "id -un") == "nobody\n"
            assert (await execute(sandbox, "id -u")).stdout == b"0\n"

    async def test_exec_takes_a_user(self, sandbox: Sandbox) -> None:
        result = await execute(sandbox, "id -un; touch /tmp/mine; ls /root", user="nobody")
        assert result.stdout.startswith(b"nobody\n")
        assert result.exit_code != 0
        assert (await execute(sandbox, "stat -c %U /tmp/mine")).stdout == b"nobody\n"

    async def test_exec_as_the_images_user_is_root_where_the_image_names_none(
        self, sandbox: Sandbox
    ) -> None:
        assert (await execute(sandbox, "id -un", user=IMAGE_USER)).stdout == b"root\n"

    async def test_exec_as_the_images_user_is_whom_the_image_names(
        self, provider: Provider, tmp_path: Path
    ) -> None:
        (tmp_path / "Dockerfile").write_text(_WITH_A_USER)
        recipe = EnvironmentRecipe(dockerfile=f"{tmp_path}/Dockerfile", context=str(tmp_path))
        image = await provider.prepare(recipe)
        async with self.open(image=image) as sandbox:
            assert (await execute(sandbox, "id -un", user=IMAGE_USER)).stdout == b"maker\n"
            assert (await execute(sandbox, "id -un")).stdout == b"root\n"
            assert await says(sandbox, "id -un") == "maker\n"
        async with self.open(image=image, user="nobody") as sandbox:  # the agent's is another
            assert (await execute(sandbox, "id -un", user=IMAGE_USER)).stdout == b"maker\n"

    async def test_exec_takes_a_folder(self, sandbox: Sandbox) -> None:
        assert (await execute(sandbox, "pwd", workdir="/usr/bin")).stdout == b"/usr/bin\n"

    async def test_exec_in_a_folder_that_is_missing_fails(self, sandbox: Sandbox) -> None:
        result = await execute(sandbox, "touch /tmp/ran", workdir="/none")
        assert result.exit_code not in (0, None)
        assert b"/none" in result.stderr
        with pytest.raises(FileNotFoundError):
            await sandbox.read("/tmp/ran")

    async def test_exec_takes_variables_as_they_are(self, sandbox: Sandbox) -> None:
        env = {"A": 'it\'s $HOME `x` "q"', "B": "two\nlines ü", "EMPTY": ""}
        result = await execute(sandbox, 'printf "%s|" "$A" "$B" "$EMPTY" "${EMPTY+set}"', env=env)
        assert result.stdout.decode() == f"{env['A']}|{env['B']}||set|"

    async def test_exec_reads_its_stdin_to_the_end(self, sandbox: Sandbox) -> None:
        data = bytes(range(256)) * 8192
        result = await execute(sandbox, "cat", stdin=data, max_output_bytes=8 << 20)
        assert result.stdout == data

    async def test_exec_without_stdin_sees_its_end(self, sandbox: Sandbox) -> None:
        result = await execute(sandbox, "cat; echo end")
        assert result.stdout == b"end\n"

    async def test_stdin_that_nobody_reads_harms_nothing(self, sandbox: Sandbox) -> None:
        result = await execute(sandbox, "echo early", stdin=b"exit 9\necho spam\n" * 100_000)
        assert (result.exit_code, result.stdout) == (0, b"early\n")
        await answers(sandbox)

    async def test_exec_runs_many_lines(self, sandbox: Sandbox) -> None:
        result = await execute(sandbox, "x='a\nb'\necho \"$x\"\ncat <<'E'\n$x'\n\nE\n")
        assert result.stdout == b"a\nb\n$x'\n\n"

    async def test_exec_output_is_cut_at_what_the_caller_asks(self, sandbox: Sandbox) -> None:
        cut = await execute(sandbox, "seq 10000", max_output_bytes=100)
        assert (len(cut.stdout), cut.stdout_cut) == (100, 48_894 - 100)
        usual = await execute(sandbox, "seq 10000")
        assert (len(usual.stdout), usual.stdout_cut) == (48_894, 0)

    async def test_exec_output_is_binary(self, sandbox: Sandbox) -> None:
        result = await execute(sandbox, r"printf '\0\036hr\036\377'; printf '\0\377' >&2")
        assert (result.stdout, result.stderr) == (b"\0\x1ehr\x1e\xff", b"\0\xff")

    async def test_exec_is_killed_with_its_children_at_the_deadline(self, sandbox: Sandbox) -> None:
        word = mark()
        command = f"echo before; bash -c 'sleep 1000; :' {word} & sleep 1000"
        result = await execute(sandbox, command, timeout_s=0.5)
        assert (result.timed_out, result.exit_code, result.stdout) == (True, None, b"before\n")
        assert result.duration_s < 0.5 + SOON_S
        assert not await alive(sandbox, word)
        await answers(sandbox)

    async def test_exec_that_resists_is_killed_at_the_deadline(self, sandbox: Sandbox) -> None:
        await says(sandbox, "kept=1")
        for command in (
            "trap '' INT TERM; while :; do :; done",
            "yes",
            "setsid -w sleep 1000",
            "kill -STOP $$",
        ):
            assert (await execute(sandbox, command, timeout_s=0.5)).timed_out, command
            await answers(sandbox)
        assert await says(sandbox, "echo $kept") == "1\n"

    async def test_exec_at_its_deadline_spares_what_the_shell_started(
        self, sandbox: Sandbox
    ) -> None:
        await says(sandbox, "sleep 1000 & job=$!")
        assert (await execute(sandbox, "sleep 1000", timeout_s=0.5)).timed_out
        assert await says(sandbox, "kill -0 $job && echo there") == "there\n"

    async def test_what_exec_leaves_running_keeps_nobody_waiting(self, sandbox: Sandbox) -> None:
        word = mark()
        result = await execute(sandbox, f"bash -c 'sleep 1000; :' {word} & echo started")
        assert (result.stdout, result.timed_out) == (b"started\n", False)
        assert await alive(sandbox, word)

    async def test_exec_as_the_first_thing_leaves_the_shell_fresh(self) -> None:
        async with self.open(workdir="/srv") as sandbox:
            await execute(sandbox, "cd /tmp")
            assert await says(sandbox, "pwd") == "/srv\n"


WRECKS = [
    "exit",
    "kill -9 $$",
    "kill -9 -1",
    "kill -TERM -1",
    "kill -STOP -1",
    "kill -STOP $$",
    "exec sleep 1000",
    "exec >/dev/null 2>&1",
    "exec <&- >&- 2>&-",
    "eval() { :; }; printf() { :; }; read() { :; }; exec() { :; }; set() { :; }",
    "builtin() { :; }; command() { :; }; local() { :; }; return() { :; }",
    "alias echo=false printf=false eval=false true=false",
    "enable -n printf read echo eval",
    "PATH=",
    "unset PATH HOME; IFS=x; LC_ALL=none",
    "set -e; false",
    "set -u; echo $undefined_here",
    "set -n",
    "set -xv",
    "PS1='spam> '; PS2=spam; PS4=spam; PROMPT_COMMAND='echo spam'",
    "trap 'echo spam' DEBUG EXIT ERR RETURN INT",
    "cd /tmp && mkdir gone && cd gone && rmdir ../gone",
    "ulimit -f 0",
    "ulimit -n 3",
    "exec 3>&- 7<&- 8>&- 9>&-",
    'for fd in $(seq 3 300); do eval "exec $fd>&-"; done',
    "unset -f _hr_end; _hr_end() { :; }",
    "readonly _hr=1",
    "TMOUT=1",
    "f() { f; }; f",
]


class Wrecked(Suite):
    """What the agent does to its shell reaches neither our channel nor the next shell."""

    @pytest.mark.parametrize("wreck", WRECKS)
    async def test_our_channel_works_after(self, sandbox: Sandbox, wreck: str) -> None:
        await answers(sandbox)
        await run(sandbox, wreck, timeout_s=1)
        await answers(sandbox)

    @pytest.mark.parametrize("wreck", ["kill -9 -1", "exec sleep 1000", "kill -STOP $$", "PATH="])
    async def test_our_channel_works_for_the_first_time_after(
        self, sandbox: Sandbox, wreck: str
    ) -> None:
        await run(sandbox, wreck, timeout_s=1)
        await answers(sandbox)

    async def test_the_prompt_is_no_output(self, sandbox: Sandbox) -> None:
        await run(sandbox, "PS1='spam> '; PS2='more> '; PROMPT_COMMAND='echo spam'")
        result = await run(sandbox, "echo a\necho b")
        assert (result.stdout, result.stderr) == (b"a\nb\n", b"")

    async def test_a_redirected_shell_still_gives_the_next_output(self, sandbox: Sandbox) -> None:
        await run(sandbox, "exec >/dev/null 2>&1")
        result = await run(sandbox, "echo out; echo err >&2")
        assert (result.stdout, result.stderr) == (b"out\n", b"err\n")

    async def test_a_program_in_the_way_of_ours_is_not_used(self, sandbox: Sandbox) -> None:
        fake = "for p in cat head wc mkdir mv chmod; do printf '#!/bin/sh\\necho spam\\n' >$p; done"
        await says(sandbox, f"mkdir /tmp/bin && cd /tmp/bin && {fake}; chmod +x *; PATH=/tmp/bin")
        await answers(sandbox)

    async def test_output_limits_hold_in_a_wrecked_shell(self) -> None:
        async with self.open(limits=Limits(max_output_bytes=1000)) as sandbox:
            await run(sandbox, "exit 1")
            result = await run(sandbox, "seq 1000")
            assert len(result.stdout) <= 1000
