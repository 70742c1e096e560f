"""Marked hints: text that helped the policy to act, and that a model is not to learn to expect.

Rule: what stands between the marks, and the marks, go from what the policy was shown: instruction,
prompt, opening and observations. Its own words stay as they are, and so do its tokens: a stream
without the hint is another stream, which nobody sampled. So data with tokens leaves such an
episode out, and what is stripped here has no tokens any more.
"""

import msgspec

from headrace.types import Episode, Segment


def has_hints(episode: Episode, start: str) -> bool:
    """Whether the policy was shown a marked text."""
    return any(start in text for text in _shown(episode))


def without_hints(episode: Episode, start: str, end: str) -> Episode:
    """The episode as if no hint had been shown; the episode itself if none was.

    Its spans stay, for they tell contexts and sampled tokens; ids and log-probabilities go.
    """
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


def _shown(episode: Episode) -> tuple[str, ...]:
    return (episode.instruction, episode.prompt, episode.opening, *episode.observations)
