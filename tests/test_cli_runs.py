"""Runs from the command line on real sandboxes: results, resuming, Ctrl-C."""

import json
import os
import shutil
import signal
import subprocess
import sysconfig
from pathlib import Path

import pytest

from headrace.policies.server_command import vllm_build

HEADRACE = Path(sysconfig.get_path("scripts")) / "headrace"
ENV = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}

pytestmark = pytest.mark.timeout(240)
ONLY_NAMESPACE = pytest.mark.parametrize(
    "provider", [pytest.param("namespace", marks=pytest.mark.namespace)], indirect=True
)


def headrace(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [HEADRACE, *arguments], capture_output=True, text=True, timeout=200, env=ENV
    )


def evaluate(out: Path, provider: str, policy: str, *settings: str) -> list[str | Path]:
    given = [f"sandbox.provider={provider}", 'tasks.include=["*/lock-key-file"]', *settings]
    more = [part for setting in given for part in ("--set", setting)]
    return ["eval", "--tasks", "first-steps", "--policy", policy, "--out", out, *more]


def test_an_evaluation_prints_pass_at_k_and_writes_a_summary(provider: str, tmp_path: Path) -> None:
    done = headrace(*evaluate(tmp_path / "r", provider, "oracle", "attempts=2"))
    assert done.returncode == 0, done.stderr
    assert "2 of 2 episodes over 1 task: 2 passed, 0 failed" in done.stdout
    rates = [line.split() for line in done.stdout.splitlines() if line.startswith("pass@")]
    assert [(r[0], r[1], r[-2]) for r in rates] == [
        ("pass@1", "100.0", "attempts"),
        ("pass@1", "100.0", "tasks"),
        ("pass@2", "100.0", "tasks"),
    ]
    assert f"report: {tmp_path}/r/report/index.html" in done.stdout
    assert {p.name for p in (tmp_path / "r" / "report").iterdir()} == {
        "index.html", "report.md", "evaluation.json",
    }  # fmt: skip
    assert f"sandboxes: {provider}: as configured" in done.stderr
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["passed"] == 2


def test_the_same_command_again_has_nothing_left_to_do(provider: str, tmp_path: Path) -> None:
    command = evaluate(tmp_path / "r", provider, "noop")
    first, second = headrace(*command), headrace(*command)
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert "1 episode planned, 1 of them done already" in second.stderr
    assert "1 of 1 episodes over 1 task: 0 passed, 1 failed" in second.stdout


def test_attempts_are_added_to_a_run_and_what_it_has_is_kept(provider: str, tmp_path: Path) -> None:
    run = tmp_path / "r"
    first = headrace(*evaluate(run, provider, "noop"))
    assert first.returncode == 0, first.stderr
    kept = json.loads((run / "report" / "evaluation.json").read_text())["evaluation"]["by_task"]
    more = headrace("resume", run, "--attempts", "3", "--set", "engine.live=2")
    assert more.returncode == 0, more.stderr
    assert "3 episodes planned, 1 of them done already" in more.stderr
    assert "3 of 3 episodes over 1 task: 0 passed, 3 failed" in more.stdout
    found = json.loads((run / "report" / "evaluation.json").read_text())["evaluation"]
    assert [s["sample"] for s in found["by_task"][0]["samples"]] == [0, 1, 2]
    assert found["by_task"][0]["samples"][0] == kept[0]["samples"][0]
    fewer = headrace("resume", run, "--samples", "2")
    assert (fewer.returncode, fewer.stdout) == (2, "")
    assert "attempts: stored 3, given 2" in fewer.stderr


def test_another_configuration_is_refused_with_the_difference(
    provider: str, tmp_path: Path
) -> None:
    headrace(*evaluate(tmp_path / "r", provider, "noop"))
    done = headrace(*evaluate(tmp_path / "r", provider, "noop", "limits.max_turns=3"))
    assert done.returncode == 2
    assert "limits.max_turns: stored 20, given 3" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_with_130_and_what_is_durable(provider: str, tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text(
        'commands = ["true"]\n[tasks."first-steps/lock-key-file"]\ncommands = ["sleep 100"]\n'
    )
    settings = (
        f"policy.script={script}", 'tasks.include=["*/lock-key-file", "*/sort-scores"]',
        "limits.command_timeout_s=100", "engine.grace_s=1",
    )  # fmt: skip
    with subprocess.Popen(
        [HEADRACE, *evaluate(tmp_path / "r", provider, "scripted", *settings)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV,
    ) as process:  # fmt: skip
        assert process.stderr is not None and process.stdout is not None
        for line in process.stderr:
            if line.startswith("fail  first-steps/sort-scores"):
                break
        process.send_signal(signal.SIGINT)
        told, result = process.stderr.read(), process.stdout.read()
        assert process.wait(timeout=60) == 130, told
    assert "Traceback" not in told
    assert "Ctrl-C: finishing what is nearly done; Ctrl-C again cancels at once" in told
    assert "1 of 2 episodes over 1 task: 0 passed, 1 failed" in result
    assert "1 episode owed: the same command again runs only those" in result


@pytest.mark.vllm
@pytest.mark.skipif(vllm_build() is None, reason="no vLLM is installed")
def test_ctrl_c_before_the_first_episode_says_so(provider: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [HEADRACE, *evaluate(tmp_path / "r", provider, "vllm")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("1 episode planned"):
                break
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
        assert process.wait(timeout=60) == 130, told
    assert "Traceback" not in told
    assert told.endswith("stopped before the first episode; the same command starts again\n")


def test_two_runs_of_one_task_are_compared(provider: str, tmp_path: Path) -> None:
    for policy in ("noop", "oracle"):
        headrace(*evaluate(tmp_path / policy, provider, policy))
    done = headrace("compare", tmp_path / "noop", tmp_path / "oracle")
    assert done.returncode == 0, done.stderr
    assert "pass@1 goes from 0.0 % (A) to 100.0 % (B)" in " ".join(done.stdout.split())
    lines = done.stdout.splitlines()
    (row,) = [x.split() for x in lines if x.startswith("first-steps/lock-key-file")]
    shown = headrace("show", tmp_path / "oracle", "--episode", row[-1])
    assert "reward 1" in shown.stdout, row


def test_going_on_with_what_is_no_run_is_refused(tmp_path: Path) -> None:
    done = headrace("resume", tmp_path)
    assert done.returncode == 2
    assert "is not a run" in done.stderr


def test_a_missing_engine_is_refused(tmp_path: Path) -> None:
    done = headrace(
        *evaluate(tmp_path / "r", "docker", "noop", f"sandbox.docker_socket={tmp_path}/no.sock")
    )
    assert done.returncode == 2
    assert "no Docker engine: there is no socket" in done.stderr
    assert not (tmp_path / "r").exists()


def test_a_missing_model_folder_is_refused(provider: str, tmp_path: Path) -> None:
    done = headrace(*evaluate(tmp_path / "r", provider, "vllm", f"policy.model={tmp_path}/none"))
    assert done.returncode == 2
    assert f"policy.model: {tmp_path}/none: expected a model folder, found nothing" in done.stderr


@ONLY_NAMESPACE
def test_a_place_that_cannot_be_written_is_a_mistake_of_the_user(
    provider: str, tmp_path: Path
) -> None:
    for policy in ("one", "two"):
        headrace(*evaluate(tmp_path / policy, provider, "noop"))
    one, two, closed = tmp_path / "one", tmp_path / "two", "/proc/x/y"
    for arguments in (
        evaluate(Path(closed), provider, "noop"),
        ("report", one, "--out", closed),
        ("compare", one, two, "--json", closed),
        ("export", one, "--format", "atif", "--out", closed),
        ("import", one / "report" / "evaluation.json", "--out", closed),
    ):
        done = headrace(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert "give a place that can be written" in done.stderr
        assert "Traceback" not in done.stderr


@ONLY_NAMESPACE
def test_an_imported_run_is_not_resumed_and_says_so(provider: str, tmp_path: Path) -> None:
    run, out, back = tmp_path / "run", tmp_path / "atif", tmp_path / "back"
    headrace(*evaluate(run, provider, "noop"))
    headrace("export", run, "--format", "atif", "--out", out)
    headrace("import", out, "--out", back)
    done = headrace("resume", back)
    assert (done.returncode, done.stdout) == (2, "")
    assert "was imported, not run" in done.stderr


@ONLY_NAMESPACE
def test_a_run_resumed_from_elsewhere_says_where_its_tasks_are_looked_for(
    provider: str, tmp_path: Path
) -> None:
    pack = Path(__file__).parent.parent / "tasks" / "packs" / "first-steps"
    shutil.copytree(pack / "lock-key-file", tmp_path / "begun" / "mine" / "one")
    (tmp_path / "elsewhere").mkdir()
    run = tmp_path / "run"
    command = [HEADRACE, "eval", "--tasks", "mine", "--policy", "noop", "--out", run]
    begun = [*command, "--set", f"sandbox.provider={provider}"]
    subprocess.run(begun, cwd=tmp_path / "begun", env=ENV, capture_output=True, check=True)

    def resumed(*more: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [HEADRACE, "resume", run, *more], cwd=tmp_path / "elsewhere", env=ENV,
            capture_output=True, text=True,
        )  # fmt: skip

    lost = resumed()
    assert (lost.returncode, lost.stdout) == (2, "")
    assert "say where its tasks are with --set tasks.source=PATH" in lost.stderr
    found = resumed("--set", f"tasks.source={tmp_path / 'begun' / 'mine'}")
    assert found.returncode == 0, found.stderr


@ONLY_NAMESPACE
def test_an_evaluation_that_was_stopped_is_resumed_to_its_report(
    provider: str, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    headrace(*evaluate(run, provider, "noop"))
    shutil.rmtree(run / "report")  # as one that was stopped never had it
    done = headrace("resume", run, "--attempts", "2")
    assert done.returncode == 0, done.stderr
    assert f"report: {run}/report/index.html" in done.stdout


@ONLY_NAMESPACE
def test_a_narrow_terminal_costs_no_number(provider: str, tmp_path: Path) -> None:
    headrace(*evaluate(tmp_path / "r", provider, "oracle"))
    done = subprocess.run(
        [HEADRACE, "report", tmp_path / "r"], capture_output=True, text=True, timeout=50,
        env={**ENV, "COLUMNS": "40"},
    )  # fmt: skip
    rates = [line for line in done.stdout.splitlines() if line.startswith("pass@1")]
    assert all("100.0 %" in line and "\u2026" not in line for line in rates)
    assert len(rates) == 2
