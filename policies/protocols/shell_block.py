"""One fenced shell block per turn.

Rule: the first complete block marked `bash`, `sh`, `shell` or not at all is the command, as it
stands; further ones are ignored with a warning. The line `DONE` outside every block ends the
episode, after the block's command if there is one. An answer with neither is a problem, and so is
a block without its closing fence: its end may be missing, so it is not run. Blocks of other
languages are ignored. A block that must hold a line of three backticks is fenced with four.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from headrace.policies.protocols.base import Parsed
from headrace.policies.protocols.observation import observation
from headrace.policies.protocols.reasoning import encodable, split_reasoning
from headrace.policies.version import version_of
from headrace.types import Command, CommandResult

REVISION = 2
"""Raised when the rules of reading or observing change."""
DONE = "DONE"
SHELLS = frozenset({"", "bash", "sh", "shell"})

OPENING = """\
You solve a task in a Linux shell. Answer with one block of shell commands, from ```bash to ```. \
You then see what they printed, and answer again. The shell keeps its directory and variables. \
Nothing can be typed into a running program. When the task is solved and checked, answer with the \
line DONE and no block.

Task:
{instruction}"""
REMINDER = "Answer with one ```bash block, or with the line DONE when the task is solved."

GRAMMAR = r"""root ::= (thought "\n")? (block | "DONE")
thought ::= [^`\n]{1,300}
block ::= "```bash\n" command "\n" "\n"? (line "\n" "\n"?)* "```"
command ::= [^`#\n \t] [^\n]*
line ::= [^`\n] [^\n]*
"""
"""A block begins with a command, not a comment: a small model left free fills blocks with those."""

_FENCE = re.compile(r"[ ]{0,3}(`{3,})[ \t]*([^\s`]*)[^`]*")


class _Block(msgspec.Struct):
    language: str
    lines: list[str]
    closed: bool = False


class ShellBlock:
    """The `shell-block` protocol."""

    name = "shell-block"
    terminal = False

    def __init__(self) -> None:
        self.version = version_of(name=self.name, opening=OPENING, rules=REVISION)

    def opening(self, instruction: str) -> str:
        return OPENING.format(instruction=instruction.strip())

    def parse(self, text: str) -> Parsed:
        split = split_reasoning(encodable(text))
        if split.unfinished:
            return Parsed(problems=("the answer ended inside <think>: no block followed",))
        done = False
        blocks: list[_Block] = []
        for part in _parts(split.answer):
            if isinstance(part, _Block):
                blocks.append(part)
            else:
                done = done or part.strip() == DONE
        return _parsed(blocks, done)

    def observe(self, previous: Parsed, results: Sequence[CommandResult]) -> str:
        return observation(previous, results, REMINDER)

    def schema(self) -> dict[str, Any] | None:
        return None

    def grammar(self) -> str | None:
        return GRAMMAR


def _parts(text: str) -> Iterator[str | _Block]:
    """The lines outside blocks, and the blocks, in order."""
    block: _Block | None = None
    fence = ""
    for line in text.replace("\r\n", "\n").split("\n"):
        mark = _FENCE.fullmatch(line)
        if block is None:
            if mark is None:
                yield line
            else:
                block, fence = _Block(mark[2].lower(), []), mark[1]
        elif mark is not None and not mark[2] and len(mark[1]) >= len(fence):
            block.closed = True
            yield block
            block = None
        else:
            block.lines.append(line)
    if block is not None:
        yield block


def _parsed(blocks: Sequence[_Block], done: bool) -> Parsed:
    shell = [block for block in blocks if block.language in SHELLS]
    warnings = [
        f"the {language} block was ignored; only bash blocks are run"
        for language in dict.fromkeys(b.language for b in blocks if b.language not in SHELLS)
    ]
    if len(shell) > 1:
        warnings.append(f"only the first of {len(shell)} blocks was used; give one per answer")
    problem = _problem(shell[0]) if shell else None
    if problem is not None and done:
        warnings.append(problem)
    elif problem is not None:
        return Parsed(problems=(problem,), warnings=tuple(warnings))
    elif not shell and not done:
        return Parsed(problems=("no bash block and no DONE found",), warnings=tuple(warnings))
    commands = (Command(text="\n".join(shell[0].lines)),) if shell and problem is None else ()
    return Parsed(commands=commands, done=done, warnings=tuple(warnings))


def _problem(block: _Block) -> str | None:
    if not block.closed:
        return "the bash block has no closing ```"
    text = "\n".join(block.lines)
    if not text.strip():
        return "the bash block is empty"
    if "\0" in text:
        return "the bash block has a NUL character; a shell cannot take it"
    return None
