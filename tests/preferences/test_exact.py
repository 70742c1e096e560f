"""The exact format: what was stored comes back byte for byte, and nothing takes it for a run."""

import asyncio
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.preferences.runs import Act, episode, make_run, said
from tests.preferences.runs import store as store_episodes
from tests.preferences.written import context, pairings, selected, write

from headrace.engine import shards
from headrace.engine.frames import ShardHeader, pack_shard_header
from headrace.engine.reader import latest_episodes, read_episodes
from headrace.engine.shards import ShardWriter
from headrace.errors import RunFolderError, UsageError
from headrace.preferences import exact_reader
from headrace.preferences.dmpo import token_weights, weights
from headrace.preferences.exact import Exact, ExactEpisode, ExactPair, group_of
from headrace.preferences.exact_reader import read_exact
from headrace.preferences.formats import exact
from headrace.preferences.formats.base import TRAIN, VALIDATION, Selected
from headrace.preferences.formats.exact import ExactWriter
from headrace.preferences.pair import Divergence, Pair, Side
from headrace.preferences.source import Source
from headrace.types import Segment, Span

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "exact.md").read_text()


@pytest.fixture
def source(small_run: Path) -> Source:
    return Source([small_run])


def only_episodes(folder: Path, split: str = TRAIN) -> list[ExactEpisode]:
    found = list(read_exact(folder, split))
    assert all(isinstance(record, ExactEpisode) for record in found)
    return found  # type: ignore[return-value]  # as asserted


def only_pairs(folder: Path) -> list[ExactPair]:
    found = list(read_exact(folder))
    assert all(isinstance(record, ExactPair) for record in found)
    return found  # type: ignore[return-value]  # as asserted


# --- byte for byte --------------------------------------------------------------------------


def test_the_stream_of_an_exported_episode_equals_the_stored_one(
    source: Source, small_run: Path, tmp_path: Path
) -> None:
    assert write(exact.EPISODES, tmp_path / "out", context(source), selected(source)) == [1] * 4
    stored = {e.id: e for e in latest_episodes(small_run)}
    found = only_episodes(tmp_path / "out")
    assert [record.id for record in found] == list(stored)
    for record in found:
        for segment, kept in zip(record.segments, stored[record.id].segments, strict=True):
            assert segment.token_ids == kept.token_ids
            assert segment.logprobs == kept.logprobs
            assert segment.spans == kept.spans
            assert segment.loss_mask() == kept.loss_mask()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.binary(max_size=40), st.lists(st.integers(0, 9), max_size=6)), max_size=3
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_bytes_come_back(
    tmp_path_factory: pytest.TempPathFactory, streams: list[list[tuple[bytes, list[int]]]]
) -> None:
    """Not-a-numbers and ids no tokenizer has included: nothing is decoded on the way."""
    made = [
        episode(sample=n, segments=tuple(_segment(*one) for one in parts))
        for n, parts in enumerate(streams)
    ]
    folder = tmp_path_factory.mktemp("any")
    source = Source([make_run(folder / "run", made)])
    rows = write(exact.EPISODES, folder / "out", context(source), selected(source))
    streams_with_tokens = [tuple(s for s in one.segments if s.token_ids) for one in made]
    assert rows == [1 if one else 0 for one in streams_with_tokens]
    kept = [one for one in streams_with_tokens if one]
    if kept:
        assert [record.segments for record in read_exact(folder / "out")] == kept  # type: ignore[union-attr]


def _segment(data: bytes, cuts: list[int]) -> Segment:
    data = data[: len(data) // 4 * 4]
    ends = sorted(min(cut, len(data) // 4) for cut in cuts)
    spans = zip(ends[::2], ends[1::2], strict=False)
    return Segment(
        token_ids=data,
        logprobs=data[::-1],
        spans=tuple(Span(turn=n, start=a, end=b) for n, (a, b) in enumerate(spans)),
    )


def test_a_record_says_what_the_episode_was_worth_and_who_made_it(
    source: Source, tmp_path: Path
) -> None:
    write(exact.EPISODES, tmp_path / "out", context(source), selected(source))
    lost = only_episodes(tmp_path / "out")[1]
    manifest = source.manifests[0]
    assert (lost.task, lost.sample, lost.reward, lost.pass_ratio) == ("org/a", 1, 0.0, 0.5)
    assert [(test.name, test.status) for test in lost.tests] == [("t1", "passed"), ("t2", "failed")]
    assert (lost.run, lost.model, lost.policy) == (manifest.run, "smollm2-135m", "vllm")
    assert (lost.turns, lost.stop_reason, lost.weights) == (3, "done", None)


def test_attempts_at_one_task_are_one_group_and_another_model_is_another_group(
    source: Source, tmp_path: Path
) -> None:
    write(exact.EPISODES, tmp_path / "out", context(source), selected(source))
    a, b, c, d = only_episodes(tmp_path / "out")
    assert a.group == b.group != c.group == d.group
    assert a.group == group_of(a.task_digest, a.policy_version, "smollm2-135m")
    assert a.group != group_of(a.task_digest, a.policy_version, "another")
    assert a.group != group_of(a.task_digest, a.policy_version, None)


def test_the_token_that_ends_a_turn_is_in_its_span_where_the_policy_sampled_it(
    tmp_path: Path,
) -> None:
    end, observation, cut = 3, 50, 60
    stream = Segment(
        token_ids=array("I", [1, cut, end, observation, cut, end]).tobytes(),
        logprobs=array("f", [0.0, -1.0, 0.0, 0.0, -1.0, -2.0]).tobytes(),
        # Turn 0 was cut before its end, which the next prompt brought; turn 1 ended by itself.
        spans=(Span(turn=0, start=1, end=2), Span(turn=1, start=4, end=6)),
    )
    source = Source([make_run(tmp_path / "run", [episode(segments=(stream,))])])
    write(exact.EPISODES, tmp_path / "out", context(source, gamma=0.5), selected(source))
    (record,) = only_episodes(tmp_path / "out")
    (segment,) = record.segments
    assert exact_reader.loss_mask(segment).tolist() == [0, 1, 0, 0, 1, 1]
    second = weights(2, 0.5)[1]
    assert exact_reader.token_weights(record, segment).tolist() == [0, 1, 0, 0, second, second]


# --- pairs and weights ----------------------------------------------------------------------


def test_a_pair_has_both_episodes_whole_and_the_rule_that_made_it(
    source: Source, tmp_path: Path
) -> None:
    given = pairings(source)
    assert write(exact.PAIRS, tmp_path / "out", context(source), given) == [1, 1]
    for record, pairing in zip(only_pairs(tmp_path / "out"), given, strict=True):
        assert record.pair == pairing.pair
        assert record.chosen.segments == pairing.chosen.segments
        assert record.rejected.segments == pairing.rejected.segments
        assert record.chosen.run == source.manifests[0].run
        assert record.chosen.weights is None


def test_each_side_has_a_weight_for_each_turn_from_where_the_pair_begins(
    source: Source, tmp_path: Path
) -> None:
    write(exact.PAIRS, tmp_path / "out", context(source, gamma=0.9), pairings(source, start=1))
    one, other = only_pairs(tmp_path / "out")
    assert one.chosen.weights == (0.0, *weights(2, 0.9))
    assert other.rejected.weights == (0.0, 1.0)
    assert one.chosen.turns == 3


def test_weights_of_tokens_are_those_of_the_loss(source: Source, tmp_path: Path) -> None:
    write(exact.EPISODES, tmp_path / "out", context(source, gamma=0.8), selected(source))
    for record in only_episodes(tmp_path / "out"):
        for segment in record.segments:
            found = exact_reader.token_weights(record, segment)
            length = len(exact_reader.tokens(segment))
            expected = token_weights(segment.spans, length, 0.8, turns=record.turns)
            assert (found == expected).all()


def test_an_episode_without_weights_has_none_for_its_tokens(source: Source, tmp_path: Path) -> None:
    write(exact.EPISODES, tmp_path / "out", context(source), selected(source))
    record = only_episodes(tmp_path / "out")[0]
    with pytest.raises(UsageError, match="expected DMPO weights, found none; write it with"):
        exact_reader.token_weights(record, record.segments[0])


def test_arrays_are_the_numbers_of_the_stream_and_views_of_it(
    source: Source, tmp_path: Path
) -> None:
    write(exact.EPISODES, tmp_path / "out", context(source), selected(source))
    segment = only_episodes(tmp_path / "out")[0].segments[0]
    ids, said = exact_reader.tokens(segment), exact_reader.logprobs(segment)
    assert (ids.dtype.str, said.dtype.str) == ("<u4", "<f4")
    assert ids.tolist() == segment.tokens().tolist()
    assert said.tolist() == segment.token_logprobs().tolist()
    assert not ids.flags.writeable and not ids.flags.owndata


# --- what is not held -----------------------------------------------------------------------


def test_an_attempt_without_tokens_is_no_row(tmp_path: Path) -> None:
    made = [episode(sample=0), episode(sample=1, tokens=False)]
    source = Source([make_run(tmp_path / "run", made)])
    rows = write(exact.EPISODES, tmp_path / "out", context(source), selected(source))
    assert rows == [1, 0]
    assert write(exact.PAIRS, tmp_path / "pairs", context(source), pairings(source)) == [0]
    assert list((tmp_path / "pairs").iterdir()) == []


def test_each_split_has_a_folder_and_reading_one_leaves_the_other(
    source: Source, tmp_path: Path
) -> None:
    a, b, *_ = selected(source)
    (tmp_path / "out").mkdir()
    with exact.EPISODES.open(tmp_path / "out", context(source)) as writer:
        writer.add(VALIDATION, a)
        writer.add(TRAIN, b)
    assert [r.id for r in only_episodes(tmp_path / "out")] == [b.episode.id]
    assert [r.id for r in only_episodes(tmp_path / "out", VALIDATION)] == [a.episode.id]
    with pytest.raises(RunFolderError, match=r"found the splits train, validation\. Give"):
        list(read_exact(tmp_path / "out", "failures"))


# --- shards ---------------------------------------------------------------------------------


def many(source: Source, count: int, tokens: int) -> Iterator[Selected]:
    """Trajectories of random ids: they do not shrink."""
    one = selected(source)[0]
    chance = np.random.default_rng(1)
    for number in range(count):
        segment = Segment(
            token_ids=chance.bytes(4 * tokens), logprobs=chance.bytes(4 * tokens), spans=()
        )
        changed = msgspec.structs.replace(one.episode, id=str(number), segments=(segment,))
        yield one._replace(episode=changed)


def test_a_shard_is_sealed_when_it_is_full_and_the_next_one_begun(
    source: Source, tmp_path: Path
) -> None:
    def record(item: Selected) -> tuple[str, Exact]:
        return item.episode.id, exact.record_of_selected(context(source), item)

    given = list(many(source, 20, 100_000))
    (tmp_path / "out").mkdir()
    with ExactWriter(tmp_path / "out", record, shard_bytes=6 << 20) as writer:
        assert [writer.add(TRAIN, item) for item in given] == [1] * 20
    paths = sorted((tmp_path / "out" / TRAIN).iterdir())
    assert [path.name for path in paths] == ["000000.hrs", "000001.hrs"]
    assert all(shards.read_index(path) is not None for path in paths)
    found = only_episodes(tmp_path / "out")
    assert [r.id for r in found] == [str(n) for n in range(20)]
    assert [r.segments for r in found] == [item.episode.segments for item in given]


def test_a_flipped_bit_is_an_error_with_shard_and_offset(source: Source, tmp_path: Path) -> None:
    write(exact.EPISODES, tmp_path / "out", context(source), selected(source))
    path = tmp_path / "out" / TRAIN / "000000.hrs"
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), 97):
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(RunFolderError, match=r"000000\.hrs"):
            list(read_exact(tmp_path / "out"))
        data[at] ^= 1


def test_a_shard_that_was_cut_is_an_error(source: Source, tmp_path: Path) -> None:
    write(exact.EPISODES, tmp_path / "out", context(source), selected(source))
    path = tmp_path / "out" / TRAIN / "000000.hrs"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RunFolderError, match=r"000000\.hrs.*export again"):
        list(read_exact(tmp_path / "out"))


def test_what_fails_on_the_way_leaves_nothing_open(source: Source, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        with exact.EPISODES.open(tmp_path / "out", context(source)) as writer:
            writer.add(TRAIN, selected(source)[0])
            raise KeyboardInterrupt
    assert list((tmp_path / "out" / TRAIN).iterdir()) == []


# --- neither is taken for the other ---------------------------------------------------------


def test_a_run_is_not_read_as_exact_data(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"expected train/000000\.hrs, found no shards"):
        list(read_exact(small_run))
    with pytest.raises(RunFolderError, match="found no shards"):
        list(read_exact(small_run, "shards"))
    with pytest.raises(RunFolderError, match="found no shards"):
        list(read_exact(tmp_path / "nothing"))
    (small_run / "shards").rename(tmp_path / TRAIN)
    (tmp_path / TRAIN / "lock").unlink()
    with pytest.raises(RunFolderError, match="is no record of the exact format"):
        list(read_exact(tmp_path))


def test_exact_data_is_not_read_as_a_run(source: Source, tmp_path: Path) -> None:
    write(exact.EPISODES, tmp_path / "out", context(source), selected(source))
    with pytest.raises(RunFolderError, match="is not a run"):
        Source([tmp_path / "out"])
    assert list(read_episodes(tmp_path / "out")) == []
    (tmp_path / "out" / TRAIN).rename(tmp_path / "out" / "shards")
    with pytest.raises(RunFolderError, match="is not an episode"):
        list(read_episodes(tmp_path / "out"))


def test_what_a_newer_headrace_wrote_is_refused(source: Source, tmp_path: Path) -> None:
    write(exact.EPISODES, tmp_path / "out", context(source), selected(source)[:1])
    record = msgspec.to_builtins(only_episodes(tmp_path / "out")[0], builtin_types=(bytes,))
    folder = tmp_path / "newer" / TRAIN
    folder.mkdir(parents=True)
    shard = ShardWriter(folder, 0, level=1, fsync=False)
    shard.append([("id", False, msgspec.msgpack.encode(record | {"schema": 2, "more": 1}))])
    shard.seal()
    with pytest.raises(RunFolderError, match=r"newer headrace \(schema 2; .* Upgrade"):
        list(read_exact(tmp_path / "newer"))
    header = pack_shard_header(ShardHeader(number=0, sync=b"12345678", format=9))
    (folder / "000000.hrs").write_bytes(header)
    with pytest.raises(RunFolderError, match="newer headrace: shard format 9"):
        list(read_exact(tmp_path / "newer"))


# --- the page -------------------------------------------------------------------------------


def test_the_page_names_every_field() -> None:
    told = set(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE, re.MULTILINE))
    names = {name for cell in told for name in re.findall(r"`(\w+)`", cell)}
    for record in (ExactEpisode, ExactPair, Segment):
        assert {f.name for f in msgspec.structs.fields(record)} <= names
    (of_a_pair,) = (line for line in PAGE.splitlines() if line.startswith("| `pair` | map |"))
    told = set(re.findall(r"`(\w+)`", of_a_pair))
    for record in (Pair, Side, Divergence):
        assert {f.name for f in msgspec.structs.fields(record)} <= told


def test_the_reader_of_the_page_reads_what_was_written(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(exact.EPISODES, tmp_path / "out", context(source), selected(source))
    monkeypatch.chdir(tmp_path)
    code = next(c for c in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "read_exact" in c)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["ids"].shape == names["sampled"].shape == names["said"].shape
    assert names["ids"].any()


def test_contexts_of_one_episode_stay_apart(tmp_path: Path) -> None:
    one = episode(turns=[Act("a", "x"), Act("b", "y", reset=True), *said("c")])
    source = Source([make_run(tmp_path / "run", [one])])
    asyncio.run(store_episodes(tmp_path / "run", [episode(sample=1)]))
    write(exact.EPISODES, tmp_path / "out", context(source, gamma=1.0), selected(source))
    first, second = only_episodes(tmp_path / "out")
    assert first.segments == one.segments and len(one.segments) == 2
    assert first.weights == pytest.approx((1.0, 2 / 3, 1 / 3))
    assert [s.spans[0].turn for s in first.segments] == [0, 1]
    assert len(second.segments) == 1
