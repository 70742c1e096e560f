"""Pairs out of real runs: what is written, what is recorded, and what leaves no trace."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.preferences.runs import Act, digest_of, episode, make_run, said, spoil, store

from headrace.engine.export import readable_record
from headrace.errors import RunFolderError, UsageError
from headrace.preferences.counting import evenly
from headrace.preferences.formats import jsonl
from headrace.preferences.formats.base import Context, JsonPairs, Row
from headrace.preferences.made import Made
from headrace.preferences.pair import Pair, Pairing
from headrace.preferences.pairs import PairsMade, make_pairs, no_groups
from headrace.preferences.rules import Rule, rule_of
from headrace.preferences.splits import split_of
from headrace.preferences.tally import PairsTally
from headrace.types import Episode, StopReason, VerdictFault

MARGIN = (rule_of("margin"),)


def won(sample: int = 0, *texts: str, task: str = "org/a", **fields: Any) -> Episode:
    return episode(task, sample, 1.0, turns=said(*(texts or ("ls", "make"))), **fields)


def lost(sample: int = 1, *texts: str, task: str = "org/a", **fields: Any) -> Episode:
    return episode(task, sample, 0.0, turns=said(*(texts or ("ls", "rm x"))), **fields)


def pairs_of(*runs: Path, out: Path, rules: Sequence[Rule] = MARGIN, **options: Any) -> PairsMade:
    return make_pairs(runs, out, rules=rules, **({"format": jsonl.PAIRS} | options))


def index_of(out: Path) -> list[Pair]:
    lines = (out / "index.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Pair) for line in lines]


def made_of(out: Path) -> Made:
    return msgspec.json.decode((out / "made.json").read_bytes(), type=Made)


def rows_of(out: Path, split: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{split}.jsonl").read_bytes().splitlines()]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- what is written ------------------------------------------------------------------------


def test_a_pair_names_both_sides_and_why(tmp_path: Path) -> None:
    a, b = won(tests={"t1": True, "t2": True}), lost(tests={"t1": True, "t2": False})
    run = make_run(tmp_path / "run", [b, a])
    made = pairs_of(run, out=tmp_path / "out")
    assert made.written == 1
    (pair,) = index_of(tmp_path / "out")
    assert (pair.task, pair.task_digest) == ("org/a", digest_of("org/a"))
    assert (pair.rule, pair.score, pair.margin) == ("margin", "pass_ratio", 0.5)
    assert (pair.tie, pair.off_policy, pair.start) == (False, False, 0)
    assert (pair.chosen.episode, pair.rejected.episode) == (a.id, b.id)
    assert (pair.chosen.score, pair.rejected.score) == (1.0, 0.5)
    assert (pair.rejected.reward, pair.rejected.sample, pair.rejected.turns) == (0.0, 1, 2)
    assert pair.chosen.run == made.tally.made.runs[0].run
    assert pair.chosen.sampled_tokens == a.sampled_tokens
    assert pair.divergence.turn == 1
    assert pair.divergence.tokens == a.segments[0].spans[1].start


def test_a_row_of_json_has_both_whole_records(tmp_path: Path) -> None:
    a, b = won(), lost()
    pairs_of(make_run(tmp_path / "run", [a, b]), out=tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert row["chosen"] == json.loads(msgspec.json.encode(readable_record(a)))
    assert row["rejected"] == json.loads(msgspec.json.encode(readable_record(b)))
    assert msgspec.convert(row["pair"], Pair) == index_of(tmp_path / "out")[0]


def test_what_was_made_can_be_made_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [won(), lost()])
    for name in ("one", "two"):
        pairs_of(run, out=tmp_path / name, licence="MIT", command="headrace pairs run", gamma=0.9)
    made = made_of(tmp_path / "one")
    assert made == made_of(tmp_path / "two"), "the same digests too"
    assert (made.kind, made.format, made.licence) == ("pairs", "jsonl", "MIT")
    assert (made.command, made.attempts, made.rows) == ("headrace pairs run", 2, {"train": 1})
    assert made.options == {
        "rules": [MARGIN[0].model_dump()],
        "validation": 0.0,
        "gamma": 0.9,
    }
    assert made.files.keys() == {"index.jsonl", "train.jsonl"}
    for name, digest in made.files.items():
        data = (tmp_path / "one" / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
    assert (tmp_path / "one" / "README.md").read_text().startswith("---")


def test_pairs_come_in_the_order_of_storing(tmp_path: Path) -> None:
    """So that the records of neighbours lie close."""
    many = [
        make(sample, task=f"org/{task}")
        for sample, make in enumerate((won, lost))
        for task in range(9)
    ]
    pairs_of(make_run(tmp_path / "run", many), out=tmp_path / "out")
    assert [pair.task for pair in index_of(tmp_path / "out")] == [f"org/{n}" for n in range(9)]


def test_a_whole_task_is_in_one_split(tmp_path: Path) -> None:
    many = [
        make(sample, task=f"org/{task}")
        for task in range(40)
        for sample, make in enumerate((won, won, lost, lost))
    ]
    run = make_run(tmp_path / "run", many)
    made = pairs_of(run, out=tmp_path / "out", validation=0.3)
    rows = {split: rows_of(tmp_path / "out", split) for split in ("train", "validation")}
    assert made.tally.made.rows == {split: len(found) for split, found in rows.items()}
    assert len(rows["train"]) + len(rows["validation"]) == 80
    for split, found in rows.items():
        assert {split_of(row["pair"]["task_digest"], 0.3) for row in found} == {split}


def test_a_larger_share_of_validation_only_adds_tasks() -> None:
    tasks = [digest_of(f"org/{n}") for n in range(1000)]
    shares = {
        share: {task for task in tasks if split_of(task, share) == "validation"}
        for share in (0.0, 0.1, 0.2, 1.0)
    }
    assert shares[0.0] == set()
    assert shares[0.1] < shares[0.2] < shares[1.0] == set(tasks)
    assert 60 < len(shares[0.1]) < 140


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    run = make_run(tmp_path / "run", [won(), lost()])
    pairs_of(run, out=tmp_path / "out", on_progress=lambda *step: told.append(step))
    assert told == [("read", 1, None), ("read", 2, None), ("paired", 1, 1)]


def test_more_can_be_written_into_the_new_folder_before_it_is_there(tmp_path: Path) -> None:
    def finish(tally: PairsTally, folder: Path) -> None:
        assert not (tmp_path / "out").exists()
        (folder / "report").write_text(str(tally.pairs_by_rule))

    pairs_of(make_run(tmp_path / "run", [won(), lost()]), out=tmp_path / "out", finish=finish)
    assert (tmp_path / "out" / "report").read_text() == "{'margin': 1}"


# --- what the records decide ----------------------------------------------------------------


def dated(sample: int, reward: float, day: str) -> Episode:
    turns = [("date", day), (f"echo {day}", None)]
    return episode(sample=sample, reward=reward, turns=turns)


DIVERGENCE = (rule_of("first-divergence"),)


def only_reason(made: PairsMade) -> dict[str, int]:
    assert made.written == 0
    (counts,) = made.tally.left_out_by_rule.values()
    return counts


def test_first_divergence_begins_at_the_turn_that_differs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [won(0, "ls", "cd a", "make"), lost(1, "ls", "cd a", "rm x")])
    pairs_of(run, out=tmp_path / "out", rules=DIVERGENCE)
    (pair,) = index_of(tmp_path / "out")
    assert pair.start == pair.divergence.turn == 2


@pytest.mark.parametrize(
    ("two", "reason"),
    [
        ((dated(0, 1.0, "Monday"), dated(1, 0.0, "Tuesday")), "diverged_in_observation"),
        ((won(0, "ls", "make"), lost(1, "ls")), "one_continues_the_other"),
        ((won(0, "ls"), lost(1, "ls", "make")), "one_continues_the_other"),
        ((won(0, "ls"), lost(1, "ls")), "identical"),
    ],
)
def test_without_a_shared_prompt_there_is_no_first_divergence(
    tmp_path: Path, two: tuple[Episode, Episode], reason: str
) -> None:
    run = make_run(tmp_path / "run", two)
    assert only_reason(pairs_of(run, out=tmp_path / "out", rules=DIVERGENCE)) == {reason: 1}
    whole = pairs_of(run, out=tmp_path / "whole")
    assert whole.written == (reason != "identical"), "whole trajectories need no shared prompt"


def _first_words(pairing: Pairing, context: Context) -> list[Row]:
    start = pairing.pair.start
    turns = pairing.chosen.turns[start], pairing.rejected.turns[start]
    return [{"words": [turn.text for turn in turns]}]


def test_a_format_of_single_turns_gets_pairs_that_begin_where_they_part(tmp_path: Path) -> None:
    turnwise = JsonPairs(
        name="turns", about="", rows=lambda *a: iter(_first_words(*a)), needs_shared_prompt=True
    )
    a, b = dated(0, 1.0, "Monday"), dated(1, 0.0, "Tuesday")
    run = make_run(tmp_path / "run", [won(), lost()])
    pairs_of(run, out=tmp_path / "out", format=turnwise)
    assert rows_of(tmp_path / "out") == [{"words": ["make", "rm x"]}]
    assert index_of(tmp_path / "out")[0].start == 1
    made = pairs_of(make_run(tmp_path / "b", [a, b]), out=tmp_path / "none", format=turnwise)
    assert only_reason(made) == {"diverged_in_observation": 1}


def test_a_format_of_tokens_gets_none_without_a_stream(tmp_path: Path) -> None:
    exact = JsonPairs(name="t", about="", rows=jsonl.PAIRS.rows, needs_tokens=True)
    run = make_run(tmp_path / "run", [won(tokens=False), lost()])
    assert only_reason(pairs_of(run, out=tmp_path / "out", format=exact)) == {"no_tokens": 1}
    assert pairs_of(run, out=tmp_path / "text").written == 1


def test_what_a_format_cannot_hold_is_counted(tmp_path: Path) -> None:
    picky = JsonPairs(
        name="picky",
        about="",
        rows=lambda pairing, _: iter([{}] if pairing.pair.task == "org/a" else []),
    )
    many = [won(), lost(), won(task="org/b"), lost(task="org/b")]
    run = make_run(tmp_path / "run", many)
    made = pairs_of(run, out=tmp_path / "out", format=picky)
    assert made.tally.left_out_by_rule == {"margin": {"format": 1}}
    assert [pair.task for pair in index_of(tmp_path / "out")] == ["org/a"]


def test_the_same_pair_of_two_rules_is_written_once(tmp_path: Path) -> None:
    rules = [rule_of(kind) for kind in ("best-worst", "margin", "first-divergence")]
    run = make_run(tmp_path / "run", [won(), lost()])
    made = pairs_of(run, out=tmp_path / "out", rules=rules)
    assert made.tally.pairs_by_rule == {"best-worst": 1, "margin": 0, "first-divergence": 1}
    assert made.tally.left_out_by_rule["margin"] == {"duplicate": 1}
    ids = [pair.id for pair in index_of(tmp_path / "out")]
    assert len(set(ids)) == 2, "another start is another pair"


# --- several runs ---------------------------------------------------------------------------


def test_runs_of_one_policy_make_one_group_of_a_task(tmp_path: Path) -> None:
    """Their attempts have equal ids, and are two attempts all the same."""
    runs = [make_run(tmp_path / "a", [won(0)]), make_run(tmp_path / "b", [lost(0)])]
    pairs_of(*runs, out=tmp_path / "out")
    (pair,) = index_of(tmp_path / "out")
    assert pair.chosen.episode == pair.rejected.episode
    assert pair.chosen.run != pair.rejected.run
    assert not pair.off_policy


def other_policy(tmp_path: Path, **fields: Any) -> tuple[Path, Path]:
    return (
        make_run(tmp_path / "a", [won(0), won(1, "ls", "id")]),
        make_run(tmp_path / "b", [lost(0, policy_version="b" * 64)], **fields),
    )


def test_mixed_policies_are_refused_with_the_list(tmp_path: Path) -> None:
    runs = other_policy(tmp_path)
    with pytest.raises(RunFolderError, match="expected runs of one policy, found 2:\n.*\n.*\n"):
        pairs_of(*runs, out=tmp_path / "out")
    assert names(tmp_path) == {"a", "b"}


def test_mixed_policies_that_are_allowed_are_recorded(tmp_path: Path) -> None:
    made = pairs_of(*other_policy(tmp_path), out=tmp_path / "out", allow_mixed_policies=True)
    assert made.tally.made.mixed_policies
    (pair,) = index_of(tmp_path / "out")
    assert pair.off_policy
    assert pair.rejected.policy_version == "b" * 64


def test_mixed_tokenizers_make_no_pairs_of_tokens(tmp_path: Path) -> None:
    exact = JsonPairs(name="exact", about="", rows=jsonl.PAIRS.rows, needs_tokens=True)
    runs = other_policy(tmp_path, model="/models/other")
    with pytest.raises(RunFolderError, match="one tokenizer.*smollm2-135m, /models/other"):
        pairs_of(*runs, out=tmp_path / "out", allow_mixed_policies=True, format=exact)


def test_mixed_tokenizers_are_compared_by_text(tmp_path: Path) -> None:
    runs = other_policy(tmp_path, model="/models/other")
    pairs_of(*runs, out=tmp_path / "out", allow_mixed_policies=True)
    (pair,) = index_of(tmp_path / "out")
    assert (pair.divergence.turn, pair.divergence.tokens) == (1, 0)


# --- nothing to write -----------------------------------------------------------------------


def test_an_empty_result_writes_nothing_and_has_its_reasons(tmp_path: Path) -> None:
    many = [won(), won(1), lost(0, task="org/b"), lost(1, task="org/b")]
    made = pairs_of(make_run(tmp_path / "run", many), out=tmp_path / "out")
    assert made.written == 0
    assert made.tally.left_out_by_rule == {"margin": {"one_outcome": 2}}
    assert (made.tally.outcomes.no_loss, made.tally.outcomes.no_win) == (1, 1)
    assert not no_groups(made.tally)
    assert names(tmp_path) == {"run"}


def test_an_empty_result_keeps_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pairs_of(make_run(tmp_path / "run", [won(), lost()]), out=out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    pairs_of(make_run(tmp_path / "empty", [won(), won(1)]), out=out, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_run_without_groups_says_so(tmp_path: Path) -> None:
    made = pairs_of(make_run(tmp_path / "run", [won(), won(0, task="org/b")]), out=tmp_path / "out")
    assert no_groups(made.tally)
    assert made.tally.left_out_by_rule == {"margin": {"alone": 2}}
    empty = pairs_of(make_run(tmp_path / "empty", []), out=tmp_path / "out")
    assert no_groups(empty.tally)
    assert empty.tally.groups == 0


def test_attempts_that_are_left_out_are_counted_by_reason(tmp_path: Path) -> None:
    many = [
        won(),
        lost(),
        episode(sample=2, fault=VerdictFault.INFRASTRUCTURE),
        episode(sample=3, turns=()),
        episode(sample=4, turns=[Act("a", "x"), Act("b", "y", reset=True)]),
        lost(5, stop=StopReason.AGENT_TIMEOUT),
    ]
    made = pairs_of(make_run(tmp_path / "run", many), out=tmp_path / "out")
    reasons = {"infrastructure": 1, "no_turns": 1, "several_contexts": 1, "timeout": 1}
    assert made.tally.left_out_by_rule == {"margin": reasons}
    assert made.tally.made.left_out == reasons
    assert made.tally.made.attempts == 6


# --- what is wrong --------------------------------------------------------------------------


def test_a_folder_that_is_there_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [won(), lost()])
    pairs_of(run, out=tmp_path / "out")
    (run / "shards" / "notes.hrs").touch()  # would be refused when read
    with pytest.raises(RunFolderError, match="is there already"):
        pairs_of(run, out=tmp_path / "out")


def test_a_folder_is_replaced_only_when_all_is_made(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pairs_of(make_run(tmp_path / "run", [won(), lost()]), out=out)
    (out / "mine").touch()
    two = make_run(tmp_path / "two", [won(task="org/b"), lost(task="org/b")])

    def finish(tally: PairsTally, folder: Path) -> None:
        assert index_of(out)[0].task == "org/a"
        assert "mine" in names(out)

    pairs_of(two, out=out, overwrite=True, finish=finish)
    assert index_of(out)[0].task == "org/b"
    assert names(out) == {"README.md", "index.jsonl", "made.json", "train.jsonl"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_when_it_is_stopped(tmp_path: Path, error: type[BaseException]) -> None:
    run = make_run(tmp_path / "run", [won(), lost()])

    def stop(what: str, done: int, of: int | None) -> None:
        if what == "paired":
            raise error

    with pytest.raises(error):
        pairs_of(run, out=tmp_path / "out", on_progress=stop)
    assert names(tmp_path) == {"run"}


def test_a_run_is_never_replaced_by_its_pairs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "a", [won(), lost()])
    for out in (run, run.parent):
        with pytest.raises(RunFolderError, match="holds the run"):
            pairs_of(run, out=out, overwrite=True)
    assert (run / "run.json").exists()


def test_damage_is_counted_and_the_rest_is_paired(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", [won(3), lost(4)])
    b = make_run(tmp_path / "b", [won(), lost()])
    spoil(a)
    made = pairs_of(a, b, out=tmp_path / "out")
    assert made.written == 1
    assert len(made.damages) == 1
    (told,) = made_of(tmp_path / "out").damaged
    assert told.startswith("a/shards/000000.hrs: damaged"), "the run's name and not its place"


@pytest.mark.parametrize("name", ["000001.hrs", "notes.hrs"])
def test_a_foreign_shard_is_refused(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run", [won(), lost()])
    (run / "shards" / name).write_text("anything, and long enough to be looked at")
    with pytest.raises(RunFolderError, match="is not a shard.*move it elsewhere"):
        pairs_of(run, out=tmp_path / "out")
    assert names(tmp_path) == {"run"}


def test_a_torn_shard_gives_what_was_stored_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [won(), lost()])
    asyncio.run(store(run, [lost(2), lost(3)]))
    torn = run / "shards" / "000001.hrs"
    torn.write_bytes(torn.read_bytes()[:100])  # as a writer leaves it that was killed
    made = pairs_of(run, out=tmp_path / "out")
    assert (made.written, made.tally.made.attempts, made.damages) == (1, 2, ())


def test_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [won(), lost()])
    for wrong in ({"validation": float("nan")}, {"validation": 2.0}, {"gamma": -0.1}):
        with pytest.raises(UsageError, match="from 0 to 1"):
            pairs_of(run, out=tmp_path / "out", **wrong)


# --- what is counted ------------------------------------------------------------------------


def test_numbers_of_both_sides_are_of_the_same_pairs(tmp_path: Path) -> None:
    many = [
        won(task="org/a"), lost(task="org/a"),
        won(0, "ls", "cd x", "make", task="org/b"), lost(1, "rm", task="org/b"),
    ]  # fmt: skip
    tally = pairs_of(make_run(tmp_path / "run", many), out=tmp_path / "out").tally
    assert tally.groups == tally.outcomes.mixed == 2
    assert (tally.chosen.turns, tally.rejected.turns) == ((2, 3), (2, 1))
    assert (tally.chosen.rewards, tally.rejected.rewards) == ((1.0, 1.0), (0.0, 0.0))
    assert tally.chosen.scores == tally.chosen.rewards
    assert tally.chosen.sampled_tokens == (many[0].sampled_tokens, many[2].sampled_tokens)
    assert (tally.margins, tally.divergence_turns) == ((1.0, 1.0), (1, 0))


def test_of_very_many_numbers_some_are_kept_evenly_and_at_the_same_places() -> None:
    many = range(1000)
    kept = evenly(many, 10)
    assert kept == tuple(range(0, 1000, 100))
    assert evenly([-n for n in many], 10) == tuple(-n for n in kept)
    assert evenly(many, 1000) == tuple(many)
