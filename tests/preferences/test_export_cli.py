"""`headrace export` as a user meets it: formats, selections, and what each mistake says."""

import json
import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

import pytest
from tests.preferences.runs import Act, episode, make_run, said, spoil

from headrace.cli.export import TRAINING, WHOLE, Format
from headrace.preferences.formats.registry import TRAJECTORIES

HEADRACE = Path(sysconfig.get_path("scripts")) / "headrace"


def headrace(*arguments: str | Path, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
    return subprocess.run(
        [HEADRACE, *arguments],
        capture_output=True, text=True, errors="replace", timeout=50, env=environment, cwd=cwd,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Of `org/a` one attempt succeeds and one fails with a passed test; of `org/b` one loops."""
    return make_run(
        tmp_path / "run",
        [
            episode("org/a", 0, turns=said("ls -la", "make all", "make check")),
            episode(
                "org/a", 1, 0.0, tests={"x": True, "y": False}, turns=said("ls -la", "rm -r build")
            ),
            episode("org/b", 0, turns=[Act("make", "no", ("make",))] * 4),
        ],
    )


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_the_formats_are_those_of_the_registry_and_the_job() -> None:
    assert {one.value for one in Format} == {*TRAJECTORIES, "harbor-job"}
    assert TRAINING.isdisjoint(WHOLE)


def test_a_format_of_a_trainer_is_selected_for(run: Path, tmp_path: Path) -> None:
    done = headrace("export", run, "--format", "trl", "-o", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 attempts read, 2 selected, 1 left out" in done.stdout
    assert "looping" in done.stdout
    assert done.stdout.endswith(f"2 rows in {tmp_path / 'out'}\n")
    assert lines(tmp_path / "out" / "train.jsonl") == 1
    assert lines(tmp_path / "out" / "failures.jsonl") == 1


def test_single_options_go_over_the_selection(run: Path, tmp_path: Path) -> None:
    def export(name: str, *options: str) -> list[str]:
        done = headrace("export", run, "--format", "trl", "-o", tmp_path / name, *options)
        assert done.returncode == 0, done.stderr
        return sorted(path.name for path in (tmp_path / name).glob("*.jsonl"))

    assert export("a", "--no-failures") == ["train.jsonl"]
    assert export("b", "--min-pass-ratio", "0.5", "--validation", "1") == ["validation.jsonl"]
    assert lines(tmp_path / "b" / "validation.jsonl") == 2
    assert export("c", "--select", "everything") == ["train.jsonl"]
    assert lines(tmp_path / "c" / "train.jsonl") == 3


def test_a_file_is_a_selection(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[selection]\nloop_repeats = 5\nfailures = false\n")
    arguments = ("export", run, "--format", "kto", "--select", tmp_path / "mine.toml")
    done = headrace(*arguments, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert lines(tmp_path / "out" / "train.jsonl") == 3


def test_kto_has_both_kinds_in_one_file_unless_a_selection_parts_them(
    run: Path, tmp_path: Path
) -> None:
    def labels(out: str, *options: str | Path) -> dict[str, list[bool]]:
        done = headrace("export", run, "--format", "kto", "-o", tmp_path / out, *options)
        assert done.returncode == 0, done.stderr
        return {
            path.stem: [json.loads(line)["label"] for line in path.read_text().splitlines()]
            for path in sorted((tmp_path / out).glob("*.jsonl"))
        }

    assert labels("both") == {"train": [True, False]}
    (tmp_path / "mine.toml").write_text('[selection]\noutcomes = "solved"\n')
    parted = labels("parted", "--select", tmp_path / "mine.toml")
    assert parted == {"failures": [False], "train": [True]}


def test_a_folder_whose_name_is_not_utf8_is_written_and_its_name_spelled_out(
    run: Path, tmp_path: Path
) -> None:
    licence = os.fsdecode(b"mine\xff")
    options = ("--licence", licence, "--select", "everything")
    for format, command in (("jsonl", "export"), ("trl", "pairs")):
        out = tmp_path / os.fsdecode(f"{format}\xff".encode("latin-1"))
        extra = options if command == "export" else options[:2]
        done = headrace(command, run, "--format", format, "-o", out, *extra)
        assert (done.returncode, done.stderr) == (0, "")
        made = json.loads((out / "made.json").read_bytes())
        assert f"{format}\\udcff" in made["command"]
        assert made["licence"] == "mine\\udcff"
        assert "mine" in (out / "README.md").read_text()


def test_several_runs_make_one_data_set_that_says_how(run: Path, tmp_path: Path) -> None:
    more = make_run(tmp_path / "more", [episode("org/c", turns=said("id", "who"))])
    arguments = ["run", "more", "--format", "jsonl", "-o", "deep/out", "--licence", "MIT"]
    done = headrace("export", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "deep" / "out" / "made.json").read_bytes())
    assert made["attempts"] == 4
    assert shlex.split(made["command"])[-4:] == ["-o", "out", "--licence", "MIT"]
    assert [one["run"] for one in made["runs"]] == [
        json.loads((folder / "run.json").read_bytes())["run"] for folder in (run, more)
    ]


@pytest.mark.parametrize("format", ["atif", "jsonl", "harbor-job"])
def test_a_whole_run_is_written_as_ever_where_nothing_else_is_asked(
    run: Path, tmp_path: Path, format: str
) -> None:
    done = headrace("export", run, "--format", format, "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (0, f"3 episodes in {tmp_path / 'out'}\n")
    assert not (tmp_path / "out" / "made.json").exists()


@pytest.mark.parametrize("format", ["atif", "jsonl"])
def test_a_whole_run_can_be_selected_from_too(run: Path, tmp_path: Path, format: str) -> None:
    arguments = ("export", run, "--format", format, "--select", "sft", "-o", tmp_path / "out")
    done = headrace(*arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "made.json").exists()


def test_an_empty_result_is_exit_code_1_with_the_counts(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[selection]\ntest_paths = ["-la", "make"]\n')
    arguments = ("export", run, "--format", "trl", "--select", tmp_path / "mine.toml")
    done = headrace(*arguments, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "3 attempts read, 0 selected, 3 left out" in done.stdout
    assert "test_access" in done.stdout
    assert "nothing is selected: nothing is written" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused_and_overwritten_on_request(run: Path, tmp_path: Path) -> None:
    arguments = ("export", run, "--format", "trl", "-o", tmp_path / "out")
    assert headrace(*arguments).returncode == 0
    done = headrace(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is there already; give another folder with --out, or --overwrite" in done.stderr
    assert headrace(*arguments, "--overwrite").returncode == 0


def test_a_damaged_run_is_told_and_exit_code_2(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [episode("org/a")])
    spoil(run)
    done = headrace("export", run, "--format", "jsonl", "--select", "everything", "-o", "out")
    assert done.returncode in (1, 2)
    assert "unreadable: " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--format", "harbor-job", "--select", "sft"), "harbor-job writes one whole run"),
        (("--format", "trl", "--select", "nowhere.toml"), "expected sft, everything or a TOML"),
        (("--format", "exact", "--benchmark", "."), "does not ask for overlap"),
        (("--format", "trl", "--benchmark", "nowhere"), "expected a folder of tasks or texts"),
        (("--format", "kto", "--min-pass-ratio", "0.5"), "takes successes and failures alike"),
        (
            ("--format", "kto", "--failures"),
            "successes and failures alike; take a file with outcomes",
        ),
        (("--format", "jsonl", "--failures"), "failures alike; take --select sft, or a file with"),
        (("--format", "trl", "--benchmark", "a" * 300), "expected a folder of tasks or texts"),
        (("--format", "exact", "--gamma", "2"), "Invalid value for '--gamma'"),
        (("--format", "trl", "--gamma", "0.9"), "--gamma: trl has no place for DMPO weights"),
        (("--format", "jsonl", "--gamma", "0.9"), "or take exact, datasets or parquet"),
        (("--format", "csv"), "csv"),
    ],
)
def test_a_mistake_is_one_message(
    run: Path, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    done = headrace("export", run, *arguments, "-o", "out", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_job_takes_one_run(run: Path, tmp_path: Path) -> None:
    done = headrace("export", run, run, "--format", "harbor-job", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "expected one RUN and no other option, found 2 runs" in done.stderr
