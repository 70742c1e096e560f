"""The builders of the other tests: what they make is what a run leaves."""

from pathlib import Path

from tests.preferences.runs import Act, episode, said

from headrace.engine.reader import latest_episodes
from headrace.preferences.divergence import divergence
from headrace.preferences.source import Source


def test_a_made_run_reads_back_as_it_was_made(small_run: Path) -> None:
    found = list(latest_episodes(small_run))
    assert [(e.task, e.sample, e.verdict.reward) for e in found] == [
        ("org/a", 0, 1.0), ("org/a", 1, 0.0), ("org/b", 0, 1.0), ("org/b", 1, 1.0),
    ]  # fmt: skip
    source = Source([small_run])
    assert [attempt.pass_ratio for attempt, _ in source.episodes()] == [1.0, 0.5, 1.0, 1.0]
    assert source.tokenizers == ("smollm2-135m",)


def test_episodes_that_begin_alike_share_an_exact_prefix() -> None:
    a, b = episode(turns=said("ls", "make")), episode(turns=said("ls", "rm x"))
    shared = a.segments[0].spans[1].start
    assert divergence(a, b).tokens == shared
    assert a.segments[0].tokens()[:shared] == b.segments[0].tokens()[:shared]


def test_a_reset_and_a_step_begin_streams_of_their_own() -> None:
    one = episode(turns=[Act("a", "x"), Act("b", "y", reset=True), Act("c", "z", step="two")])
    assert [[span.turn for span in s.spans] for s in one.segments] == [[0], [1], [2]]
