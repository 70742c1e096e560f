"""What a trajectory is like, in a few numbers, for whoever picks among those that are kept.

Rule: read from one record, in time that grows with its text and no faster; of each observation at
most `OBSERVATION_BYTES` are looked at, half from either end. A score describes and leaves out
nothing.

    observation_use  share of the actions that use the observation before them, as in the Targeted
                     Observation Ratio of Terminal-Lego (arXiv 2606.03461); ours is by words
    recoveries       failed commands that a later one made up for
    turns            the policy's turns
    sampled_tokens   tokens it sampled; 0 without tokens
    problems         turns that could not be read as an action

An action is a turn with a command that is not blank; the first turn is none here, for no
observation is before it. It uses the last observation when one of its commands has a word of at
least `WORD_BYTES` bytes that is in that observation and was nowhere before it: neither in the
instruction, nor in what was shown earlier, nor in an earlier command. Words are what is left
between spaces, quotes, brackets, slashes and the signs of the shell, without the full stop of a
sentence. So a name out of a listing counts, and an answer that draws a conclusion in other words
does not.

A command failed when its exit code is not 0, when it timed out or lost its shell. Keystrokes have
no exit code: there a failure is a sign of one (`SIGNS`) in the last bytes that they printed, which
is a guess. A failure is made up for by a later command that succeeds and is of the same program,
or gives the same arguments to another one. Several failures of a program before its success are
one recovery. A search that finds nothing exits with 1, and is a failure here.
"""

import re
from typing import Final

from headrace.preferences.attempt import Attempt
from headrace.types import CommandResult, Episode, Turn

WORD_BYTES: Final = 4
OBSERVATION_BYTES: Final = 16_384
SIGN_BYTES: Final = 2_048
"""Of the end of an output, where signs of failure are looked for."""
COMMAND_CHARS: Final = 500
"""Of a command, where its program is looked for."""
SIGNS: Final = (
    b"command not found", b"No such file or directory", b"Permission denied",
    b"Traceback (most recent call last)", b"syntax error", b"fatal: ", b"error: ", b"Error: ",
)  # fmt: skip

_WORD: Final = frozenset(
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-+@%~"
) | frozenset(range(0x80, 0x100))
_SPACED: Final = bytes(byte if byte in _WORD else 0x20 for byte in range(0x100))
_SIMPLE = re.compile(r"&&|\|\||[;|\n]")
_BEFORE_PROGRAM: Final = frozenset(
    ("sudo", "env", "time", "nohup", "exec", "command", "then", "do")
)
_NO_PROGRAM: Final = frozenset(("cd", "export", "set", "source", ".", "if", "for", "while"))


def scores(attempt: Attempt, episode: Episode, *, costly: bool = True) -> dict[str, float]:
    """The scores by name, always the same ones; without `costly` only those that need no text."""
    found: dict[str, float] = {}
    if costly:
        found["observation_use"] = observation_use(episode)
        found["recoveries"] = float(recoveries(episode))
    found["turns"] = float(attempt.turns)
    found["sampled_tokens"] = float(attempt.sampled_tokens)
    found["problems"] = float(sum(bool(turn.problems) for turn in episode.turns))
    return found


def observation_use(episode: Episode) -> float:
    """The share of actions that use the last observation; 0.0 without an action after one."""
    known: set[bytes] = set()
    earlier = [f"{episode.instruction}\n{episode.opening}".encode()]
    """Texts whose words are not in `known` yet: most are never asked for."""
    actions = used = 0
    shown = b""
    for number, turn in enumerate(episode.turns):
        typed = _typed(turn)
        if typed is not None and number:
            actions += 1
            if any(word in shown for word in typed):
                for text in earlier:
                    known.update(_words(text))
                earlier.clear()
                used += any(word not in known for word in typed.intersection(_words(shown)))
        earlier.append(shown)
        known.update(typed or ())
        shown = _bounded(episode, number)
    return used / actions if actions else 0.0


def recoveries(episode: Episode) -> int:
    """How many failed commands a later one made up for."""
    by_program: dict[str, str] = {}
    by_arguments: dict[str, str] = {}
    found = 0
    for turn in episode.turns:
        for command, result in zip(turn.commands, turn.results, strict=False):
            program, arguments = _simple(command.text[:COMMAND_CHARS])
            if not program:
                continue
            if failed(result):
                by_program[program] = arguments
                if arguments:
                    by_arguments[arguments] = program
            elif program in by_program:
                found += 1
                by_arguments.pop(by_program.pop(program), None)
            elif arguments in by_arguments:
                found += 1
                by_program.pop(by_arguments.pop(arguments), None)
    return found


def failed(result: CommandResult) -> bool:
    """Whether a command failed; of keystrokes, whether it looks so."""
    if result.timed_out or result.shell_lost:
        return True
    if result.exit_code is not None:
        return result.exit_code != 0
    end = result.stdout[-SIGN_BYTES:]
    return any(sign in end for sign in SIGNS)


def _typed(turn: Turn) -> set[bytes] | None:
    """The words of a turn's commands; None where it has no command but blank ones."""
    text = "\n".join(command.text for command in turn.commands)
    return _words(text.encode()) if text and not text.isspace() else None


def _words(text: bytes) -> set[bytes]:
    spaced = (text.translate(_SPACED) + b" ").replace(b". ", b" ")  # a sentence ends
    return {word for word in spaced.split() if len(word) >= WORD_BYTES}


def _bounded(episode: Episode, turn: int) -> bytes:
    """What was shown after a turn, without its middle if that is long."""
    if turn >= len(episode.observations):
        return b""
    shown = episode.observations[turn].encode()
    if len(shown) <= OBSERVATION_BYTES:
        return shown
    half = OBSERVATION_BYTES // 2
    return shown[:half] + b"\n" + shown[-half:]


def _simple(text: str) -> tuple[str, str]:
    """Program and arguments of the first simple command that is of a program."""
    for part in _SIMPLE.split(text):
        words = part.split()
        while words and (words[0] in _BEFORE_PROGRAM or _is_assignment(words[0])):
            del words[0]
        if words and words[0] not in _NO_PROGRAM:
            return words[0], " ".join(words[1:])
    return "", ""


def _is_assignment(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and name.isidentifier()
