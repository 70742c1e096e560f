"""Marked hints: text that helped the policy to act, and that a model is not to learn to expect.

Rule: what stands between the marks, and the marks, go from what the policy was shown: instruction,
prompt, opening and observations; and from what commands printed, which observations are made of.
Its own words stay as they are, and so do its tokens: a stream without the hint is another stream,
which nobody sampled. So data with tokens leaves such an episode out, and what is stripped here has
no tokens any more.
"""

from collections.abc import Iterator

import msgspec

from headrace.types import CommandResult, Episode, Segment, Turn


def has_hints(episode: Episode, start: str) -> bool:
    """Whether the policy was shown a marked text."""
    return any(start in text for text in _shown(episode))


def without_hints(episode: Episode, start: str, end: str) -> Episode:
    """The episode as if there had been no hint; the episode itself if there was none.

    Its spans stay, for they tell contexts and sampled tokens; ids and log-probabilities go if a
    hint was shown.
    """
    mark = start.encode()
    if any(mark in printed for turn in episode.turns for printed in _printed(turn)):
        turns = tuple(_quiet(turn, start, end) for turn in episode.turns)
        episode = msgspec.structs.replace(episode, turns=turns)
    if not has_hints(episode, start):
        return episode
    return msgspec.structs.replace(
        episode,
        instruction=stripped(episode.instruction, start, end),
        prompt=stripped(episode.prompt, start, end),
        opening=stripped(episode.opening, start, end),
        observations=tuple(stripped(text, start, end) for text in episode.observations),
        segments=tuple(
            Segment(token_ids=b"", logprobs=b"", spans=segment.spans)
            for segment in episode.segments
        ),
    )


def stripped(text: str, start: str, end: str) -> str:
    """`text` without what is marked. A mark that is never closed reaches to the end.

    A hint on lines of its own leaves no empty line.
    """
    at = text.find(start)
    if at < 0:
        return text
    kept: list[str] = []
    begin = 0
    while at >= 0:
        kept.append(text[begin:at])
        close = text.find(end, at + len(start))
        begin = len(text) if close < 0 else close + len(end)
        own_lines = (at == 0 or text[at - 1] == "\n") and text[begin : begin + 1] == "\n"
        begin += own_lines
        at = text.find(start, begin)
    kept.append(text[begin:])
    return "".join(kept)


def _printed(turn: Turn) -> Iterator[bytes]:
    for result in turn.results:
        yield from (result.stdout, result.stderr, result.screen or b"")


def _quiet(turn: Turn, start: str, end: str) -> Turn:
    results = tuple(_without(result, start, end) for result in turn.results)
    return msgspec.structs.replace(turn, results=results)


def _without(result: CommandResult, start: str, end: str) -> CommandResult:
    def clean(data: bytes) -> bytes:
        text = data.decode("utf-8", "surrogateescape")  # whatever bytes: the same come back
        return stripped(text, start, end).encode("utf-8", "surrogateescape")

    screen = None if result.screen is None else clean(result.screen)
    return msgspec.structs.replace(
        result, stdout=clean(result.stdout), stderr=clean(result.stderr), screen=screen
    )


def _shown(episode: Episode) -> tuple[str, ...]:
    return (episode.instruction, episode.prompt, episode.opening, *episode.observations)
