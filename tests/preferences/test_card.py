"""The data card: its head is YAML that says the licence, and no name in it is markup."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.preferences.written import context, pairings, selected, write

from headrace.errors import StoreError
from headrace.preferences import card
from headrace.preferences.columns import EPISODE_COLUMNS, PAIR_COLUMNS, STREAM_COLUMNS
from headrace.preferences.formats import datasets, exact, parquet
from headrace.preferences.made import Made, MadeFrom, made_from
from headrace.preferences.source import Source

RUN = MadeFrom(
    run="abc123",
    created="2026-11-29T00:00:00Z",
    headrace="0.1.0",
    policy="vllm",
    policy_version="v" * 64,
    model="Org/Model-4B",
    tasks=3,
    tasks_digest="d" * 64,
    config_digest="c" * 64,
)


def made(**fields: Any) -> Made:
    plain: dict[str, Any] = {
        "command": "headrace export run --format jsonl --out data",
        "kind": "trajectories",
        "format": "jsonl",
        "runs": (RUN,),
        "mixed_policies": False,
        "licence": "Apache-2.0",
        "options": {"filters": {"success": True, "min_pass_ratio": 0.5}, "seed": 0},
        "attempts": 10,
        "left_out": {"not solved": 3, "loop": 1},
        "rows": {"train": 5, "failures": 1},
    }
    return Made(**(plain | fields))


def head(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    found: dict[str, Any] = yaml.safe_load(text[4 : text.index("\n---\n")])
    return found


def written(folder: Path, made: Made) -> str:
    card.write(folder, made)
    return (folder / "README.md").read_text()


@pytest.fixture
def source(small_run: Path) -> Source:
    return Source([small_run])


# --- the head -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        ("unknown", {"license": "unknown"}),
        ("GPL-3.0-only", {"license": "other", "license_name": "GPL-3.0-only"}),
        ('ours: "all" \x7f\u2028', {"license": "other", "license_name": 'ours: "all" \x7f\u2028'}),
    ],
)
def test_the_head_says_the_licence_as_the_hub_names_it(
    tmp_path: Path, licence: str, expected: dict[str, str]
) -> None:
    found = head(written(tmp_path, made(licence=licence)))
    assert {k: v for k, v in found.items() if k.startswith("license")} == expected


@settings(max_examples=100, deadline=None)
@given(st.text(), st.text(min_size=1), st.text(), st.dictionaries(st.text(), st.text(), max_size=2))
def test_the_head_is_yaml_whatever_the_names(
    tmp_path_factory: pytest.TempPathFactory,
    licence: str,
    model: str,
    command: str,
    options: dict[str, str],
) -> None:
    run = msgspec.structs.replace(RUN, model=model)
    told = made(licence=licence, runs=(run,), command=command, options=options)
    found = head(written(tmp_path_factory.mktemp("card"), told))
    assert found["license"] in card.HUB_LICENCES or found["license_name"] == licence


def test_each_split_that_can_be_loaded_is_named_with_its_files(
    source: Source, tmp_path: Path
) -> None:
    write(datasets.EPISODES, tmp_path / "out", context(source), selected(source), "failures")
    told = made(format="datasets", rows={"failures": 4, "train": 0})
    (config,) = head(written(tmp_path / "out", told))["configs"]
    assert config["data_files"] == [{"split": "failures", "path": "data/failures-*.parquet"}]
    assert len(list((tmp_path / "out").glob(config["data_files"][0]["path"]))) == 1


@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl", "train.json"])
def test_a_split_of_one_file_is_named_by_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    (config,) = head(written(tmp_path, made(format="trl")))["configs"]
    assert config["data_files"] == [{"split": "train", "path": name}]


def test_what_datasets_cannot_load_is_not_offered_to_it(source: Source, tmp_path: Path) -> None:
    write(exact.EPISODES, tmp_path / "out", context(source), selected(source))
    text = written(tmp_path / "out", made(format="exact"))
    assert "configs" not in head(text)
    assert 'read_exact("FOLDER", "train")' in text


def test_whole_records_have_no_one_type_and_are_not_offered_to_datasets(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b"")
    assert "configs" not in head(written(tmp_path, made(format="jsonl")))


# --- the rest -------------------------------------------------------------------------------


def test_the_card_has_counts_filters_runs_and_the_command(source: Source, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b"{}\n")
    digest = hashlib.sha256(b"{}\n").hexdigest()
    runs = made_from(source)
    text = written(tmp_path, made(runs=runs, files={"train.jsonl": digest}))
    for line in (
        "| train | 5 |",
        "| failures | 1 |",
        "headrace export run --format jsonl --out data",
        "| filters.success | true |",
        "| filters.min_pass_ratio | 0.5 |",
        "10 attempts were read.",
        "| not solved | 3 |",
        f"| train.jsonl | {digest} |",
        "Apache-2.0, as whoever made it says.",
    ):
        assert line in text
    for value in (runs[0].run, runs[0].policy_version, runs[0].tasks_digest, "smollm2-135m"):
        assert value in text
    assert "Several policies" not in text and "could not be read" not in text


def test_what_should_be_known_first_is_said(tmp_path: Path) -> None:
    text = written(tmp_path, made(mixed_policies=True, damaged=("shard: bytes 1 to 2",)))
    assert "**Several policies were allowed**" in text
    assert "- shard: bytes 1 to 2" in text
    assert "Nothing was left out" in written(tmp_path, made(left_out={}))
    assert "There were none" in written(tmp_path, made(options={}))
    assert "Nobody said under which licence" in written(tmp_path, made(licence="unknown"))


def test_pairs_have_rules_and_a_word_on_length(tmp_path: Path) -> None:
    text = written(tmp_path, made(kind="pairs"))
    assert "# Preference pairs" in text and "## Rules" in text
    assert "may differ in length" in text
    assert "## Filters" in written(tmp_path, made())


def test_a_card_tells_every_column_of_its_format(source: Source, tmp_path: Path) -> None:
    write(datasets.EPISODES, tmp_path / "a", context(source), selected(source))
    write(datasets.PAIRS, tmp_path / "b", context(source), pairings(source))
    write(parquet.EPISODES, tmp_path / "c", context(source), selected(source))
    for folder, kind, format, columns in (
        ("a", "trajectories", "datasets", STREAM_COLUMNS),
        ("b", "pairs", "datasets", PAIR_COLUMNS),
        ("c", "trajectories", "parquet", EPISODE_COLUMNS),
    ):
        text = written(tmp_path / folder, made(kind=kind, format=format))
        assert all(f"| `{column.name}` |" in text for column in columns)


def test_no_name_is_markup(tmp_path: Path) -> None:
    run = msgspec.structs.replace(RUN, model="a|b\n# no heading <b> `x` @who")
    text = written(tmp_path, made(runs=(run,), command="x\n```\n# y"))
    assert "\n# no heading" not in text and "<b>" not in text and "@who" not in text
    assert "a\\|b" in text
    assert text.count("\n```") == 2
    assert "\n# y" not in text


def test_a_card_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"README\.md cannot be written"):
        card.write(tmp_path / "gone", made())
