"""An episode as conversations: what the policy was shown and what it said, in turn.

Rule: text as it was stored, nothing rendered and nothing tokenised. A conversation is one context:
a later step of a task, and a context that was reset, begin another one.
"""

from collections.abc import Iterator
from typing import NamedTuple

from headrace.types import Episode


class Said(NamedTuple):
    """One turn of a conversation."""

    turn: int
    """Of the episode."""
    shown: str
    """What the policy was shown before it; of the first turn, the opening."""
    text: str


class Conversation(NamedTuple):
    """One context, its turns in order; never empty."""

    number: int
    """Of the context in its episode, from 0."""
    said: tuple[Said, ...]

    def messages(self, start: int = 0, end: int | None = None) -> list[dict[str, str]]:
        """User and assistant messages of turns `[start, end)` of this conversation, by position."""
        out: list[dict[str, str]] = []
        for one in self.said[start:end]:
            out.append({"role": "user", "content": one.shown})
            out.append({"role": "assistant", "content": one.text})
        return out


def conversations(episode: Episode) -> tuple[Conversation, ...]:
    """Every context of an episode; none for an episode without turns."""
    return tuple(
        Conversation(number, tuple(_said(episode, turns)))
        for number, turns in enumerate(_contexts(episode))
    )


def _contexts(episode: Episode) -> list[list[int]]:
    """The turns of each context. A turn without tokens belongs with the one before it."""
    begins = {s.spans[0].turn for s in episode.segments[1:] if s.spans}
    found: list[list[int]] = []
    for number, turn in enumerate(episode.turns):
        new_step = number > 0 and turn.step != episode.turns[number - 1].step
        if not found or number in begins or new_step:
            found.append([])
        found[-1].append(number)
    return found


def _said(episode: Episode, turns: list[int]) -> Iterator[Said]:
    for number in turns:
        yield Said(number, _shown(episode, number), episode.turns[number].text)


def _shown(episode: Episode, turn: int) -> str:
    if turn == 0:
        return episode.opening or episode.prompt or episode.instruction
    return episode.observations[turn - 1] if turn <= len(episode.observations) else ""
