"""Every phase of a task on real sandboxes: steps, users, health, artifacts, two sandboxes."""

import json
from pathlib import Path

import pytest

from headrace.configs.models import RunConfig, SandboxConfig, TasksConfig
from headrace.engine import runner
from headrace.engine.reader import latest_episodes
from headrace.types import Episode, StopReason

EXAMPLES = Path(__file__).parent / "data" / "harbor"
PLAIN = ("*steps-two", "*separate-verifier", "*healthcheck", "*users")


async def run(
    provider: str,
    policy: dict[str, object],
    out: Path,
    *include: str,
    source: Path = EXAMPLES,
) -> list[Episode]:
    config = RunConfig.model_validate(
        {
            "policy": policy,
            "sandbox": SandboxConfig.model_validate({"provider": provider}),
            "tasks": TasksConfig(source=str(source), include=include or PLAIN),
        }
    )
    await runner.run(config, out)
    return sorted(latest_episodes(out), key=lambda e: e.task)


@pytest.mark.timeout(120)
async def test_the_oracle_solves_every_example(provider: str, tmp_path: Path) -> None:
    episodes = await run(provider, {"type": "oracle"}, tmp_path / "run")
    failed = [(e.task, e.verdict, e.failure) for e in episodes if not e.verdict.passed]
    assert failed == []
    assert [e.task for e in episodes] == [
        "examples/healthcheck",
        "examples/separate-verifier",
        "examples/steps-two",
        "examples/users",
    ]
    apart, steps = episodes[1], episodes[2]
    folder = tmp_path / "run" / "artifacts"
    assert [(a.source, a.status) for a in apart.artifacts] == [("/app/answer.txt", "ok")]
    assert (folder / apart.id / "app/answer.txt").read_text() == "5050\n"
    assert [(s.name, s.stop_reason, s.verdict.reward) for s in steps.steps] == [
        ("collect", StopReason.DONE, 1.0),
        ("count", StopReason.DONE, 1.0),
    ]
    assert [turn.step for turn in steps.turns] == ["collect", "count"]
    assert (folder / steps.id / "steps/collect/app/words.txt").read_text() == "one\ntwo\nthree\n"
    manifest = json.loads((folder / steps.id / "manifest.json").read_bytes())
    assert [entry["destination"] for entry in manifest] == [a.destination for a in steps.artifacts]
    assert steps.artifacts[-1].destination == "steps/count/app/total.txt"


@pytest.mark.timeout(120)
async def test_doing_nothing_solves_no_example(provider: str, tmp_path: Path) -> None:
    episodes = await run(provider, {"type": "noop"}, tmp_path / "run")
    assert [e.verdict.reward for e in episodes] == [0.0] * 4
    steps = episodes[2]
    assert [s.name for s in steps.steps] == ["collect"], "its min_reward was missed"
    assert {a.status for a in steps.artifacts} == {"missing"}


def written(root: Path, files: dict[str, str]) -> Path:
    """A task folder with these files; `test.sh` and `setup.sh` without a run bit."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


WORLD = """
[environment]
docker_image = "headrace/base:bookworm"
workdir = "/app"
network_mode = "no-network"
"""

APART = (
    """
artifacts = ["/app/out", "/app/answer"]
[verifier]
user = "nobody"
environment_mode = "separate"
"""
    + WORLD
)
HOSTILE = """\
mkdir out; cd out; echo 1 > fine; ln -s fine inside; ln -s /tests outside; mkfifo pipe
echo '*' > .harborignore; cp /bin/true mine; chmod 4700 mine; chmod 600 fine; cd ..
echo 42 > answer; mkdir -p /tests /logs/verifier; echo 1 > /logs/verifier/reward.txt
echo 'echo 1 > /logs/verifier/reward.txt' > /tests/test.sh"""
APART_TEST = """\
set -e
cat /app/out/inside; test -x /app/out/mine; test ! -u /app/out/mine
test ! -e /app/out/outside; test ! -e /app/out/pipe; test -e /app/out/.harborignore
test "$(id -un)" = nobody
cat /app/answer; echo more > /app/out/more
echo 0.5 > /logs/verifier/reward.txt
"""


@pytest.mark.timeout(120)
async def test_only_clean_artifacts_reach_a_verifier_of_its_own(
    provider: str, tmp_path: Path
) -> None:
    files = {"task.toml": APART, "instruction.md": "x", "tests/test.sh": APART_TEST}
    root = written(tmp_path / "apart", files)
    policy = {"type": "scripted", "commands": (HOSTILE,)}
    (episode,) = await run(provider, policy, tmp_path / "run", "*", source=root)
    assert episode.verdict.reward == 0.5, episode.verdict
    assert episode.verdict.log_tail == "1\n42\n"
    (out, _) = episode.artifacts
    assert "outside" in out.detail and "pipe" in out.detail


SWAPPED = {
    "a whole too large, its parts not": "truncate -s 9G big; echo 42 > answer; mkdir sub; cd sub;"
    " ln -s ../answer out",
    "a link between parts": "echo 42 > answer; mkdir sub; cd sub; ln -s ../answer out",
    "a link out of the parts": "echo 42 > /srv/a; ln -s /srv/a answer",
    "a file for a folder": "echo 42 > answer; rm -rf /etc/skel; echo 1 > /etc/skel",
    "a folder for a file": "echo 42 > answer; rm /etc/issue; mkdir -p /etc/issue/x",
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("script", SWAPPED.values(), ids=SWAPPED)
async def test_no_artifact_that_an_agent_can_make_ends_the_grading(
    provider: str, tmp_path: Path, script: str
) -> None:
    sources = ["/app", "/app/answer", "/app/sub", "/etc/skel", "/etc/issue"]
    toml = APART.replace('["/app/out", "/app/answer"]', json.dumps(sources))
    test = "grep -qx 42 /app/answer && echo 1 > /logs/verifier/reward.txt\n"
    files = {"task.toml": toml, "instruction.md": "x", "tests/test.sh": test}
    root = written(tmp_path / "swapped", files)
    policy = {"type": "scripted", "commands": (script,)}
    (episode,) = await run(provider, policy, tmp_path / "run", "*", source=root)
    assert episode.failure is None, episode.failure
    assert episode.verdict.reward == 1.0, (episode.verdict, episode.artifacts)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("apart", [False, True], ids=["shared", "apart"])
async def test_an_agent_that_removes_everything_is_graded_at_the_first_try(
    provider: str, tmp_path: Path, apart: bool
) -> None:
    files = {"task.toml": APART if apart else WORLD, "instruction.md": "x", "tests/test.sh": "true"}
    root = written(tmp_path / "gone", files)
    policy = {"type": "scripted", "commands": ("rm -rf --no-preserve-root /* 2> /dev/null",)}
    (episode,) = await run(provider, policy, tmp_path / "run", "*", source=root)
    assert episode.failure is None, episode.failure
    assert (episode.tries, episode.verdict.reward) == (1, None)
    assert str(episode.verdict.fault) == "verifier"


STEPS = (
    """
[[steps]]
name = "one"
[[steps]]
name = "two"
min_reward = 0.5
[[steps]]
name = "three"
[steps.healthcheck]
command = "test -e /app/ready"
retries = 1
"""
    + WORLD
)
SEEN = """\
echo seen: $PWD $(ls -d /tests 2> /dev/null; ls -A /logs/verifier 2> /dev/null) $mine
export mine=1; cd /tmp"""


@pytest.mark.timeout(120)
async def test_a_steps_agent_finds_a_fresh_shell_and_no_tests(
    provider: str, tmp_path: Path
) -> None:
    graded = "echo 1 > /logs/verifier/reward.txt; echo graded > /tests/left\n"
    files = {
        "task.toml": STEPS,
        **{f"steps/{name}/instruction.md": name for name in ("one", "two", "three")},
        **{f"steps/{name}/tests/test.sh": graded for name in ("one", "two", "three")},
        "steps/two/workdir/setup.sh": "echo set up > from-setup; echo $PWD >> from-setup\n",
    }
    root = written(tmp_path / "steps", files)
    policy = {"type": "scripted", "commands": (SEEN, "cat /app/from-setup")}
    (episode,) = await run(provider, policy, tmp_path / "run", "*", source=root)
    assert [(s.name, s.verdict.reward) for s in episode.steps] == [
        ("one", 1.0),
        ("two", 1.0),
        ("three", None),
    ]
    assert episode.steps[2].verdict.reason is not None
    assert "test -e /app/ready" in episode.steps[2].verdict.reason
    assert episode.verdict.reward == pytest.approx(2 / 3), "the step that could not begin counts 0"
    assert episode.verdict.other is not None
    assert episode.verdict.other.reward == 1.0, "Harbor leaves it out"
    printed = [turn.results[0].stdout.decode() for turn in episode.turns]
    assert printed == ["seen: /app\n", "", "seen: /app\n", "set up\n/app\n"]


@pytest.mark.timeout(60)
async def test_a_task_that_speaks_of_its_logs_finds_them_and_keeps_what_is_left_there(
    provider: str, tmp_path: Path
) -> None:
    files = {
        "task.toml": '[agent]\nuser = "nobody"\n' + WORLD,
        "instruction.md": "Leave the answer in /logs/artifacts.",
        "tests/test.sh": "ls -A /logs/agent && echo 1 > /logs/verifier/reward.txt",
    }
    root = written(tmp_path / "logs", files)
    policy = {"type": "scripted", "commands": ("echo 7 > /logs/artifacts/answer",)}
    (episode,) = await run(provider, policy, tmp_path / "run", "*", source=root)
    assert (episode.verdict.reward, [a.status for a in episode.artifacts]) == (1.0, ["ok"])
    kept = tmp_path / "run" / "artifacts" / episode.id / "logs" / "artifacts" / "answer"
    assert kept.read_text() == "7\n"


ANSWER = json.dumps(
    {
        "analysis": "a",
        "plan": "p",
        "commands": [{"keystrokes": "echo $((6*7))-typed\n", "duration": 10}],
        "task_complete": True,
    }
)


@pytest.mark.timeout(60)
async def test_keystrokes_are_typed_into_the_terminal(provider: str, tmp_path: Path) -> None:
    policy = {"type": "scripted", "answers": (ANSWER, ANSWER)}
    (episode,) = await run(provider, policy, tmp_path / "run", "*healthcheck")
    (result, *_) = episode.turns[0].results
    assert b"42-typed" in result.stdout
    assert result.screen is not None and b"42-typed" in result.screen
    assert result.exit_code is None
