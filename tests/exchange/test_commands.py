"""`headrace export` and `headrace import` as a user meets them."""

import json
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from headrace.engine.exchange import filling

HEADRACE = Path(sysconfig.get_path("scripts")) / "headrace"


def headrace(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
    return subprocess.run(
        [HEADRACE, *arguments], capture_output=True, text=True, timeout=50, env=environment
    )


def document(text: str) -> dict[str, Any]:
    return {
        "schema_version": "ATIF-v1.2",
        "session_id": "s",
        "agent": {"name": "someone", "version": "1"},
        "steps": [
            {"step_id": 1, "source": "user", "message": "Do it."},
            {"step_id": 2, "source": "agent", "message": text},
        ],
    }


def test_a_trajectory_goes_in_and_out_and_the_broken_one_is_named(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "good.json").write_text(json.dumps(document("I did.")))
    (source / "bad.json").write_text("{")
    done = headrace("import", source, "--out", tmp_path / "run")
    assert (done.returncode, done.stdout) == (2, f"1 episode in {tmp_path / 'run'}\n")
    assert done.stderr.startswith(f"left out: {source / 'bad.json'} is not an ATIF trajectory:")
    shown = headrace("show", tmp_path / "run")
    assert "1 episode of 1 task" in shown.stdout, shown.stderr
    for format in ("atif", "harbor-job", "jsonl"):
        done = headrace("export", tmp_path / "run", "--format", format, "--out", tmp_path / format)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"1 episode in {tmp_path / format}\n"
    (written,) = (tmp_path / "atif").glob("*.json")
    assert json.loads(written.read_bytes())["steps"][1]["message"] == "I did."


def test_mistakes_are_one_message_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "one.json").write_text(json.dumps(document("x")))
    assert headrace("import", tmp_path / "one.json", "--out", tmp_path / "run").returncode == 0
    for arguments in (
        ("import", tmp_path / "nowhere", "--out", tmp_path / "a"),
        ("import", tmp_path / "one.json", "--out", tmp_path / "full"),
        ("import", tmp_path / "one.json", "--out", tmp_path / "a", "--rewards", tmp_path / "no"),
        ("export", tmp_path / "nowhere", "--format", "atif", "--out", tmp_path / "a"),
        ("export", tmp_path / "run", "--format", "atif", "--out", tmp_path / "full"),
        ("export", tmp_path / "run", "--format", "csv", "--out", tmp_path / "a"),
    ):
        done = headrace(*arguments)
        assert done.returncode == 2, arguments
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_a_folder_stays_empty_when_nothing_could_be_imported(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    done = headrace("import", tmp_path / "bad.json", "--out", tmp_path / "run")
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected at least one ATIF trajectory, found none" in done.stderr
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_that_was_half_filled_is_empty_again(tmp_path: Path) -> None:
    def stopped() -> None:
        with filling(tmp_path / "out"):
            (tmp_path / "out" / "shards").mkdir()
            (tmp_path / "out" / "shards" / "one").touch()
            (tmp_path / "out" / "two").symlink_to("shards")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list((tmp_path / "out").iterdir()) == []
