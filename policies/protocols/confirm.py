"""Completion asked for twice, as Terminus-2 does it, around any agent protocol.

Rule: the first answer that says the task is done is acted on and asked about; a second one in a row
ends the episode. An answer that goes on working takes the first back; one that cannot be read does
not. It holds that state, so each session has one of its own.
"""

from collections.abc import Sequence
from typing import Any

from msgspec import structs

from headrace.policies.protocols.base import AgentProtocol, Parsed
from headrace.types import CommandResult

QUESTION = """\
You said the task is done. It will be graded as it is now, and nothing can be changed after that.
If that is right, say once more that it is done; else go on."""


class Confirming:
    """An `AgentProtocol` for one session."""

    def __init__(self, agent: AgentProtocol) -> None:
        self.name = agent.name
        self.version = agent.version
        self.terminal = agent.terminal
        self._agent = agent
        self._asked = False

    def opening(self, instruction: str) -> str:
        return self._agent.opening(instruction)

    def parse(self, text: str) -> Parsed:
        parsed = self._agent.parse(text)
        if parsed.done and not self._asked:
            self._asked = True
            return structs.replace(parsed, done=False)
        if not parsed.done and not parsed.problems:
            self._asked = False
        return parsed

    def observe(self, previous: Parsed, results: Sequence[CommandResult]) -> str:
        shown = self._agent.observe(previous, results)
        return f"{shown}\n\n{QUESTION}" if self._asked and not previous.problems else shown

    def schema(self) -> dict[str, Any] | None:
        return self._agent.schema()

    def grammar(self) -> str | None:
        return self._agent.grammar()


def session_protocol(agent: AgentProtocol, *, confirm: bool) -> AgentProtocol:
    """`agent` for one session, confirming or as it is."""
    return Confirming(agent) if confirm else agent
