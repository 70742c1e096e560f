"""An agent protocol for models that cannot use a shell: whatever they say is one of a few commands.

Rule: the text decides which, so that the same text gives the same command; words to the model and
what it is told of the results are those of `shell-block`. It is for the load of a real run with a
small model, or with one that has no weights, and says nothing about what a model can do.
"""

import zlib
from collections.abc import Sequence
from typing import Any

from bench.episodes import COMMANDS

from headrace.policies.protocols.base import Parsed
from headrace.policies.protocols.shell_block import ShellBlock
from headrace.policies.version import version_of
from headrace.types import Command, CommandResult


class AnyText:
    """See `AgentProtocol`. It never says that the task is done: the turns end an episode."""

    name = "any-text"
    terminal = False

    def __init__(self) -> None:
        self._words = ShellBlock()
        self.version = version_of(name=self.name, words=self._words.version, commands=COMMANDS)

    def opening(self, instruction: str) -> str:
        return self._words.opening(instruction)

    def parse(self, text: str) -> Parsed:
        chosen = zlib.crc32(text.encode(errors="replace")) % len(COMMANDS)
        return Parsed(commands=(Command(text=COMMANDS[chosen]),))

    def observe(self, previous: Parsed, results: Sequence[CommandResult]) -> str:
        return self._words.observe(previous, results)

    def schema(self) -> dict[str, Any] | None:
        return None

    def grammar(self) -> str | None:
        return None
