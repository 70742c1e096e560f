"""The folder for `datasets`, and plain Parquet: columns are the stored bytes, files are bounded."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.preferences.runs import Act, episode, make_run, said
from tests.preferences.written import context, pairings, selected, write

from headrace.preferences import arrow
from headrace.preferences.arrow import TYPES, ParquetFiles
from headrace.preferences.columns import (
    EPISODE_COLUMNS,
    FLOAT32,
    PAIR_COLUMNS,
    STREAM_COLUMNS,
    UINT8,
    UINT32,
    Column,
    columns_of,
)
from headrace.preferences.dmpo import token_weights
from headrace.preferences.formats import datasets, parquet
from headrace.preferences.formats.base import FAILURES, TRAIN
from headrace.preferences.hints import without_hints
from headrace.preferences.source import Source

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "exact.md").read_text()
PACKED = (Column("ids", UINT32, ""), Column("mask", UINT8, ""), Column("said", FLOAT32, ""))


@pytest.fixture
def source(small_run: Path) -> Source:
    return Source([small_run])


@pytest.fixture
def resets(tmp_path: Path) -> Source:
    """One attempt of two contexts, one without tokens."""
    two = [Act("a", "x"), Act("b", "y", reset=True), *said("c")]
    made = [episode(turns=two), episode(sample=1, tokens=False), episode(sample=2)]
    return Source([make_run(tmp_path / "resets", made)])


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


def stream(path: Path, column: str) -> bytes:
    """The values of a column of lists, as little-endian bytes."""
    values = pq.read_table(path)[column].combine_chunks().values
    return bytes(values.to_numpy(zero_copy_only=False).tobytes())


# --- trajectories ---------------------------------------------------------------------------


def test_the_columns_of_tokens_are_the_stored_bytes(source: Source, tmp_path: Path) -> None:
    given = selected(source)
    assert write(datasets.EPISODES, tmp_path / "out", context(source), given) == [1] * 4
    (path,) = (tmp_path / "out" / "data").iterdir()
    assert path.name == "train-00000-of-00001.parquet"
    segments = [item.episode.segments[0] for item in given]
    assert stream(path, "token_ids") == b"".join(s.token_ids for s in segments)
    assert stream(path, "logprobs") == b"".join(s.logprobs for s in segments)
    assert stream(path, "loss_mask") == b"".join(s.loss_mask() for s in segments)
    for row, segment in zip(rows(path), segments, strict=True):
        assert row["token_ids"] == segment.tokens().tolist()
        assert [tuple(span.values()) for span in row["spans"]] == [
            (s.turn, s.start, s.end) for s in segment.spans
        ]


def test_a_row_says_what_the_attempt_was_worth(source: Source, tmp_path: Path) -> None:
    write(datasets.EPISODES, tmp_path / "out", context(source), selected(source))
    lost = rows(tmp_path / "out" / "data")[1]
    assert (lost["task"], lost["reward"], lost["pass_ratio"]) == ("org/a", 0.0, 0.5)
    assert lost["tests"] == [
        {"name": "t1", "status": "passed"}, {"name": "t2", "status": "failed"},
    ]  # fmt: skip
    assert lost["scores"] == [
        {"name": "turns", "value": 3.0}, {"name": "recoveries", "value": 0.5},
    ]  # fmt: skip
    assert (lost["model"], lost["run"]) == ("smollm2-135m", source.manifests[0].run)


def test_each_context_of_an_episode_is_a_row_and_none_without_tokens(
    resets: Source, tmp_path: Path
) -> None:
    given = selected(resets)
    assert write(datasets.EPISODES, tmp_path / "out", context(resets), given) == [2, 0, 1]
    found = rows(tmp_path / "out" / "data")
    assert [(r["context"], r["contexts"]) for r in found] == [(0, 2), (1, 2), (0, 1)]
    assert found[0]["id"] == found[1]["id"] != found[2]["id"]
    assert [[s["turn"] for s in r["spans"]] for r in found[:2]] == [[0], [1, 2]]
    assert all("stream_starts" not in row for row in found)


def test_with_a_gamma_each_token_has_its_weight_and_without_there_is_no_such_column(
    resets: Source, tmp_path: Path
) -> None:
    write(datasets.EPISODES, tmp_path / "out", context(resets, gamma=0.9), selected(resets))
    one = selected(resets)[0].episode
    for row, segment in zip(rows(tmp_path / "out" / "data"), one.segments, strict=False):
        length = len(segment.tokens())
        expected = token_weights(segment.spans, length, 0.9, turns=len(one.turns))
        assert row["token_weights"] == expected.astype(np.float32).tolist()
    write(datasets.EPISODES, tmp_path / "plain", context(resets), selected(resets))
    assert "token_weights" not in pq.read_schema(*(tmp_path / "plain" / "data").iterdir()).names


# --- pairs ----------------------------------------------------------------------------------


def test_a_pair_is_a_row_with_both_streams(source: Source, tmp_path: Path) -> None:
    given = pairings(source)
    assert write(datasets.PAIRS, tmp_path / "out", context(source), given) == [1, 1]
    for row, pairing in zip(rows(tmp_path / "out" / "data"), given, strict=True):
        assert row["id"] == pairing.pair.id
        assert row["divergence_tokens"] == pairing.pair.divergence.tokens
        for side, one in (("chosen", pairing.chosen), ("rejected", pairing.rejected)):
            assert row[f"{side}_id"] == one.id
            assert row[f"{side}_token_ids"] == one.segments[0].tokens().tolist()
            assert row[f"{side}_loss_mask"] == list(one.segments[0].loss_mask())
            assert row[f"{side}_stream_starts"] == [0]


def test_turns_before_a_pair_begins_have_no_loss_and_no_weight(
    source: Source, tmp_path: Path
) -> None:
    given = pairings(source, start=1)
    write(datasets.PAIRS, tmp_path / "out", context(source, gamma=0.5), given)
    row = rows(tmp_path / "out" / "data")[0]
    first, second, _ = given[0].chosen.segments[0].spans
    assert not any(row["chosen_loss_mask"][: first.end])
    assert not any(row["chosen_token_weights"][: first.end])
    assert row["chosen_token_weights"][second.start] == 1.0
    assert all(row["chosen_loss_mask"][second.start : second.end])
    assert len(row["chosen_spans"]) == 3


def test_contexts_of_a_side_stand_one_after_another_and_say_where(
    resets: Source, tmp_path: Path
) -> None:
    won, _, lost = selected(resets)
    pairing = pairings(resets)[0]
    pair = msgspec.structs.replace(pairing.pair, id="p")
    given = [pairing._replace(pair=pair, chosen=won.episode, rejected=lost.episode)]
    write(datasets.PAIRS, tmp_path / "out", context(resets), given)
    (row,) = rows(tmp_path / "out" / "data")
    one, two = won.episode.segments
    at = len(one.tokens())
    assert row["chosen_stream_starts"] == [0, at]
    assert row["chosen_token_ids"][at:] == two.tokens().tolist()
    assert row["chosen_spans"][1]["start"] == at + two.spans[0].start
    assert row["chosen_loss_mask"] == [*one.loss_mask(), *two.loss_mask()]


def test_a_pair_with_a_side_without_tokens_is_no_row(resets: Source, tmp_path: Path) -> None:
    assert write(datasets.PAIRS, tmp_path / "out", context(resets), pairings(resets)) == [0]
    assert list((tmp_path / "out").iterdir()) == []


# --- parquet --------------------------------------------------------------------------------


def test_parquet_has_text_and_tokens_and_holds_what_has_no_tokens(
    resets: Source, tmp_path: Path
) -> None:
    given = selected(resets)
    assert write(parquet.EPISODES, tmp_path / "out", context(resets), given) == [1, 1, 1]
    two, none, one = rows(tmp_path / "out" / "train.parquet")
    assert [m["role"] for m in two["messages"]] == ["user", "assistant"] * 3
    assert [m["content"] for m in two["messages"][1::2]] == ["a", "b", "c"]
    assert (two["message_starts"], two["stream_starts"][0]) == ([0, 2], 0)
    assert (none["token_ids"], none["loss_mask"], none["stream_starts"]) == ([], [], [])
    assert [m["content"] for m in none["messages"][1::2]] == ["ls", "cat a.txt"]
    assert one["token_ids"] == given[2].episode.segments[0].tokens().tolist()


def test_an_episode_whose_hints_were_stripped_has_text_and_no_tokens(tmp_path: Path) -> None:
    hinted = episode(opening="Do it. <hint>use ls</hint>")
    source = Source([make_run(tmp_path / "run", [hinted])])
    (item,) = selected(source)
    given = [item._replace(episode=without_hints(item.episode, "<hint>", "</hint>"))]
    assert write(parquet.EPISODES, tmp_path / "out", context(source, gamma=0.9), given) == [1]
    (row,) = rows(tmp_path / "out" / "train.parquet")
    assert row["messages"][0]["content"] == "Do it. "
    assert all(not row[name] for name in ("token_ids", "loss_mask", "token_weights", "spans"))
    assert write(datasets.EPISODES, tmp_path / "rows", context(source), given) == [0]


# --- files ----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=5), min_size=1, max_size=6))
def test_any_lists_come_back(
    tmp_path_factory: pytest.TempPathFactory, lists: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    with ParquetFiles(folder, TRAIN, PACKED, one_file=True) as files:
        for ids in lists:
            data = np.array(ids, "<u4").tobytes()
            files.add({"ids": data, "mask": bytes(len(ids)), "said": data})
    assert [row["ids"] for row in rows(folder / "train.parquet")] == lists
    assert [row["mask"] for row in rows(folder / "train.parquet")] == [[0] * len(i) for i in lists]
    assert stream(folder / "train.parquet", "said") == b"".join(
        np.array(ids, "<u4").tobytes() for ids in lists
    )


def test_row_groups_and_files_are_bounded_and_named_by_how_many_there_are(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    given = [chance.bytes(40_000) for _ in range(30)]
    with ParquetFiles(tmp_path, FAILURES, PACKED, group_bytes=300_000, file_bytes=900_000) as files:
        for data in given:
            files.add({"ids": data, "mask": bytes(10_000), "said": data})
    paths = sorted(tmp_path.iterdir())
    count = len(paths)
    assert count > 1
    assert [p.name for p in paths] == [
        f"failures-{n:05d}-of-{count:05d}.parquet" for n in range(count)
    ]
    for path in paths:
        about = pq.ParquetFile(path).metadata
        sizes = [about.row_group(n).total_byte_size for n in range(about.num_row_groups)]
        assert max(sizes) < 600_000
        assert path.stat().st_size < 1_500_000
    assert b"".join(stream(path, "ids") for path in paths) == b"".join(given)


def test_nothing_is_named_as_whole_when_the_writing_failed(source: Source, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        with datasets.EPISODES.open(tmp_path / "out", context(source)) as writer:
            writer.add(TRAIN, selected(source)[0])
            raise KeyboardInterrupt
    assert list((tmp_path / "out" / "data").iterdir()) == []


def test_every_type_of_a_column_is_known_and_no_name_is_twice() -> None:
    for table in (STREAM_COLUMNS, PAIR_COLUMNS, EPISODE_COLUMNS):
        assert {column.type for column in table} <= set(TYPES)
        assert len({column.name for column in table}) == len(table)
        plain = columns_of(table, gamma=None)
        left = {c.name for c in table} - {c.name for c in plain}
        assert left and all(name.endswith("token_weights") for name in left)


def test_only_one_file_imports_pyarrow_and_the_formats_do_without_until_they_write() -> None:
    code = (
        "import sys\n"
        "from headrace.preferences.formats import datasets, exact, parquet\n"
        "import headrace.preferences.card, headrace.preferences.exact_reader\n"
        "print(sorted({'pyarrow', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    folder = Path(arrow.__file__).parent
    importing = {
        p.name for p in folder.rglob("*.py") if re.search(r"import pyarrow", p.read_text())
    }
    assert importing == {"arrow.py"}


def test_without_pyarrow_the_message_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\n"
        "from headrace.errors import UsageError\n"
        "from headrace.preferences.formats import base, parquet\n"
        "try: parquet.EPISODES.open(Path('x'), base.Context((), ()))\n"
        "except UsageError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'headrace[data]'" in done.stdout


# --- the page -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heading", "columns"),
    [
        ("Trajectories, a row for each context:", STREAM_COLUMNS),
        ("Pairs, a row for each pair:", PAIR_COLUMNS),
        ("One file for each split", EPISODE_COLUMNS),
    ],
)
def test_the_page_says_of_each_column_what_the_code_says(
    heading: str, columns: tuple[Column, ...]
) -> None:
    lines = PAGE[PAGE.index(heading) :].splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith("| column |"))
    table = [line for line in lines[begin + 2 : begin + 80] if line.startswith("|")]
    expected = [f"| `{c.name}` | `{c.type}` | {c.about} |" for c in _by_side(columns)]
    assert table[: len(expected)] == expected
    assert len(table) == len(expected) or not table[len(expected)].startswith("| `")


def _by_side(columns: tuple[Column, ...]) -> list[Column]:
    return [
        Column(c.name.replace("chosen_", "SIDE_"), c.type, c.about.removeprefix("chosen: "))
        for c in columns
        if not c.name.startswith("rejected_")
    ]
