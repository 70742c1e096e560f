"""A folder of data is there when it is whole, and what was there before stays until then."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from headrace.errors import RunFolderError, StoreError
from headrace.preferences.output import in_two_steps, replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def filled(out: Path, text: str = "old") -> Path:
    out.mkdir(parents=True)
    (out / "rows").write_text(text)
    (out / "made.json").touch()
    return out


def test_a_new_folder_is_there_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    with replacing(out, overwrite=False) as folder:
        (folder / "rows").write_text("new")
        assert not out.exists()
    assert (out / "rows").read_text() == "new"
    assert names(out.parent) == ["out"]


def test_an_empty_folder_is_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with replacing(tmp_path / "out", overwrite=False) as folder:
        (folder / "rows").touch()
    assert names(tmp_path / "out") == ["rows"]


def test_a_folder_that_is_there_is_refused(tmp_path: Path) -> None:
    out = filled(tmp_path / "out")
    with (
        pytest.raises(RunFolderError, match="is there already; give another folder with --out"),
        replacing(out, overwrite=False),
    ):
        raise AssertionError("not reached")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_is_no_folder_is_refused(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "file").touch()
    filled(tmp_path / "there")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    for name in ("file", "link", "broken"):
        with (
            pytest.raises(RunFolderError, match="is no folder; expected a new one"),
            replacing(tmp_path / name, overwrite=overwrite),
        ):
            raise AssertionError("not reached")


def test_a_folder_that_is_there_is_replaced_whole(tmp_path: Path) -> None:
    out = filled(tmp_path / "out")
    (out / "more").touch()
    with replacing(out, overwrite=True) as folder:
        (folder / "rows").write_text("new")
        assert names(out) == ["made.json", "more", "rows"], "the old one stays until then"
    assert names(out) == ["rows"]
    assert (out / "rows").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_a_folder_that_is_no_data_is_never_replaced(tmp_path: Path) -> None:
    out = filled(tmp_path / "out")
    (out / "made.json").unlink()
    with (
        pytest.raises(RunFolderError, match="it has no made.json"),
        replacing(out, overwrite=True),
    ):
        raise AssertionError("not reached")
    assert names(out) == ["rows"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_a_write_that_was_stopped(
    tmp_path: Path, error: type[BaseException]
) -> None:
    out = filled(tmp_path / "out")
    for place in (out, tmp_path / "new"):
        with pytest.raises(error), replacing(place, overwrite=True) as folder:
            (folder / "rows").write_text("half")
            raise error
    assert names(tmp_path) == ["out"]
    assert (out / "rows").read_text() == "old"


def test_no_folder_above_is_left_of_a_write_that_was_stopped(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    with pytest.raises(ValueError), replacing(tmp_path / "deep" / "er" / "out", overwrite=False):
        raise ValueError
    assert names(tmp_path / "deep") == []


def test_a_place_that_was_taken_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        pytest.raises(RunFolderError, match="is there already"),
        replacing(out, overwrite=False) as folder,
    ):
        (folder / "rows").write_text("new")
        filled(out, "of somebody else")
    assert (out / "rows").read_text() == "of somebody else"
    assert names(tmp_path) == ["out"]


def test_there_is_a_folder_at_every_moment_while_it_is_replaced(tmp_path: Path) -> None:
    out = filled(tmp_path / "out")
    there: set[bool] = set()
    replaced = threading.Event()

    def look() -> None:
        while not replaced.is_set():
            there.add(out.exists())

    looking = threading.Thread(target=look)
    looking.start()
    for _ in range(100):
        with replacing(out, overwrite=True) as folder:
            (folder / "made.json").touch()
    replaced.set()
    looking.join()
    assert there == {True}
    assert names(tmp_path) == ["out"]


def test_in_two_steps_the_new_folder_is_put_and_the_old_one_goes(tmp_path: Path) -> None:
    out, fresh = filled(tmp_path / "out"), filled(tmp_path / "fresh", "new")
    in_two_steps(fresh, out)
    assert (out / "rows").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_be_put(tmp_path: Path) -> None:
    out = filled(tmp_path / "out")
    with (
        pytest.raises(StoreError, match="cannot be written: No such file"),
        replacing(out, overwrite=True) as folder,
    ):
        folder.rmdir()
    assert (out / "rows").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_failing_disk_is_a_store_error(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError, match="out cannot be written: No space left on device"),
        replacing(tmp_path / "out", overwrite=False),
    ):
        raise OSError(28, os.strerror(28))
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunFolderError, match="cannot be made"),
        replacing(tmp_path / "file" / "out", overwrite=False),
    ):
        raise AssertionError("not reached")


def test_a_name_that_no_file_system_takes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for out in (tmp_path / ("a" * 300), tmp_path / "loop" / "out"):
        with pytest.raises(RunFolderError, match="cannot be made"), replacing(out, overwrite=False):
            raise AssertionError("not reached")


def test_a_folder_that_went_away_meanwhile_is_made_new(tmp_path: Path) -> None:
    out = filled(tmp_path / "out")
    with replacing(out, overwrite=True) as folder:
        (folder / "rows").write_text("new")
        shutil.rmtree(out)
    assert (out / "rows").read_text() == "new"


def test_a_relative_place_stays_where_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with replacing(Path("out"), overwrite=False) as folder:
        monkeypatch.chdir("/")
        (folder / "rows").touch()
    assert names(tmp_path / "out") == ["rows"]
