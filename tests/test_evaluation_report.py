"""A run's report: what it leaves out, where it comes from, and how it looks."""

import asyncio
import json
import os
import re
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from headrace.configs import load
from headrace.engine import evaluation_files, plots, summary
from headrace.engine.evaluate import Estimate
from headrace.engine.evaluation_markdown import escaped, markdown
from headrace.engine.evaluation_page import difficulty_rank, number, page, signed
from headrace.engine.evaluation_report import Report, notices, report
from headrace.engine.evaluation_tables import render_rates, render_report
from headrace.engine.meters import Meters
from headrace.engine.run_folder import RunFolder
from headrace.engine.store import Store
from headrace.errors import RunFolderError
from headrace.types import (
    Episode,
    Failure,
    OtherReading,
    Segment,
    Span,
    StepResult,
    StopReason,
    Verdict,
    VerdictFault,
)

HEADRACE = Path(sysconfig.get_path("scripts")) / "headrace"
ENV = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
TASKS = {"org/a": "a" * 64, "org/b": "b" * 64}
LOST = Verdict(reward=None, fault=VerdictFault.INFRASTRUCTURE, reason="lost: gone")


def episode(task: str, sample: int, reward: float | None, **fields: Any) -> Episode:
    plain: dict[str, Any] = {
        "id": f"{TASKS.get(task, 'c' * 64)[:8]}{sample:08x}",
        "task": task,
        "task_digest": TASKS.get(task, "c" * 64),
        "policy": "noop",
        "policy_version": "v1",
        "provider": "docker",
        "instruction": "",
        "stop_reason": StopReason.DONE,
        "verdict": Verdict(reward=reward),
    }
    return Episode(sample=sample, **(plain | fields))


def run_of(
    path: Path,
    episodes: Sequence[Episode],
    *settings: str,
    tasks: dict[str, str] = TASKS,
    refused: dict[str, str] | None = None,
) -> Path:
    """A run folder as the runner leaves it."""

    async def fill() -> None:
        async with Store(path) as store:
            for one in episodes:
                await store.append(one)

    config = load.load(None, ["policy.type=noop", *settings])
    with RunFolder.open(
        path, config, tasks=tasks, policy="noop", policy_version="v1", provider="docker"
    ) as folder:
        asyncio.run(fill())
        counted = summary.Counted()
        for one in episodes:
            counted.add(one)
        found = summary.summarise(
            counted, Meters(), run=folder.manifest.run, provider="docker", planned=len(episodes),
            this_session=0, wall_s=1.0, cpu_s=0.0, pass_at_k={}, refused=refused or {},
        )  # fmt: skip
        summary.write(found, path)
    return path


def shown(renderable: object) -> str:
    console = Console(width=120, no_color=True, highlight=False)
    with console.capture() as text:
        console.print(renderable)
    return text.get()


def every_form(found: Report) -> list[str]:
    return [page(found), markdown(found), shown(render_report(found))]


# --- what is left out -----------------------------------------------------------------------


def test_a_complete_run_has_nothing_to_say_first(tmp_path: Path) -> None:
    found = report(run_of(tmp_path, [episode("org/a", 0, 1.0), episode("org/b", 0, 0.0)]))
    assert notices(found) == []
    assert "Read this first" not in page(found)
    assert [e.value for e in found.evaluation.pass_at_k] == [0.5]


def test_a_choice_of_the_tasks_is_told_at_the_top(tmp_path: Path) -> None:
    both = [episode("org/a", 0, 1.0), episode("org/b", 0, 1.0)]
    run = run_of(tmp_path, both, 'tasks.exclude=["*/hard", "odd"]', "tasks.limit=2")
    told = "A choice of the tasks of first-steps: exclude */hard, odd; limit 2."
    assert notices(report(run)) == [told]
    assert told in shown(render_report(report(run))).splitlines(), "no spaces behind it"


def test_refused_tasks_are_named_at_the_top_with_their_reasons(tmp_path: Path) -> None:
    refused = {"org/compose": "needs docker compose", "broken": "task.toml: line 3"}
    found = report(
        run_of(tmp_path, [episode("org/a", 0, 1.0), episode("org/b", 0, 1.0)], refused=refused)
    )
    assert notices(found) == [
        "2 tasks left out before anything started: broken (task.toml: line 3);"
        " org/compose (needs docker compose)."
    ]
    for told in every_form(found):
        rates = "| pass&#64;1" if told.startswith("#") else "pass@1"
        assert told.index("needs docker compose") < told.index(rates)


def test_the_tasks_of_a_part_are_those_its_rate_is_over(tmp_path: Path) -> None:
    lost = Failure(stage="act", error="SandboxError", message="gone")
    easy: dict[str, Any] = {"difficulty": "easy"}
    found = report(
        run_of(
            tmp_path,
            [
                episode("org/a", 0, 1.0, **easy),
                episode("org/b", 0, None, verdict=LOST, failure=lost, **easy),
            ],
        )
    )
    assert '<td class="n optional">1 of 2</td>' in page(found)
    assert "| easy | 100.0 % | 20.7 % to 100.0 % | 1 of 2 | 1 |" in markdown(found)
    told = shown(render_report(found))
    assert " 1 of 2" in told
    (head,) = [line for line in told.splitlines() if line.startswith("difficulty")]
    assert head.count("pass@1") == 1


def test_infrastructure_failures_are_counted_apart_and_never_as_zero(tmp_path: Path) -> None:
    failure = Failure(stage="act", error="SandboxError", message="gone")
    found = report(
        run_of(
            tmp_path,
            [
                episode("org/a", 0, 1.0),
                episode("org/a", 1, None, verdict=LOST, failure=failure),
                episode("org/b", 0, None, verdict=LOST, failure=failure),
                episode("org/b", 1, None, verdict=LOST, failure=failure),
            ],
            "attempts=2",
        )
    )
    assert found.evaluation.pass_at_k[0].value == 1.0
    assert notices(found) == [
        "1 task without a counted attempt, in no rate: org/b (SandboxError 2).",
        "3 attempts failed by the infrastructure (SandboxError 3): left out of every rate, not"
        " counted as failures of the policy.",
        "1 task with fewer counted attempts than planned; a rate over k attempts is over the tasks"
        " that have k: org/a (1 of 2).",
    ]


def test_where_every_attempt_failed_by_the_infrastructure_there_is_no_rate(tmp_path: Path) -> None:
    run = run_of(
        tmp_path, [episode("org/a", 0, None, verdict=LOST), episode("org/b", 0, None, verdict=LOST)]
    )
    found = report(run)
    assert found.evaluation.pass_at_k == ()
    for told in every_form(found):
        assert "without a counted attempt" in " ".join(told.split())
        assert "0.0 %" not in told


def test_a_run_that_has_just_begun_is_reported_as_such(tmp_path: Path) -> None:
    found = report(run_of(tmp_path, [], "attempts=3"))
    assert notices(found) == [
        "2 tasks not tried yet: org/a; org/b.",
        "6 attempts planned and not made yet.",
    ]
    for told in every_form(found):
        assert "not tried yet" in told


def test_many_names_are_counted_and_the_rest_is_in_the_json(tmp_path: Path) -> None:
    refused = {f"t{i:02}": "" for i in range(20)}
    found = report(
        run_of(tmp_path, [episode("org/a", 0, 1.0), episode("org/b", 0, 1.0)], refused=refused)
    )
    assert notices(found)[0].endswith("t06; t07; and 12 more.")
    assert len(found.left_out.refused) == 20


def test_a_torn_shard_is_told_and_the_rest_is_evaluated(tmp_path: Path) -> None:
    run = run_of(tmp_path, [episode("org/a", 0, 1.0), episode("org/b", 0, 0.0)])
    shard = run / "shards" / "000000.hrs"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    found = report(run)
    assert len(found.left_out.damaged) == 1
    assert notices(found)[-1].startswith("Unreadable, and so not counted: ")
    assert found.left_out.missing + found.evaluation.attempts == 2


def test_two_policies_in_one_folder_are_refused(tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        [
            episode("org/a", 0, 1.0),
            episode("org/b", 0, 1.0, policy_version="v2"),
            episode("org/a", 1, 1.0),
        ],
    )
    with pytest.raises(
        RunFolderError, match=r"found 2 versions: v1 \(2 attempts\), v2 \(1 attempt\)"
    ):
        report(run)


def test_a_summary_of_another_version_is_passed_over(tmp_path: Path) -> None:
    run = run_of(tmp_path, [episode("org/a", 0, 1.0), episode("org/b", 0, 1.0)])
    (run / "summary.json").write_text('{"schema": 99}')
    assert summary.read(run) is None
    assert report(run).provenance.wall_s is None


def test_readings_that_differ_are_told_with_both_rates(tmp_path: Path) -> None:
    other = OtherReading(compat="strict", reward=1.0, reason="an empty summary")
    verdict = Verdict(reward=0.0, other=other)
    found = report(
        run_of(tmp_path, [episode("org/a", 0, 0.0, verdict=verdict), episode("org/b", 0, 0.0)])
    )
    assert notices(found) == [
        "1 attempt read otherwise under the other verifier.compat: pass@1 is 0.0 % read correct,"
        " 50.0 % read strict."
    ]
    for told in every_form(found):
        assert "read strict" in told


# --- where it comes from --------------------------------------------------------------------


def test_the_report_says_what_was_run(tmp_path: Path) -> None:
    run = run_of(
        tmp_path, [episode("org/a", 0, 1.0)], "seed=7", "verifier.compat=strict", "attempts=4"
    )
    p = report(run).provenance
    assert (p.seed, p.compat, p.attempts, p.tasks, p.provider) == (7, "strict", 4, 2, "docker")
    assert (p.policy, p.policy_version, p.tasks_source) == ("noop", "v1", "first-steps")
    html = page(report(run))
    for fact in (p.tasks_digest[:16], p.run, p.headrace, "strict", p.config_digest[:16]):
        assert fact in html


def test_a_model_is_named_in_the_title(tmp_path: Path) -> None:
    found = report(run_of(tmp_path, [episode("org/a", 0, 1.0)]))
    named = msgspec.structs.replace(found.provenance, model="qwen", versions={"vllm": "0.32"})
    html = page(msgspec.structs.replace(found, provenance=named))
    assert "noop (qwen) on first-steps" in html
    assert "0.32" in html


# --- how it looks ---------------------------------------------------------------------------


def rich_run(path: Path) -> Report:
    """Every section has something to show."""
    segments = (Segment(token_ids=b"", logprobs=b"", spans=(Span(turn=0, start=0, end=90),)),)
    silent = Verdict(reward=None, fault=VerdictFault.VERIFIER, reason="reward_missing: none")
    step = StepResult(name="build<", stop_reason=StopReason.DONE, verdict=Verdict(reward=1.0))
    episodes = [
        episode("org/a", 0, 1.0, category="x&y", difficulty="hard", segments=segments),
        episode("org/a", 1, 0.5, category="x&y", difficulty="hard", steps=(step,)),
        episode("org/a", 2, None, category="x&y", difficulty="hard", verdict=silent),
        episode("org/b", 0, None, verdict=LOST, category="gone", difficulty="easy"),
    ]
    return report(run_of(path, episodes, "attempts=3"))


def test_every_part_is_in_every_form(tmp_path: Path) -> None:
    found = rich_run(tmp_path)
    for told in every_form(found):
        for part in ("pass", "sampled tokens", "reward_missing", "hard", "none counted", "over"):
            assert part in told.replace("no counted attempt", "none counted")
    assert "build&lt;" in page(found)
    assert "step build\\<" in markdown(found)


def test_the_page_asks_nothing_of_anyone_and_runs_nothing(tmp_path: Path) -> None:
    html = page(rich_run(tmp_path))
    assert re.findall(r"(?:src|href)=|https?:|@import|url\(|<script", html) == []
    assert "default-src 'none'" in html


HOSTILE = "evil/<script>alert(1)</script>|`x`\x1b[31m\u202e@all"


def test_a_hostile_name_is_text_everywhere(tmp_path: Path) -> None:
    tasks = {HOSTILE: "c" * 64}
    run = run_of(
        tmp_path,
        [episode(HOSTILE, 0, 1.0, category="<img onerror=x>", difficulty="[x](y)")],
        tasks=tasks,
        refused={"<b>": "<i>"},
    )
    found = report(run)
    for told in every_form(found):
        assert "\x1b" not in told and "\u202e" not in told
    html = page(found)
    assert "<script" not in html and "<img" not in html and "<b></b>" not in html
    assert "<i>" not in html
    text = markdown(found)
    assert "\\<script\\>alert(1)\\</script\\>\\|\\`x\\`" in text
    assert "@all" not in text


def test_markdown_cells_are_one_line() -> None:
    assert escaped("a\nb | c") == "a b \\| c"
    assert escaped("max_turns, _it_, a__b") == "max_turns, \\_it\\_, a_\\_b"


def test_more_attempts_than_marks_become_a_bar(tmp_path: Path) -> None:
    many = [episode("org/a", i, float(i % 2)) for i in range(30)]
    html = page(report(run_of(tmp_path, many, "attempts=30")))
    assert 'aria-label="15 of 30 passed"' in html


def estimates(n: int) -> list[Estimate]:
    return [
        Estimate(k=k, value=k / n, low=k / n / 2, high=1.0, tasks=3, interval="bootstrap")
        for k in range(1, n + 1)
    ]


def test_a_curve_lies_in_its_frame_and_rises_upwards() -> None:
    found = plots.curve(estimates(8))
    assert found is not None
    assert [p.x for p in found.points] == sorted(p.x for p in found.points)
    assert [p.y for p in found.points] == sorted((p.y for p in found.points), reverse=True)
    for p in found.points:
        assert found.left <= p.x <= found.right and plots.TOP <= p.y <= found.bottom


def test_one_value_of_k_is_no_curve() -> None:
    assert plots.curve(estimates(1)) is None
    assert plots.curve([]) is None


@pytest.mark.parametrize("n", [2, 7, 10, 11, 16, 32, 100])
def test_an_axis_has_few_ticks_and_the_last_k(n: int) -> None:
    found = plots.curve(estimates(n))
    assert found is not None
    texts = [tick.text for tick in found.x_ticks]
    assert (texts[0], texts[-1]) == ("1", str(n))
    assert len(texts) <= 11


def test_a_table_of_many_k_has_the_powers_of_two_and_the_last(tmp_path: Path) -> None:
    many = [episode("org/a", i, float(i % 2)) for i in range(30)]
    text = markdown(report(run_of(tmp_path, many, "attempts=30")))
    ks = re.findall(r"^\| pass&#64;(\d+) ", text, flags=re.MULTILINE)
    assert ks == ["1", "1", "2", "4", "8", "16", "30"]


@pytest.mark.parametrize(
    ("value", "told"),
    [(0, "0"), (12, "12"), (1234567, "1,234,567"), (0.5, "0.5"), (99.96, "100"), (123.4, "123"),
     (1234.5, "1,234"), (0.00001234, "0"), (0.0, "0")],
)  # fmt: skip
def test_numbers_are_short(value: float, told: str) -> None:
    assert number(value) == told


def test_differences_have_a_sign() -> None:
    assert (signed(0.081), signed(-0.5), signed(0.0)) == ("+8.1", "\N{MINUS SIGN}50.0", "+0.0")


def test_difficulties_are_in_their_own_order() -> None:
    names = ["weird", "hard", "Easy", "medium"]
    assert sorted(names, key=difficulty_rank) == ["Easy", "medium", "hard", "weird"]


# --- files and commands ---------------------------------------------------------------------


def test_a_report_is_three_files_and_can_be_made_again(tmp_path: Path) -> None:
    found = rich_run(tmp_path / "run")
    for _ in range(2):
        evaluation_files.write(found, tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"index.html", "report.md", "evaluation.json"}
    text = (tmp_path / "out" / "evaluation.json").read_bytes()
    assert msgspec.json.decode(text, type=Report) == found


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file cannot be made"):
        evaluation_files.write(rich_run(tmp_path / "run"), tmp_path / "file")


def headrace(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [HEADRACE, *arguments], capture_output=True, text=True, timeout=50, env=ENV
    )


def test_report_writes_into_the_run_and_prints_the_rates(tmp_path: Path) -> None:
    rich_run(tmp_path / "run")
    done = headrace("report", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "1 of 3 counted attempts passed, 1 left out" in done.stdout
    assert done.stdout.endswith(f"report: {tmp_path}/run/report/index.html\n")
    data = json.loads((tmp_path / "run" / "report" / "evaluation.json").read_text())
    assert data["evaluation"]["passed"] == 1


def test_compare_prints_the_difference_and_writes_what_is_asked(tmp_path: Path) -> None:
    run_of(tmp_path / "a", [episode("org/a", 0, 0.0), episode("org/b", 0, 1.0)])
    run_of(tmp_path / "b", [episode("org/a", 0, 1.0), episode("org/b", 0, 1.0)])
    files = {name: tmp_path / name for name in ("json", "markdown", "html")}
    options = [part for name, path in files.items() for part in (f"--{name}", path)]
    done = headrace("compare", tmp_path / "a", tmp_path / "b", *options)
    assert done.returncode == 0, done.stderr
    assert "pass@1 goes from 50.0 % (A) to 100.0 % (B)" in " ".join(done.stdout.split())
    assert json.loads(files["json"].read_text())["gained"][0]["name"] == "org/a"
    assert "# Comparison of two runs" in files["markdown"].read_text()
    assert files["html"].read_text().startswith("<!doctype html>")


def test_a_run_compared_with_itself_is_one_sentence(tmp_path: Path) -> None:
    run_of(tmp_path / "a", [episode("org/a", 0, 0.0)])
    done = headrace("compare", tmp_path / "a", tmp_path / "b" / ".." / "a")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: expected two runs, found ")
    assert done.stderr.count("\n") == 1


def test_the_report_of_what_is_no_run_is_refused(tmp_path: Path) -> None:
    done = headrace("report", tmp_path)
    assert done.returncode == 2
    assert "is not a run" in done.stderr


def test_a_short_end_shows_the_rates_by_difficulty(tmp_path: Path) -> None:
    told = shown(render_rates(rich_run(tmp_path)))
    assert "difficulty" in told and "category" not in told
