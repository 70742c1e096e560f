"""The seam of every agent protocol: from a model's text to commands, and from results to text.

Rule: pure and stateless. `parse` never raises, whatever the text; what it cannot read is a
`problems` entry that `observe` tells the model. It renders no chat template and makes no tokens:
that is the policy's work.

Completion takes one step: an answer that says the task is done ends the episode after its
commands have run. `confirm.py` asks once more, around any protocol, with its state per session.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from headrace.types import Command, CommandResult, Record


class Parsed(Record, frozen=True, kw_only=True):
    """A model's answer, read."""

    commands: tuple[Command, ...] = ()
    """To run in order. Empty whenever `problems` is not."""
    done: bool = False
    """The answer says the task is finished."""
    problems: tuple[str, ...] = ()
    """Why nothing of the answer could be acted on."""
    warnings: tuple[str, ...] = ()
    """What was odd or repaired; the rest was acted on."""


class AgentProtocol(Protocol):
    """One way to talk to a model about a shell."""

    name: str
    version: str
    """Digest of its words and rules; part of the policy's version."""
    terminal: bool
    """Whether its commands are keystrokes for a terminal, not commands of the shell."""

    def opening(self, instruction: str) -> str:
        """The first user message."""

    def parse(self, text: str) -> Parsed:
        """What the model's answer asks for. Never raises."""

    def observe(self, previous: Parsed, results: Sequence[CommandResult]) -> str:
        """The next user message: what came of the commands of `previous`.

        The output of the commands together is cut from the middle to 10,000 bytes.
        """

    def schema(self) -> dict[str, Any] | None:
        """A JSON schema that every answer fits (vLLM: `structured_outputs.json`), or None."""

    def grammar(self) -> str | None:
        """An EBNF grammar that every answer fits (vLLM: `structured_outputs.grammar`), or None."""
