"""Harbor's contract on a real sandbox: what the tests find, and what is made of what they leave."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from headrace.configs.models import SandboxConfig
from headrace.errors import SandboxError
from headrace.sandbox.base import Bring, Direct, Sandbox, SandboxSpec
from headrace.sandbox.namespace_sandbox import NamespaceSandbox
from headrace.sandbox.providers import choose
from headrace.types import (
    AgentRecipe,
    CommandResult,
    EnvironmentRecipe,
    Task,
    Verdict,
    VerdictFault,
    VerifierRecipe,
)
from headrace.verifiers.harbor import HarborVerifier

BASE = "headrace/base:bookworm"
REWARD = "/logs/verifier/reward"
LOG = "/logs/verifier/test-stdout.txt"


@pytest.fixture
async def sandbox(provider: str) -> AsyncIterator[Sandbox]:
    """A fresh sandbox of each provider."""
    chosen = await choose(SandboxConfig(provider=provider))
    async with chosen:
        image = await chosen.provider.prepare(EnvironmentRecipe(image=BASE))
        async with chosen.provider.open(SandboxSpec(image=image, episode="verifier")) as opened:
            yield opened


def task(folder: Path, script: str, *, name: str = "test.sh", **verifier: object) -> Task:
    """A task whose tests are `script`; nothing else of it matters here."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(script)
    recipe = VerifierRecipe(tests=(str(folder),), timeout_s=30.0)
    return Task(
        name="org/t",
        digest="0" * 64,
        path=str(folder.parent),
        format="harbor",
        instruction="x",
        environment=EnvironmentRecipe(image="x", workdir="/tmp", env={"WORLD": "w"}),
        agent=AgentRecipe(),
        verifier=msgspec.structs.replace(recipe, **verifier),
    )


async def graded(sandbox: Sandbox, tmp_path: Path, script: str, **verifier: object) -> Verdict:
    return await HarborVerifier().verify(task(tmp_path / "tests", script, **verifier), sandbox)


def bash(text: str) -> str:
    return f"#!/bin/bash\n{text}\n"


# --- rewards --------------------------------------------------------------------------------


async def test_the_reward_the_tests_write_is_the_verdict(sandbox: Sandbox, tmp_path: Path) -> None:
    verdict = await graded(sandbox, tmp_path, bash(f"echo checking; echo 1 > {REWARD}.txt"))
    assert (verdict.reward, verdict.fault, verdict.passed) == (1.0, None, True)
    assert verdict.rewards == {"reward": 1.0}
    assert verdict.log_tail == "checking\n"
    assert verdict.duration_s > 0


async def test_the_exit_status_of_the_tests_means_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    assert (await graded(sandbox, tmp_path, bash(f"echo 1 > {REWARD}.txt; exit 7"))).reward == 1.0


async def test_reward_json_comes_before_reward_txt(sandbox: Sandbox, tmp_path: Path) -> None:
    both = bash(f"""echo 1 > {REWARD}.txt; echo '{{"reward": 0.25, "x": 9}}' > {REWARD}.json""")
    verdict = await graded(sandbox, tmp_path, both)
    assert verdict.reward == 0.25
    assert verdict.rewards == {"reward": 0.25, "x": 9.0}


FAULTS = [
    ("nothing", "true", "reward_missing"),
    ("nothing, for set -e", "set -e; false; echo 1 > {r}.txt", "reward_missing"),
    ("an empty file", ": > {r}.txt", "reward_empty"),
    ("a word", "echo passed > {r}.txt", "reward_unparsable"),
    ("not a number", "echo nan > {r}.txt", "reward_not_finite"),
    ("bytes", "printf '\\377\\000\\1' > {r}.json", "reward_unparsable"),
    ("text in reward.json", 'echo 1 > {r}.txt; echo "{{\\"a\\": \\"b\\"}}" > {r}.json',
     "reward_unparsable"),
    ("three gigabytes", "truncate -s 3G {r}.txt", "reward_unparsable: reward.txt is larger"),
    ("a pipe", "mkfifo {r}.txt", "reward_unparsable: reward.txt is no regular file"),
    ("a folder", "mkdir {r}.json; echo 1 > {r}.txt", "reward_unparsable: reward.json is no"),
    ("a link to nothing", "ln -s /nowhere {r}.txt", "reward_unparsable"),
    ("a link to a device", "ln -s /dev/zero {r}.txt", "reward_unparsable"),
    ("a link to itself", "ln -s reward.txt {r}.txt", "reward_unparsable"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "reason"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
async def test_a_reward_that_cannot_be_read_is_the_verifiers_fault(
    sandbox: Sandbox, tmp_path: Path, script: str, reason: str
) -> None:
    verdict = await graded(sandbox, tmp_path, bash(script.replace("{r}", REWARD)))
    assert (verdict.reward, verdict.fault) == (None, VerdictFault.VERIFIER)
    assert verdict.reason is not None and verdict.reason.startswith(reason)


async def test_tests_that_do_not_end_are_a_fault_with_what_they_said(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    script = bash(f"echo 1 > {REWARD}.txt; echo begun; sleep 600")
    verdict = await graded(sandbox, tmp_path, script, timeout_s=1.0)
    assert (verdict.reward, verdict.fault) == (None, VerdictFault.VERIFIER)
    assert verdict.reason == "verifier_timeout: the tests did not end within 1 s"
    assert verdict.log_tail == "begun\n"


# --- what the agent left --------------------------------------------------------------------


async def test_a_reward_from_before_is_removed(sandbox: Sandbox, tmp_path: Path) -> None:
    forged = (
        f"mkdir -p /logs/verifier; echo 1 > {REWARD}.txt; echo '{{\"reward\": 1}}' > {REWARD}.json"
    )
    await sandbox.exec(forged, timeout_s=10)
    verdict = await graded(sandbox, tmp_path, bash("true"))
    assert verdict.reason is not None and verdict.reason.startswith("reward_missing")


@pytest.mark.parametrize(
    "trap",
    [
        "mkdir -p /tests && echo 'echo 1' > /tests/helper.sh",
        "mkdir -p /x && echo 'echo 1' > /x/helper.sh && ln -s /x /tests",
        "echo x > /tests",
        "mkdir -p /x /logs && ln -s /x /logs/verifier",
        "mkdir -p /logs && echo x > /logs/verifier",
        "mkdir -p /logs/verifier/reward.txt /logs/verifier/test-stdout.txt",
        "mkdir -p /logs/verifier && mkfifo /logs/verifier/test-stdout.txt",
    ],
)
async def test_what_the_agent_puts_in_the_way_is_removed(
    sandbox: Sandbox, tmp_path: Path, trap: str
) -> None:
    assert (await sandbox.exec(trap, timeout_s=10)).exit_code == 0
    script = bash(f"test ! -e /tests/helper.sh && echo clean && echo 0.5 > {REWARD}.txt")
    verdict = await graded(sandbox, tmp_path, script)
    assert (verdict.reward, verdict.log_tail) == (0.5, "clean\n"), verdict


async def test_a_sandbox_without_its_tools_is_the_agents_doing_and_no_infrastructure_failure(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    await sandbox.exec("rm -f /usr/bin/tar /usr/bin/mkdir", timeout_s=10)
    verdict = await graded(sandbox, tmp_path, bash(f"echo 1 > {REWARD}.txt"))
    assert (verdict.reward, verdict.fault) == (None, VerdictFault.VERIFIER)
    assert verdict.reason is not None and verdict.reason.startswith("sandbox_unusable")


# --- how the tests are run ------------------------------------------------------------------


async def test_tests_run_in_the_working_directory_with_both_sets_of_variables(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    script = bash(f'echo "$PWD $WORLD $MODE"; echo 1 > {REWARD}.txt')
    verdict = await graded(sandbox, tmp_path, script, env={"MODE": "a b"})
    assert verdict.log_tail == "/tmp w a b\n"


@pytest.mark.parametrize("first", ["#!/bin/bash", "", "# a comment\n#!/bin/sh"])
async def test_a_script_without_its_shebang_first_is_run_by_bash(
    sandbox: Sandbox, tmp_path: Path, first: str
) -> None:
    script = f"{first}\n[[ -n $BASH_VERSION ]] && echo 1 > {REWARD}.txt\n"
    assert (await graded(sandbox, tmp_path, script)).reward == 1.0


async def test_the_whole_folder_arrives_with_dotfiles_and_folders(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    tests = tmp_path / "tests"
    (tests / "data").mkdir(parents=True)
    (tests / "data" / "é b").write_text("1\n")
    (tests / ".hidden").write_text("")
    script = bash(f"test -f /tests/.hidden && cp '/tests/data/é b' {REWARD}.txt")
    assert (await graded(sandbox, tmp_path, script)).reward == 1.0


async def test_the_tests_may_move_their_own_folder(sandbox: Sandbox, tmp_path: Path) -> None:
    script = bash(f"mv /tests /tmp/aside && mv /tmp/aside /tests && echo 1 > {REWARD}.txt")
    assert (await graded(sandbox, tmp_path, script)).reward == 1.0


async def test_output_on_both_channels_is_kept_from_its_end(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    script = bash(f"head -c 3000000 /dev/zero; echo out; echo err >&2; echo 1 > {REWARD}.txt")
    verdict = await graded(sandbox, tmp_path, script)
    assert verdict.log_tail.endswith("out\nerr\n")
    assert len(verdict.log_tail) <= 4000


async def test_a_background_process_of_the_tests_does_not_hold_the_verdict(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    script = bash(f"sleep 25 & echo 1 > {REWARD}.txt")
    verdict = await graded(sandbox, tmp_path, script)
    assert verdict.reward == 1.0
    assert verdict.duration_s < 20


async def test_windows_line_ends_do_not_stop_the_tests_and_are_told(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    script = f"#!/bin/bash\r\nif true; then\r\n  echo 1 > {REWARD}.txt\r\nfi\r\necho said\r\n"
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test.sh").write_bytes(script.encode())
    made = task(tmp_path / "other", bash("true"))
    recipe = msgspec.structs.replace(made.verifier, tests=(str(folder),))
    verdict = await HarborVerifier().verify(msgspec.structs.replace(made, verifier=recipe), sandbox)
    assert verdict.reward == 1.0
    assert verdict.log_tail == (
        "headrace: test.sh has Windows line ends; it was run without them\nsaid\n"
    )


async def test_output_that_is_no_text_is_kept_as_far_as_it_is(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    verdict = await graded(
        sandbox, tmp_path, bash(f"printf 'caf\\351 \\0 end\\n'; echo 1 > {REWARD}.txt")
    )
    assert (verdict.reward, verdict.log_tail) == (1.0, "caf\ufffd \0 end\n")


async def test_tests_that_print_without_end_fill_neither_the_sandbox_nor_our_memory(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    verdict = await graded(sandbox, tmp_path, bash("yes"), timeout_s=3.0)
    assert verdict.reason is not None and verdict.reason.startswith("verifier_timeout")
    assert len(verdict.log_tail) <= 4000
    size = await sandbox.exec(f"wc -c < {LOG}", timeout_s=10)
    assert int(size.stdout) <= 66 << 20


async def test_of_long_output_the_start_and_the_end_are_kept(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    script = f"echo begun; yes | head -c 150000000; echo ended; echo 1 > {REWARD}.txt"
    verdict = await graded(sandbox, tmp_path, bash(script))
    assert verdict.reward == 1.0
    assert verdict.log_tail.endswith("y\nended\n")
    seen = await sandbox.exec(f"head -n 1 {LOG}; wc -c < {LOG}", timeout_s=10)
    begun, size = seen.stdout.split()
    assert begun == b"begun"
    assert int(size) <= 66 << 20


async def test_the_verdict_is_found_when_the_tests_kill_what_started_them(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    script = bash(f"echo said; echo 0.5 > {REWARD}.txt; kill -9 $PPID; sleep 1")
    verdict = await graded(sandbox, tmp_path, script)
    assert (verdict.reward, verdict.log_tail) == (0.5, "said\n")


async def test_later_folders_of_tests_lie_over_earlier_ones(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "grade.sh").write_text(f"echo $1 > {REWARD}.txt\n")
    (shared / "test.sh").write_text("exit 1\n")
    script = bash(". /tests/grade.sh 0.5")
    tests = (str(shared), str(tmp_path / "tests"))
    assert (await graded(sandbox, tmp_path, script, tests=tests)).reward == 0.5


async def test_tests_that_the_image_holds_are_run_where_they_are(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    script = f"#!/bin/bash\ncat /tests/mine > {REWARD}.txt\n"
    await sandbox.write("/tests/test.sh", script.encode())
    await sandbox.write("/tests/mine", b"0.5")
    assert (await graded(sandbox, tmp_path, "", tests=())).reward == 0.5


async def test_an_image_that_should_hold_the_tests_and_does_not_is_a_fault(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    verdict = await graded(sandbox, tmp_path, "", tests=())
    assert verdict.fault is VerdictFault.VERIFIER
    assert verdict.reason is not None and "test.sh" in verdict.reason


# --- who runs the tests ---------------------------------------------------------------------

AS_USER = (
    f'echo "$(id -un) $HOME"; touch /tests/mine /logs/verifier/mine && cat /tests/secret'
    f" && echo 1 > {REWARD}.txt"
)


async def test_the_tests_run_as_the_user_the_task_names_and_may_write_where_they_must(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    await sandbox.exec("mkdir -p /logs/verifier; chmod 700 /logs /logs/verifier", timeout_s=10)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "secret").write_text("read\n")
    verdict = await graded(sandbox, tmp_path, bash(AS_USER), user="nobody")
    assert verdict.log_tail == "nobody /nonexistent\nread\n"
    assert verdict.reward == 1.0


@pytest.mark.timeout(120)
async def test_the_tests_run_as_the_images_user_where_the_task_names_none(
    provider: str, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {BASE}\nRUN useradd -m maker\nUSER maker\n")
    recipe = EnvironmentRecipe(dockerfile=f"{tmp_path}/Dockerfile", context=str(tmp_path))
    chosen = await choose(SandboxConfig.model_validate({"provider": provider}))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "secret").write_text("read\n")
    async with chosen:
        image = await chosen.provider.prepare(recipe)
        async with chosen.provider.open(SandboxSpec(image=image, episode="user")) as sandbox:
            verdict = await graded(sandbox, tmp_path, bash(AS_USER))
            root = await graded(sandbox, tmp_path, bash(AS_USER), user="root")
    assert verdict.log_tail == "maker /home/maker\nread\n"
    assert root.log_tail.startswith("root ")
    assert (verdict.reward, root.reward) == (1.0, 1.0)


async def test_tests_of_a_user_who_does_not_exist_are_a_fault_that_says_so(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    verdict = await graded(sandbox, tmp_path, bash("true"), user="no; such")
    assert verdict.reason is not None and verdict.reason.startswith("reward_missing")
    assert verdict.log_tail == "headrace: no user no; such\n"


async def test_a_reward_that_only_root_can_read_is_read(sandbox: Sandbox, tmp_path: Path) -> None:
    script = bash(f"echo 0.5 > {REWARD}.txt; chmod 000 {REWARD}.txt")
    assert (await graded(sandbox, tmp_path, script, user="nobody")).reward == 0.5


# --- outcomes -------------------------------------------------------------------------------

REPORT = (
    '{"results": {"tests": [{"name": "a", "status": "passed"}, {"name": "b", "status": "failed"}]}}'
)


@pytest.mark.parametrize("place", ["/logs/verifier/ctrf.json", "/tests/ctrf.json"])
async def test_a_ctrf_report_gives_the_single_tests(
    sandbox: Sandbox, tmp_path: Path, place: str
) -> None:
    verdict = await graded(
        sandbox, tmp_path, bash(f"echo '{REPORT}' > {place}; echo 0 > {REWARD}.txt")
    )
    assert [(t.name, t.status) for t in verdict.tests] == [("a", "passed"), ("b", "failed")]
    assert verdict.pass_ratio == 0.5


async def test_a_report_from_before_is_not_believed(sandbox: Sandbox, tmp_path: Path) -> None:
    forged = f"mkdir -p /logs/verifier; echo '{REPORT}' > /logs/verifier/ctrf.json"
    await sandbox.exec(forged, timeout_s=10)
    assert (await graded(sandbox, tmp_path, bash(f"echo 1 > {REWARD}.txt"))).tests == ()


async def test_pytests_output_gives_the_single_tests(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "out").write_text(
        "=== short test summary info ===\nPASSED t.py::a\nFAILED t.py::b - no\n"
        "=== 1 failed, 1 passed in 0.01s ===\n"
    )
    verdict = await graded(sandbox, tmp_path, bash(f"cat /tests/out; echo 0 > {REWARD}.txt"))
    assert [(t.name, t.status) for t in verdict.tests] == [
        ("t.py::a", "passed"),
        ("t.py::b", "failed"),
    ]


async def test_the_tests_are_in_the_sandbox_only_from_verification_on(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    look = "test -e /tests && echo there || echo absent"
    before = await sandbox.exec(look, timeout_s=10)
    await graded(sandbox, tmp_path, bash("true"))
    after = await sandbox.exec(look, timeout_s=10)
    assert (before.stdout, after.stdout) == (b"absent\n", b"there\n")


# --- how many requests it takes -------------------------------------------------------------


def is_root() -> bool:
    return os.geteuid() == 0


class Counting:
    """A real sandbox, and how many commands it was asked to run."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self.asked = 0

    async def exec(self, command: str, **settings: Any) -> CommandResult:
        self.asked += 1
        return await self._sandbox.exec(command, **settings)

    async def exec_with(self, bring: Bring, command: str, **settings: Any) -> CommandResult | None:
        if not isinstance(self._sandbox, Direct):
            return None
        found = await self._sandbox.exec_with(bring, command, **settings)
        self.asked += found is not None
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sandbox, name)


@pytest.mark.parametrize(
    ("made", "asked"), [({}, 1), ({"user": "root"}, 1), ({"user": "nobody"}, 2)], ids=str
)
async def test_a_verdict_of_roots_tests_takes_one_request(
    sandbox: Sandbox, tmp_path: Path, made: dict[str, str], asked: int
) -> None:
    counting = Counting(sandbox)
    script = bash(f"echo 0.5 > {REWARD}.txt; echo said")
    verdict = await graded(cast(Sandbox, counting), tmp_path, script, **made)
    assert (verdict.reward, verdict.log_tail) == (0.5, "said\n")
    # a sandbox that takes the files itself is asked once, whoever the tests' user is
    assert counting.asked == (1 if isinstance(sandbox, NamespaceSandbox) and is_root() else asked)


async def test_tests_that_are_not_brought_in_the_tests_time_have_a_time_of_their_own(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    slow = '#!/bin/sh\nsleep 1.5\nexec /usr/bin/mkdir.real "$@"\n'
    await sandbox.exec("mv /usr/bin/mkdir /usr/bin/mkdir.real", timeout_s=10)
    await sandbox.write("/usr/bin/mkdir", slow.encode(), mode=0o755)
    verdict = await graded(sandbox, tmp_path, bash(f"echo 0.5 > {REWARD}.txt"), timeout_s=1.0)
    assert verdict.reward == 0.5


class Slow:
    """A real sandbox in which a tool of ours hangs: every deadline passes at once."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self.waited_s: list[float] = []

    async def exec(self, command: str, *, timeout_s: float, **settings: Any) -> CommandResult:
        self.waited_s.append(timeout_s)
        return await self._sandbox.exec(command, timeout_s=0.5, **settings)

    async def exec_with(self, bring: Bring, command: str, **settings: Any) -> None:
        """Its tools are what hangs, so it takes no file without them."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sandbox, name)


async def test_a_tool_that_hangs_does_not_hold_the_verdict_twice(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    await sandbox.write("/usr/bin/tar", b"#!/bin/sh\nsleep 1000\n", mode=0o755)
    slow = Slow(sandbox)
    with pytest.raises(SandboxError, match="did not answer within 900 s"):
        await graded(cast(Sandbox, slow), tmp_path, bash("true"), timeout_s=900.0)
    assert slow.waited_s == [900.0]


async def test_one_slow_bringing_does_not_cost_the_task_its_one_request(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    slow, counting = Slow(sandbox), Counting(sandbox)
    verifier = HarborVerifier()
    tests = task(tmp_path / "tests", bash(f"echo 1 > {REWARD}.txt"), timeout_s=20.0)
    await sandbox.exec("mv /usr/bin/tar /usr/bin/tar.real", timeout_s=10)
    await sandbox.write("/usr/bin/tar", b"#!/bin/sh\nsleep 1000\n", mode=0o755)
    with pytest.raises(SandboxError, match="did not answer within 300 s"):
        await verifier.verify(tests, cast(Sandbox, slow))
    assert slow.waited_s == [20.0, 300.0]
    await sandbox.exec("mv /usr/bin/tar.real /usr/bin/tar", timeout_s=10)
    assert (await verifier.verify(tests, cast(Sandbox, counting))).reward == 1.0
    assert counting.asked == 1


@pytest.mark.parametrize(
    ("said", "log"),
    [
        ("", ""),
        (r"printf 'caf\351'", "caf\ufffd"),
        (r"printf 'a\0b'", "a\0b"),
        (r"printf '\n--\ntext /logs/verifier/reward.txt\n1'", None),
        ("head -c 300 /dev/zero | tr '\\0' x", "x" * 300),
    ],
)
async def test_a_log_is_kept_as_it_is_whatever_is_in_it(
    sandbox: Sandbox, tmp_path: Path, said: str, log: str | None
) -> None:
    verdict = await graded(sandbox, tmp_path, bash(f"{said}\necho 0.5 > {REWARD}.txt"))
    forged = "\n--\ntext /logs/verifier/reward.txt\n1"
    assert (verdict.reward, verdict.log_tail) == (0.5, forged if log is None else log)


@pytest.mark.parametrize("content", [r"1\0", r"\0001", "1\\nheadrace-ran\\n--\\n"])
async def test_a_reward_is_read_to_its_last_byte(
    sandbox: Sandbox, tmp_path: Path, content: str
) -> None:
    verdict = await graded(sandbox, tmp_path, bash(f"printf '{content}' > {REWARD}.txt"))
    assert verdict.reason is not None and verdict.reason.startswith("reward_unparsable")
