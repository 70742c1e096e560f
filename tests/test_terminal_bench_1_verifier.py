"""Terminal-Bench 1.0's contract on a real sandbox: what the tests find, what is read of them."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from headrace.configs.models import SandboxConfig
from headrace.sandbox.base import Sandbox, SandboxSpec
from headrace.sandbox.providers import choose
from headrace.types import (
    AgentRecipe,
    EnvironmentRecipe,
    Task,
    Verdict,
    VerdictFault,
    VerifierRecipe,
)
from headrace.verifiers.terminal_bench_1 import TerminalBench1Verifier

BASE = "headrace/base:bookworm"
TITLE = "echo '==== short test summary info ===='"
GOOD = f"{TITLE}; echo 'PASSED tests/test_a.py::test_a'"


@pytest.fixture
async def sandbox(provider: str) -> AsyncIterator[Sandbox]:
    """A fresh sandbox of each provider, with a terminal."""
    chosen = await choose(SandboxConfig(provider=provider))
    async with chosen:
        image = await chosen.provider.prepare(EnvironmentRecipe(image=BASE))
        spec = SandboxSpec(image=image, episode="verifier", terminal=True, workdir="/tmp")
        async with chosen.provider.open(spec) as opened:
            yield opened


@pytest.fixture
async def bare(provider: str) -> AsyncIterator[Sandbox]:
    """One without a terminal, whose agent is nobody."""
    chosen = await choose(SandboxConfig(provider=provider))
    async with chosen:
        image = await chosen.provider.prepare(EnvironmentRecipe(image=BASE))
        spec = SandboxSpec(image=image, episode="verifier", user="nobody", workdir="/tmp")
        async with chosen.provider.open(spec) as opened:
            yield opened


def task(folder: Path, script: str, **verifier: object) -> Task:
    """A task whose `run-tests.sh` is `script`; nothing else of it matters here."""
    (folder / "run-tests.sh").write_text(script)
    recipe = VerifierRecipe(
        kind="terminal-bench-1",
        tests=(str(folder / "tests"),) if (folder / "tests").is_dir() else (),
        script=f"{folder}/run-tests.sh",
        timeout_s=20.0,
        parser="pytest",
    )
    return Task(
        name="t",
        digest="0" * 64,
        path=str(folder),
        format="terminal-bench-1",
        instruction="x",
        environment=EnvironmentRecipe(image="x", workdir="/tmp", env={"WORLD": "w"}),
        agent=AgentRecipe(),
        verifier=msgspec.structs.replace(recipe, **verifier),
    )


async def graded(
    sandbox: Sandbox, folder: Path, script: str, *, compat: str = "correct", **verifier: object
) -> Verdict:
    return await TerminalBench1Verifier(compat).verify(task(folder, script, **verifier), sandbox)


def check(name: str, condition: str) -> str:
    """A line of run-tests.sh: one test."""
    return f"if {condition}; then echo PASSED t.py::{name}; else echo 'FAILED t.py::{name} - x'; fi"


def checked(*checks: str) -> str:
    return "\n".join([TITLE, *checks]) + "\n"


# --- the run --------------------------------------------------------------------------------


async def test_what_the_tests_print_is_the_verdict(sandbox: Sandbox, tmp_path: Path) -> None:
    verdict = await graded(sandbox, tmp_path, f"{GOOD}; exit 3")
    assert (verdict.reward, verdict.fault, verdict.other) == (1.0, None, None)
    assert [(t.name, t.status) for t in verdict.tests] == [("tests/test_a.py::test_a", "passed")]
    assert verdict.rewards == {"reward": 1.0}
    assert verdict.log_tail.endswith("PASSED tests/test_a.py::test_a\n")
    assert verdict.duration_s > 0


async def test_one_failure_is_a_reward_of_zero_with_the_share_that_passed(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    script = checked(check("a", "true"), check("b", "false"), check("c", "true"))
    verdict = await graded(sandbox, tmp_path, script)
    assert (verdict.reward, verdict.fault) == (0.0, None)
    assert verdict.pass_ratio == pytest.approx(2 / 3)


async def test_the_tests_find_their_files_root_and_the_working_directory(
    bare: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "tests" / "deep").mkdir(parents=True)
    (tmp_path / "tests" / "deep" / ".data").write_text("d")
    script = checked(
        check("tests", '[ "$(cat $TEST_DIR/deep/.data)" = d ] && [ "$TEST_DIR" = /tests ]'),
        check("root", '[ "$(id -u):$HOME" = 0:/root ]'),
        check("workdir", '[ "$PWD" = /tmp ]'),
        check("world", '[ "$WORLD" = w ]'),
        check("stdin", '[ -z "$(cat)" ]'),
        check("not-executable", "[ ! -x /tests/run-tests.sh ]"),
    )
    verdict = await graded(bare, tmp_path, script)
    assert [t.name for t in verdict.tests if t.status != "passed"] == []


async def test_both_streams_are_read_in_their_order(sandbox: Sandbox, tmp_path: Path) -> None:
    script = f"{TITLE} >&2; echo PASSED t.py::a; echo FAILED t.py::b >&2"
    verdict = await graded(sandbox, tmp_path, script)
    assert [t.status for t in verdict.tests] == ["passed", "failed"]


async def test_the_new_shell_reads_the_start_files_the_agent_wrote(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    await sandbox.run(
        "echo 'export FROM_RC=1; echo noise' >> ~/.bashrc; export FROM_SHELL=1", timeout_s=10
    )
    script = checked(check("rc", '[ "$FROM_RC" = 1 ]'), check("shell", '[ -z "$FROM_SHELL" ]'))
    verdict = await graded(sandbox, tmp_path, script)
    assert verdict.passed
    assert "noise" not in verdict.log_tail


async def test_what_the_agent_left_in_the_tests_folder_is_gone(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    await sandbox.run("mkdir -p /tests /logs && echo x > /tests/conftest.py", timeout_s=10)
    await sandbox.run("ln -s /etc /logs/verifier", timeout_s=10)
    script = checked(check("gone", "[ ! -e /tests/conftest.py ] && [ -d /etc/apt ]"))
    assert (await graded(sandbox, tmp_path, script)).passed


async def test_a_script_among_the_tests_is_the_one_that_runs(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "run-tests.sh").write_text(GOOD)
    assert (await graded(sandbox, tmp_path, "exit 1")).passed


async def test_windows_line_ends_are_taken_off_unless_strict(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    script = checked(check("a", "true")).replace("\n", "\r\n")
    verdict = await graded(sandbox, tmp_path, script)
    assert verdict.passed
    assert verdict.log_tail.startswith("headrace: run-tests.sh has Windows line ends")
    official = await graded(sandbox, tmp_path, script, compat="strict")
    assert (official.tests, "\r" in official.log_tail) == ((), True)  # bash cannot read it


async def test_output_that_is_no_text_is_read(sandbox: Sandbox, tmp_path: Path) -> None:
    verdict = await graded(sandbox, tmp_path, f"printf '\\377\\0\\n'; {GOOD}")
    assert verdict.passed


# --- the agent's own shell --------------------------------------------------------------------


async def test_in_the_same_shell_the_tests_see_its_variables(bare: Sandbox, tmp_path: Path) -> None:
    await bare.run("cd /var; export ANSWER=42; unexported=1", timeout_s=10)
    script = checked(
        check("answer", '[ "$ANSWER" = 42 ]'),
        check("unexported", '[ -z "$unexported" ]'),
        check("user", '[ "$(id -un)" = nobody ]'),
        check("folder", '[ "$PWD" = /var ]'),
    )
    verdict = await graded(bare, tmp_path, script, same_shell=True)
    assert [t.name for t in verdict.tests if t.status != "passed"] == []
    assert not (await graded(bare, tmp_path, script)).passed


async def test_in_the_same_terminal_the_tests_see_its_variables(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    terminal = await sandbox.terminal()
    await terminal.type("export ANSWER=42\n", wait_s=10)
    script = checked(check("answer", '[ "$ANSWER" = 42 ]'))
    verdict = await graded(sandbox, tmp_path, script, same_shell=True)
    assert verdict.passed, verdict.log_tail


async def test_tests_that_make_the_terminal_look_idle_are_waited_for(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    await (await sandbox.terminal()).type("true\n", wait_s=10)
    script = f"cat < /dev/tty > /dev/null & sleep 2; kill $!; {GOOD}"
    verdict = await graded(sandbox, tmp_path, script, same_shell=True)
    assert verdict.passed, verdict.reason


async def test_a_terminal_that_another_program_holds_is_a_timeout(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    await (await sandbox.terminal()).type("cat > /dev/null\n", wait_s=0.5)
    verdict = await graded(sandbox, tmp_path, GOOD, same_shell=True, timeout_s=1.5)
    assert verdict.reason == "test_timeout: the tests did not end within 1.5 s"


@pytest.mark.parametrize("same_shell", [False, True])
async def test_tests_that_do_not_end_are_a_fault_with_what_they_said(
    bare: Sandbox, tmp_path: Path, same_shell: bool
) -> None:
    script = f"{GOOD}; sleep 600"
    verdict = await graded(bare, tmp_path, script, timeout_s=1.5, same_shell=same_shell)
    assert (verdict.reward, verdict.fault) == (None, VerdictFault.VERIFIER)
    assert verdict.reason == "test_timeout: the tests did not end within 1.5 s"
    assert verdict.log_tail.endswith("PASSED tests/test_a.py::test_a\n")


# --- output ---------------------------------------------------------------------------------


async def test_gigabytes_of_output_leave_little_and_do_not_hide_the_summary(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    script = f"head -c 100000000 /dev/zero | tr '\\0' x; echo; {GOOD}"
    verdict = await graded(sandbox, tmp_path, script)
    assert verdict.passed, verdict.reason
    size = await sandbox.exec("stat -c %s /logs/verifier/test-stdout.txt", timeout_s=10)
    assert int(size.stdout) <= (64 << 20) + (1 << 20)


async def test_what_the_tests_leave_running_keeps_nobody_waiting(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    verdict = await graded(sandbox, tmp_path, f"sleep 300 & {GOOD}", timeout_s=20.0)
    assert verdict.passed
    assert verdict.duration_s < 15


async def test_output_without_a_summary_is_the_verifiers_fault(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    verdict = await graded(sandbox, tmp_path, "echo uv: command not found; exit 127")
    assert (verdict.reward, verdict.fault) == (None, VerdictFault.VERIFIER)
    assert verdict.reason is not None and verdict.reason.startswith("parse_error: ")
    assert verdict.log_tail == "uv: command not found\n"


@pytest.mark.parametrize(("program", "said"), [("bash", "bash"), ("tar", "there is no tar")])
async def test_a_sandbox_without_what_runs_the_tests_is_the_verifiers_fault(
    sandbox: Sandbox, tmp_path: Path, program: str, said: str
) -> None:
    await sandbox.run(f"rm -f /bin/{program} /usr/bin/{program}", timeout_s=10)
    verdict = await graded(sandbox, tmp_path, GOOD)
    assert (verdict.reward, verdict.fault) == (None, VerdictFault.VERIFIER)
    assert verdict.reason is not None
    assert verdict.reason.startswith("sandbox_unusable: the tests cannot be brought: ")
    assert said in verdict.reason


# --- two readings ---------------------------------------------------------------------------

HIDDEN = f"{TITLE}; echo 'FAILED a.py::t - x'; echo PASSED b.py::t"


async def test_a_verdict_that_differs_records_both_readings(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    ours = await graded(sandbox, tmp_path, HIDDEN)
    theirs = await graded(sandbox, tmp_path, HIDDEN, compat="strict")
    assert (ours.reward, theirs.reward) == (0.0, 1.0)
    assert ours.other is not None and theirs.other is not None
    assert (ours.other.compat, ours.other.reward) == ("strict", 1.0)
    assert (theirs.other.compat, theirs.other.reward) == ("correct", 0.0)
    assert ours.other.reason == theirs.other.reason
    assert ours.other.reason.startswith("failure_hidden: a.py::t failed")


async def test_an_empty_summary_differs(sandbox: Sandbox, tmp_path: Path) -> None:
    ours = await graded(sandbox, tmp_path, TITLE)
    assert (ours.reward, ours.fault) == (None, VerdictFault.VERIFIER)
    assert ours.reason == "no_tests: the summary lists no test"
    assert ours.other is not None and ours.other.reward == 1.0
    theirs = await graded(sandbox, tmp_path, TITLE, compat="strict")
    assert theirs.passed and theirs.fault is None
    assert theirs.other is not None and theirs.other.reward is None


async def test_each_parser_is_the_tasks_own(sandbox: Sandbox, tmp_path: Path) -> None:
    for parser, output in (
        (
            "swebench",
            "echo SWEBench results starts here; echo PASSED; echo SWEBench results ends here",
        ),
        ("mlebench", "echo ALL TESTS PASSED"),
        ("swelancer", "echo SWE Lancer Success"),
    ):
        assert (await graded(sandbox, tmp_path, output, parser=parser)).passed, parser
        assert not (await graded(sandbox, tmp_path, "echo PASSED", parser=parser)).passed, parser
