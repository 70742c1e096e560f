"""Terminus-2's JSON answers: keystrokes for a terminal.

Rule: an answer is read as Terminus-2's parser reads it, and where that parser gives up on a slip
with one reasonable meaning, the slip is mended with a warning. A command the text ends within is
never run; those before it are. Keystrokes are typed as they stand: without a line break at its end
a line is not entered, and a text that is one key name (`C-c`, `Up`) is that key. `duration` is the
longest wait, not a sleep: the terminal returns when it is idle.

What differs from Terminus-2 on purpose: reasoning up to `</think>` is skipped, and reasoning that
never ends is no answer; `analysis` and `plan` may be missing and the fields may have any order;
completion is not asked for twice; the first message holds no screen, which is an empty prompt.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headrace.policies.protocols.base import Parsed
from headrace.policies.protocols.lenient_json import Reading, readings
from headrace.policies.protocols.observation import screen_observation
from headrace.policies.protocols.reasoning import encodable, split_reasoning
from headrace.policies.version import version_of
from headrace.types import Command, CommandResult

REVISION = 2
"""Raised when the rules of reading or observing change."""
DEFAULT_S = 1.0
LONGEST_S = 60.0
LEAST_S = 0.1
"""Enough for the keys to be taken up; for a duration of nothing, or less."""

OPENING = """\
You solve the task below in a Linux terminal (160x40): what you type goes to a login shell.
Answer with one JSON object and nothing else:
{{"analysis": "what you know so far", "plan": "what to do next", \
"commands": [{{"keystrokes": "ls -la\\n", "duration": 1.0}}], "task_complete": false}}
Keystrokes are typed as they are: end a command with \\n. Keystrokes that are one key name are \
that key: "C-c", "C-d", "Escape", "Up".
"duration" is the longest wait in seconds, at most 60; it is over sooner when the command ends. \
Empty keystrokes only wait.
Set "task_complete" to true only when the task is solved and checked: it ends your work.
The terminal shows an empty prompt.

Task:
{instruction}"""
REMINDER = (
    'Answer with one JSON object: {"analysis": "...", "plan": "...", '
    '"commands": [{"keystrokes": "...\\n", "duration": 1.0}], "task_complete": false}'
)

_FIELDS = ("analysis", "plan", "commands", "task_complete")
_KEY_NAMES = frozenset(
    "Enter Escape Tab BTab Space BSpace Up Down Left Right Home End PageUp PageDown PgUp PgDn "
    "NPage PPage IC DC".split()
) | {f"F{n}" for n in range(1, 13)}


class TerminusJson:
    """The `terminus-json` protocol."""

    name = "terminus-json"
    terminal = True

    def __init__(self) -> None:
        self.version = version_of(name=self.name, opening=OPENING, rules=REVISION)

    def opening(self, instruction: str) -> str:
        return OPENING.format(instruction=instruction.strip())

    def parse(self, text: str) -> Parsed:
        text = encodable(text)
        split = split_reasoning(text)
        if split.unfinished:
            return Parsed(problems=("the answer ended inside <think>: no JSON object followed",))
        reading, failure = _find(split.answer)
        answer = split.answer
        if reading is None and split.has_reasoning:  # a command may hold the text `</think>`
            answer = text
            reading, _ = _find(text)
        if reading is None or reading.value is None:
            return Parsed(problems=(failure,))
        notes = _Notes()
        for repair in reading.repairs:
            notes.warn(f"mended {repair}")
        _around(answer, reading, notes)
        return _parsed(reading.value, reading.cut, notes)

    def observe(self, previous: Parsed, results: Sequence[CommandResult]) -> str:
        return screen_observation(previous, results, REMINDER)

    def schema(self) -> dict[str, Any] | None:
        command = {
            "type": "object",
            "properties": {"keystrokes": {"type": "string"}, "duration": {"type": "number"}},
            "required": ["keystrokes", "duration"],
            "additionalProperties": False,
        }
        return {
            "type": "object",
            "properties": {
                "analysis": {"type": "string", "maxLength": 600},
                "plan": {"type": "string", "maxLength": 600},
                "commands": {"type": "array", "items": command},
                "task_complete": {"type": "boolean"},
            },
            "required": list(_FIELDS),
            "additionalProperties": False,
        }

    def grammar(self) -> str | None:
        return None


class _Notes:
    """Problems and warnings of one answer, in order, each once."""

    def __init__(self) -> None:
        self.problems: dict[str, None] = {}
        self.warnings: dict[str, None] = {}

    def problem(self, message: str) -> None:
        self.problems[message] = None

    def warn(self, message: str) -> None:
        self.warnings[message] = None


def _find(text: str) -> tuple[Reading | None, str]:
    """The first object that looks like an answer, and what to say when there is none."""
    farthest: Reading | None = None
    seen: Reading | None = None
    for reading in _strict(text) or readings(text):
        if reading.value is None:
            if farthest is None or reading.end - reading.start > farthest.end - farthest.start:
                farthest = reading
        elif _is_answer(reading.value):
            return reading, ""
        elif seen is None:
            seen = reading
    if farthest is not None:
        return None, f"the JSON object cannot be read: {farthest.error}"
    if seen is not None and seen.cut:
        return None, 'the answer ended before its "commands"'
    if seen is not None:
        return None, 'the JSON object has no "commands"'
    return None, "no JSON object found"


def _strict(text: str) -> list[Reading]:
    """The common case, much faster: the text is one object without slips."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return []
    return [Reading(0, len(text), value)] if _is_answer(value) else []


def _is_answer(value: Any) -> bool:
    return isinstance(value, dict) and ("commands" in value or "task_complete" in value)


def _around(answer: str, reading: Reading, notes: _Notes) -> None:
    if answer[: reading.start].strip():
        notes.warn("text before the JSON object was ignored")
    after = answer[reading.end :]
    if after.strip():
        notes.warn("text after the JSON object was ignored")
    if '"commands"' in after:
        notes.warn("only the first JSON object was used; give one per answer")


def _parsed(fields: Mapping[str, Any], cut: bool, notes: _Notes) -> Parsed:
    for name in ("analysis", "plan"):
        if name not in fields:
            notes.warn(f'"{name}" is missing')
        elif not isinstance(fields[name], str):
            notes.warn(f'"{name}" should be a string')
    for name in fields:
        if name not in _FIELDS:
            notes.warn(f"unknown field {encodable(name)[:40]!r} was ignored")
    done = _task_complete(fields.get("task_complete", False), notes)
    commands = _commands(fields, cut, notes)
    if notes.problems and done:  # nothing to run is no reason to go on
        notes.warnings.update(notes.problems)
        notes.problems.clear()
        commands = []
    if notes.problems:
        return Parsed(problems=tuple(notes.problems), warnings=tuple(notes.warnings))
    return Parsed(commands=tuple(commands), done=done, warnings=tuple(notes.warnings))


def _task_complete(value: Any, notes: _Notes) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value.strip().lower() in ("true", "1", "yes")
    notes.warn('"task_complete" should be true or false')
    return bool(value)


def _commands(fields: Mapping[str, Any], cut: bool, notes: _Notes) -> list[Command]:
    if "commands" not in fields:
        notes.problem('"commands" is missing')
        return []
    items = fields["commands"]
    if not isinstance(items, list):
        notes.problem(f'"commands" must be a list, found {_kind(items)}')
        return []
    if cut and items and isinstance(items[-1], dict) and "keystrokes" not in items[-1]:
        items = items[:-1]
        notes.warn("the answer ended inside a command; that command was not run")
        if not items:
            notes.problem("the answer ended inside its first command")
    commands = []
    for number, item in enumerate(items, 1):
        command = _command(number, item, number == len(items), notes)
        if command is not None:
            commands.append(command)
    return commands


def _command(number: int, item: Any, last: bool, notes: _Notes) -> Command | None:
    if not isinstance(item, dict):
        notes.problem(f"command {number} must be an object, found {_kind(item)}")
        return None
    keystrokes = item.get("keystrokes")
    if not isinstance(keystrokes, str):
        notes.problem(f'command {number} needs "keystrokes", a string')
        return None
    for name in item:
        if name not in ("keystrokes", "duration"):
            notes.warn(f"command {number}: unknown field {encodable(name)[:40]!r} was ignored")
    duration = _duration(number, item.get("duration"), notes)
    return _typed(number, encodable(keystrokes), duration, last, notes)


def _duration(number: int, value: Any, notes: _Notes) -> float:
    if value is None:
        notes.warn(f'command {number} has no "duration"; {DEFAULT_S:g} s was used')
        return DEFAULT_S
    if isinstance(value, bool) or not isinstance(value, int | float):
        notes.warn(f'command {number}: "duration" should be a number of seconds')
        return DEFAULT_S
    if isinstance(value, float) and not math.isfinite(value):
        notes.warn(f'command {number}: "duration" should be finite')
        return DEFAULT_S
    return min(max(LEAST_S, float(value)), LONGEST_S)


def _typed(
    number: int, keystrokes: str, duration: float, last: bool, notes: _Notes
) -> Command | None:
    if "\0" in keystrokes:
        notes.problem(f'command {number} has a NUL character; the key for it is "C-Space"')
        return None
    bare = keystrokes.strip()
    if bare != keystrokes and "-" in bare and _is_key(bare):
        notes.warn(f"command {number}: {bare} was typed as text; a key is sent without \\n")
    elif keystrokes and not last and not (keystrokes.endswith("\n") or _is_key(keystrokes)):
        notes.warn(f"command {number} has no \\n at its end; the next was typed on the same line")
    return Command(text=keystrokes, timeout_s=duration, keys=True)


def _is_key(text: str) -> bool:
    if text in _KEY_NAMES:
        return True
    head, dash, key = text.rpartition("-")
    return (
        bool(dash)
        and head in ("C", "M", "S", "C-M", "M-C", "C-S")
        and (len(key) == 1 or key in _KEY_NAMES)
    )


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), "a number")
