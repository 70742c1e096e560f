"""`headrace pairs`: what a user sees, and the exit codes."""

import json
import os
import signal
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from tests.preferences.runs import episode, make_run, said, spoil
from tests.preferences.written import context, pairings, selected, write

from headrace.cli import given, pairs
from headrace.errors import UsageError
from headrace.preferences.exact_reader import read_exact
from headrace.preferences.formats import registry
from headrace.preferences.rules import KINDS
from headrace.preferences.source import Source

HEADRACE = Path(sysconfig.get_path("scripts")) / "headrace"
ENV = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}


def headrace(
    folder: Path, *arguments: str, code: int | None = 0
) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [HEADRACE, *arguments], cwd=folder, env=ENV, capture_output=True, text=True, timeout=50
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_pairs_are_made_with_their_report(small_run: Path) -> None:
    folder = small_run.parent
    done = headrace(folder, "pairs", "small", "--out", "out", "--json", "report.json")
    assert done.stdout.endswith("1 pair in out\nreport: out/report/index.html\n")
    assert done.stderr == ""
    out = folder / "out"
    assert (out / "report" / "index.html").exists()
    written = json.loads((out / "report" / "pairs-report.json").read_text())
    assert written == json.loads((folder / "report.json").read_text())
    assert written["pairs_by_rule"] == {"margin": 1}
    made = json.loads((out / "made.json").read_text())
    assert made["command"] == "headrace pairs small --out out --json report.json"


def test_options_make_the_rule(small_run: Path) -> None:
    folder = small_run.parent
    headrace(
        folder, "pairs", "small", "-o", "out", "--rule", "all-margins", "--rule", "litecoder",
        "--rule", "litecoder", "--score", "pass-ratio", "--min-margin", "0.1", "--min-winner",
        "0.2", "--per-task", "7", "--keep-timeouts", "--keep-ties", "--keep-infrastructure",
        "--validation", "0.5", "--format", "exact", "--gamma", "0.9", "--licence", "MIT",
        "--allow-mixed-policies",
    )  # fmt: skip
    made = json.loads((folder / "out" / "made.json").read_text())
    values = {
        "score": "pass-ratio",
        "min_margin": 0.1,
        "min_winner": 0.2,
        "per_task": 7,
        "timeouts": True,
        "ties": True,
        "infrastructure": True,
    }
    assert made["options"] == {
        "rules": [{"name": k, "kind": k, **values} for k in ("all-margins", "litecoder")],
        "validation": 0.5,
        "gamma": 0.9,
    }
    assert (made["licence"], made["mixed_policies"]) == ("MIT", True)


def test_rules_come_from_a_file(small_run: Path) -> None:
    folder = small_run.parent
    (folder / "rules.toml").write_text('[[rule]]\nkind = "near-miss"\nname = "close"\n')
    headrace(folder, "pairs", "small", "-o", "out", "--rules", "rules.toml")
    made = json.loads((folder / "out" / "made.json").read_text())
    assert [rule["name"] for rule in made["options"]["rules"]] == ["close"]


def test_a_file_of_rules_and_options_of_rules_are_a_mistake(small_run: Path) -> None:
    done = headrace(
        small_run.parent, "pairs", "small", "-o", "out", "--rules", "r.toml", "--rule", "margin",
        "--min-margin", "0.1", "--keep-ties", code=2,
    )  # fmt: skip
    assert done.stderr == (
        "Error: expected rules from r.toml or from options, found both (--rules and --rule,"
        " --min-margin, --keep-ties); put the values into the file\n"
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--rule", "best"), "Invalid value for '--rule'"),
        (("--format", "csv"), "Invalid value for '--format'"),
        (("--min-margin", "2"), "--min-margin: expected a number from 0 to 1, found 2.0"),
        (("--per-task", "0"), "--per-task: expected a whole number above 0"),
        (("--validation", "1.5"), "Invalid value for '--validation'"),
        (("--rules", "none.toml"), "none.toml: cannot be read: No such file"),
        (("--gamma", "0.9"), "--gamma: index has no place for DMPO weights; leave it out, or take"),
        (("--format", "trl", "--gamma", "0.9"), "or take exact, datasets or ms-swift"),
    ],
)
def test_a_wrong_value_is_told(small_run: Path, arguments: tuple[str, ...], told: str) -> None:
    done = headrace(small_run.parent, "pairs", "small", "-o", "out", *arguments, code=2)
    assert told in done.stderr
    assert not (small_run.parent / "out").exists()


def test_an_empty_result_is_exit_code_1_with_the_reasons(small_run: Path) -> None:
    folder = small_run.parent
    headrace(folder, "pairs", "small", "-o", "out")
    before = (folder / "out" / "made.json").read_bytes()
    done = headrace(
        folder, "pairs", "small", "-o", "out", "--overwrite", "--min-margin", "0.9", code=1
    )
    assert "1 pair: scores too close" in done.stdout
    assert "1 task: all attempts left have one score" in done.stdout
    assert done.stderr == "no pairs: nothing is written, out stays as it was\n"
    assert (folder / "out" / "made.json").read_bytes() == before


def test_a_run_without_groups_is_exit_code_1_and_says_what_to_do(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [episode("org/a"), episode("org/b")])
    done = headrace(tmp_path, "pairs", "run", "-o", "out", code=1)
    assert done.stderr.startswith(
        "expected groups of two or more attempts at a task, found 2 tasks with one each; run with"
        " --attempts 2 or more, or give several runs of the same tasks\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_run_without_an_attempt_is_no_run_of_single_attempts(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [])
    done = headrace(tmp_path, "pairs", "run", "-o", "out", code=1)
    assert done.stderr.startswith("expected attempts at tasks, found none stored;")


@pytest.mark.parametrize("out", ["a" * 300, "loop", "loop/out"])
def test_a_place_that_cannot_be_is_no_traceback(small_run: Path, out: str) -> None:
    (small_run.parent / "loop").symlink_to("loop")
    done = headrace(small_run.parent, "pairs", "small", "-o", out, code=2)
    assert done.stderr.startswith("Error: ")


def test_a_folder_that_is_there_is_refused_and_then_replaced(small_run: Path) -> None:
    folder = small_run.parent
    headrace(folder, "pairs", "small", "-o", "out")
    done = headrace(folder, "pairs", "small", "-o", "out", code=2)
    assert "out is there already; give another folder with --out, or --overwrite" in done.stderr
    headrace(folder, "pairs", "small", "-o", "out", "--overwrite", "--rule", "litecoder")
    made = json.loads((folder / "out" / "made.json").read_text())
    assert made["options"]["rules"][0]["name"] == "litecoder"
    assert {path.name for path in folder.iterdir()} == {"small", "out"}


def test_mixed_policies_are_exit_code_2_with_the_list(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [episode()])
    make_run(tmp_path / "b", [episode(reward=0.0, turns=said("id"), policy_version="b" * 64)])
    done = headrace(tmp_path, "pairs", "a", "b", "-o", "out", code=2)
    assert "  a: vllm aaaaaaaaaaaa\n  b: vllm bbbbbbbbbbbb\n" in done.stderr
    done = headrace(tmp_path, "pairs", "a", "b", "-o", "out", "--allow-mixed-policies")
    assert "Attempts of 2 policies are mixed" in done.stdout


def test_damage_is_told_and_exit_code_2_after_writing(small_run: Path) -> None:
    folder = small_run.parent
    broken = make_run(folder / "broken", [episode("org/c")])
    spoil(broken)
    done = headrace(folder, "pairs", "small", "broken", "-o", "out", code=2)
    assert done.stderr.startswith("unreadable: broken/shards/000000.hrs: damaged block")
    assert "1 pair in out" in done.stdout
    assert (folder / "out" / "made.json").exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_leaves_nothing(tmp_path: Path, stop: signal.Signals) -> None:
    many = [
        episode(f"org/{task}", sample, float(sample == 0), turns=said(*"abcdefgh", str(sample)))
        for task in range(1500)
        for sample in range(2)
    ]
    make_run(tmp_path / "run", many)
    with subprocess.Popen(
        [HEADRACE, "pairs", "run", "-o", "out"],
        cwd=tmp_path, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while not (begun := any(tmp_path.glob(".out.*.tmp/*"))) and process.poll() is None:
            pass
        process.send_signal(stop)
        _, told = process.communicate(timeout=30)
    assert begun
    assert process.returncode == 130
    assert "Traceback" not in told
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


# --- names ----------------------------------------------------------------------------------


def test_the_command_line_has_every_format_and_kind() -> None:
    assert [name.value for name in pairs.Format] == list(registry.PAIRS)
    assert [kind.value for kind in pairs.Kind] == list(KINDS)


def test_every_format_of_the_table_is_there_under_its_name() -> None:
    for name in registry.PAIRS:
        assert registry.pair_format(name).name == name
    for name in registry.TRAJECTORIES:
        assert registry.trajectory_format(name).name == name


def test_the_formats_with_weights_are_those_that_a_discount_changes(
    small_run: Path, tmp_path: Path
) -> None:
    source = Source([small_run])
    weighted: dict[str, list[str]] = {"pairs": [], "trajectories": []}
    for kind, table, load, items in (
        ("pairs", registry.PAIRS, registry.pair_format, pairings(source)),
        ("trajectories", registry.TRAJECTORIES, registry.trajectory_format, selected(source)),
    ):
        for name in table:
            format: Any = load(name)
            folders = [tmp_path / f"{kind}-{name}-{gamma}" for gamma in (None, 0.5)]
            write(format, folders[0], context(source), items)
            write(format, folders[1], context(source, gamma=0.5), items)
            if len({str(held(folder, name)) for folder in folders}) > 1:
                weighted[kind].append(name)
    assert sorted(weighted["pairs"]) == sorted(registry.WEIGHTED_PAIRS)
    assert sorted(weighted["trajectories"]) == sorted(registry.WEIGHTED_TRAJECTORIES)


def held(folder: Path, format: str) -> object:
    """What is in a folder; of shards their records, for no two shards have the same bytes."""
    if format == "exact":
        return list(read_exact(folder))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.name, path.read_bytes()) for path in files]


def test_an_unknown_format_is_told_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"a format of pairs \(index, jsonl, .*\), found 'kto'"):
        registry.pair_format("kto")
    with pytest.raises(UsageError, match="a format of trajectories .*, found 'csv'"):
        registry.trajectory_format("csv")


def test_a_command_as_given_has_names_and_no_places() -> None:
    line = ["/usr/bin/headrace", "--debug", "pairs", "/data/runs/a", "--out=/data/my pairs/", "-o"]
    assert given.as_given(line) == "headrace pairs a '--out=my pairs' -o"
    assert given.as_given(["headrace", "pairs", "a", "/", "--gamma", "0.9"]) == (
        "headrace pairs a / --gamma 0.9"
    )
