"""The runs that data is made of: read once, found again, refused together where they differ."""

import asyncio
from pathlib import Path

import pytest
from tests.preferences.runs import Act, digest_of, episode, make_run, said, spoil, store

from headrace.errors import RunFolderError
from headrace.preferences.attempt import attempt
from headrace.preferences.source import Source
from headrace.types import StopReason, VerdictFault


def test_an_attempt_says_what_its_record_says(tmp_path: Path) -> None:
    whole = episode(
        "org/a",
        3,
        0.25,
        tests={"t2": False, "t1": True, "t3": "skipped", "t4": "error"},
        turns=said("ls", "make all"),
        stop=StopReason.AGENT_TIMEOUT,
        category="coding",
    )
    ((found, read),) = Source([make_run(tmp_path / "a", [whole])]).episodes()
    assert read == whole
    assert (found.task, found.task_digest, found.sample) == ("org/a", digest_of("org/a"), 3)
    assert (found.run, found.reward, found.category) == (0, 0.25, "coding")
    assert found.pass_ratio == 1 / 3
    assert found.passed == 0b001, "tests in the order of their names, without skipped ones"
    assert (found.turns, found.contexts, found.counted) == (2, 1, True)
    assert found.tokens == len(whole.segments[0].token_ids) // 4
    assert found.sampled_tokens == whole.sampled_tokens == 2 + 3
    assert found.out_of_time


def test_the_same_tests_have_the_same_digest_whatever_became_of_them(tmp_path: Path) -> None:
    tests = [{"a": True, "b": False}, {"b": True, "a": False}, {"a": True}, {}]
    run = make_run(tmp_path / "a", [episode(sample=i, tests=t) for i, t in enumerate(tests)])
    first, second, other, none = [found.tests for found, _ in Source([run]).episodes()]
    assert first == second != other
    assert none == b""


def test_a_context_is_a_token_stream_or_a_step(tmp_path: Path) -> None:
    turns = [Act("a", "x"), Act("b", "y", reset=True)]
    steps = [Act("a", "x", step="one"), Act("b", "y", step="two")]
    many = [
        episode(sample=0, turns=turns),
        episode(sample=1, turns=steps, tokens=False),
        episode(sample=2, turns=turns, tokens=False),
        episode(sample=3, turns=()),
    ]
    source = Source([make_run(tmp_path / "a", many)])
    assert [found.contexts for found, _ in source.episodes()] == [2, 2, 1, 0]


def test_what_the_infrastructure_failed_does_not_count(tmp_path: Path) -> None:
    many = [
        episode(sample=0, fault=VerdictFault.INFRASTRUCTURE),
        episode(sample=1, stop=StopReason.CANCELLED),
        episode(sample=2, fault=VerdictFault.VERIFIER),
    ]
    source = Source([make_run(tmp_path / "a", many)])
    assert [found.counted for found, _ in source.episodes()] == [False, False, True]


def test_every_attempt_is_found_again_by_its_place(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, [episode(sample=i, turns=said(name, str(i))) for i in range(5)])
        for name in ("a", "b")
    ]
    source = Source(runs)
    both = list(source.episodes())
    assert [found.run for found, _ in both] == [0] * 5 + [1] * 5
    for found, read in reversed(both):
        assert source.fetch(found) == read
        assert found == attempt(read, found.run, found.place)


def test_the_newest_record_of_an_attempt_is_read(tmp_path: Path) -> None:
    old = episode(sample=0, fault=VerdictFault.INFRASTRUCTURE)
    run = make_run(tmp_path / "a", [old, episode(sample=1)])
    asyncio.run(store(run, [episode(sample=0, tries=2)]))
    found = [(one.sample, one.counted) for one, _ in Source([run]).episodes()]
    assert found == [(1, True), (0, True)]


# --- what does not belong together ----------------------------------------------------------


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nothing is not a run: expected a folder with"):
        Source([tmp_path / "nothing"])


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [episode()])
    with pytest.raises(RunFolderError, match="expected each run once, found"):
        Source([run, run])


def test_several_policies_are_refused_with_the_list(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", [episode()])
    b = make_run(tmp_path / "b", [episode(policy_version="b" * 64)])
    with pytest.raises(RunFolderError) as e:
        Source([a, b])
    assert str(e.value).splitlines() == [
        "expected runs of one policy, found 2:",
        f"  {a}: vllm aaaaaaaaaaaa",
        f"  {b}: vllm bbbbbbbbbbbb",
        "Give runs of one policy, or --allow-mixed-policies for off-policy data; it is recorded"
        " with what is made",
    ]
    assert Source([a, b], allow_mixed_policies=True).mixed


def test_several_policies_in_one_run_are_refused_as_those_of_several_runs(tmp_path: Path) -> None:
    """An imported folder may hold what several agents did."""
    run = make_run(tmp_path / "a", [episode(), episode(sample=1, policy_version="b" * 64)])
    with pytest.raises(RunFolderError) as e:
        list(Source([run]).episodes())
    assert str(e.value) == (
        f"expected attempts of one policy, found vllm aaaaaaaaaaaa and vllm bbbbbbbbbbbb in {run}."
        " Give runs of one policy, or --allow-mixed-policies for off-policy data; it is recorded"
        " with what is made"
    )
    assert len(list(Source([run], allow_mixed_policies=True).episodes())) == 2


def test_several_tokenizers_are_refused_with_the_list(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", [episode()])
    b = make_run(tmp_path / "b", [episode()], model="/models/other")
    with pytest.raises(RunFolderError, match="expected runs of one tokenizer, found 2:"):
        Source([a, b])
    source = Source([a, b], allow_mixed_policies=True)
    assert source.tokenizers == ("smollm2-135m", "/models/other")


def test_two_runs_of_one_policy_belong_together(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, [episode()], model=None) for name in ("a", "b")]
    source = Source(runs)
    assert not source.mixed
    assert source.tokenizers == ("unknown",)


# --- what cannot be read --------------------------------------------------------------------


def test_damage_is_kept_and_the_rest_is_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [episode(sample=0)])
    spoil(run)
    source = Source([run, make_run(tmp_path / "b", [episode(sample=1)])])
    assert [found.sample for found, _ in source.episodes()] == [1]
    (damage,) = source.damages
    assert damage.shard == str(run / "shards" / "000000.hrs")


def test_a_foreign_shard_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [episode()])
    (run / "shards" / "notes.hrs").write_text("mine")
    with pytest.raises(RunFolderError, match=r"notes\.hrs is not a shard"):
        list(Source([run]).episodes())
