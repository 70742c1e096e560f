"""`task.yaml` and `solution.yaml` of Terminal-Bench 1.0, interpreted.

Rule: pure, from the parsed document to `Fields`. What the official harness accepts is accepted
with its defaults; what it refuses is read with a warning where it can mean one thing only, else it
is a `TaskError` with the key. An unknown key is a warning with the nearest known name. Reading
files is the work of `terminal_bench_1.py`.
"""

import difflib
from typing import Any

from headrace.errors import TaskError
from headrace.tasks.keyed import Keyed, plain, show
from headrace.types import Command, Record

PARSERS = ("pytest", "swebench", "swelancer", "mlebench", "sweperf")
DIFFICULTIES = ("easy", "medium", "hard", "unknown")
AGENT_TIMEOUT_S, TEST_TIMEOUT_S = 360.0, 60.0
KEYSTROKES_TIMEOUT_S = 180.0
SHORTEST_WAIT_S = 0.1
"""Between two lines of keystrokes: about what the official harness takes by itself."""
KNOWN = (
    "instruction",
    "author_name",
    "author_email",
    "difficulty",
    "category",
    "tags",
    "parser_name",
    "max_agent_timeout_sec",
    "max_test_timeout_sec",
    "run_tests_in_same_shell",
    "disable_asciinema",
    "estimated_duration_sec",
    "expert_time_estimate_min",
    "junior_time_estimate_min",
)
_KEYSTROKES = ("command", "min_timeout_sec", "max_timeout_sec", "block", "append_enter")
_WORDS = {"true": True, "yes": True, "on": True, "1": True,
          "false": False, "no": False, "off": False, "0": False}  # fmt: skip


class Fields(Record, frozen=True, kw_only=True):
    """What a task.yaml says, defaults filled in."""

    instruction: str
    difficulty: str | None
    category: str
    tags: tuple[str, ...]
    parser: str
    agent_timeout_s: float
    test_timeout_s: float
    same_shell: bool
    metadata: dict[str, Any]
    """Every other key, known or not."""
    warnings: tuple[str, ...]


def interpret(document: Any) -> Fields:
    """The fields of a parsed task.yaml."""
    table = _Table(document, "")
    instruction = _instruction(table)
    table.warn_of_unknown(KNOWN, but={"description", "descriptions"})
    for key in ("author_name", "author_email"):
        table.text(key, "unknown")
    for key in ("estimated_duration_sec", "expert_time_estimate_min", "junior_time_estimate_min"):
        table.number(key)
    table.boolean("disable_asciinema")
    return Fields(
        instruction=instruction,
        difficulty=_difficulty(table),
        category=table.text("category", "software_engineering"),
        tags=_tags(table),
        parser=_parser(table),
        agent_timeout_s=table.seconds("max_agent_timeout_sec", AGENT_TIMEOUT_S),
        test_timeout_s=table.seconds("max_test_timeout_sec", TEST_TIMEOUT_S),
        same_shell=table.boolean("run_tests_in_same_shell"),
        metadata={
            key: plain(value)
            for key, value in table.values.items()
            if key not in ("instruction", "description", "descriptions")
        },
        warnings=tuple(table.warnings),
    )


def keystrokes(document: Any) -> tuple[tuple[Command, ...], tuple[str, ...]]:
    """What a parsed solution.yaml types, and warnings."""
    if not isinstance(document, list) or not document:
        raise TaskError(f"expected a list of commands, found {show(document)}")
    commands: list[Command] = []
    warnings: list[str] = []
    for number, item in enumerate(document):
        table = _Table(item, f"[{number}]")
        table.warn_of_unknown(_KEYSTROKES)
        commands += _typed(table)
        warnings += table.warnings
    return tuple(commands), tuple(warnings)


class _Table(Keyed):
    """Typed access to one mapping; every error carries the key."""

    def __init__(self, values: Any, path: str) -> None:
        if values is None:
            raise TaskError(f"{path}: nothing is said" if path else "the file says nothing")
        if not isinstance(values, dict):
            raise TaskError(f"{path or 'the document'}: expected keys and values, "
                            f"found {show(values)}")  # fmt: skip
        super().__init__(values, path, [])

    def text(self, key: str, default: str) -> str:
        value = self.values.get(key)
        if value is None:
            if key in self.values:
                self.warn(key, f"empty; {default!r} is taken")
            return default
        if isinstance(value, bool | int | float):
            self.warn(key, f"{value!r} is read as text")
            return str(value)
        if not isinstance(value, str):
            raise self.wrong(key, "text")
        return value

    def seconds(self, key: str, default: float, *, zero: bool = False) -> float:
        number = self.number(key)
        if number is None:
            if key in self.values:
                self.warn(key, f"empty; {default:g} is taken")
            return default
        if number < 0 or (number == 0 and not zero):
            raise self.wrong(key, "more than 0 seconds")
        return number

    def boolean(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        if value is None or isinstance(value, bool):
            if value is None and key in self.values:
                self.warn(key, f"empty; {str(default).lower()} is taken")
            return default if value is None else value
        word = str(value).strip().lower() if isinstance(value, str | int) else ""
        if word not in _WORDS:
            raise self.wrong(key, "true or false")
        self.warn(key, f"{value!r} is read as {str(_WORDS[word]).lower()}")
        return _WORDS[word]


def _instruction(table: _Table) -> str:
    key, value = "instruction", table.values.get("instruction")
    old = [name for name in ("description", "descriptions") if name in table.values]
    if isinstance(value, str) and (texts := _descriptions_named(table, value)):
        table.warn(key, f"{show(value)} names a description; all {len(texts)} are the instruction, "
                   "where the official harness gives the word alone")  # fmt: skip
        return "\n\n".join(texts)
    if value is not None:
        table.warnings += [f"{name}: not used, for there is an instruction" for name in old]
    elif isinstance(table.values.get("description"), str):
        key, value = "description", table.values["description"]
        table.warn(key, "taken for the instruction, which is missing")
    elif "descriptions" in table.values:
        key, value = "descriptions", _base_description(table)
        table.warn(key, "the older form; its base description is the instruction")
    if value is None:
        raise TaskError("instruction: expected text, found nothing")
    if not isinstance(value, str):
        raise table.wrong(key, "text")
    if not value.strip():
        raise TaskError(f"{key}: the instruction is empty")
    return value


def _descriptions_named(table: _Table, word: str) -> list[str]:
    """All descriptions, where `word` is the key of one and not an instruction by itself."""
    entries = table.values.get("descriptions")
    entries = [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    if word.strip() not in [entry.get("key") for entry in entries]:
        return []
    texts = [entry.get("description") for entry in entries]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]


def _base_description(table: _Table) -> str:
    """The entry whose key is `base`, or the only one."""
    found = table.values["descriptions"]
    entries = found if isinstance(found, list) else []
    dicts = [entry for entry in entries if isinstance(entry, dict)]
    chosen = [entry for entry in dicts if entry.get("key") == "base"] or entries
    if len(chosen) == 1:
        entry = chosen[0]
        value = entry.get("description") if isinstance(entry, dict) else entry
        if isinstance(value, str):
            return value
    raise table.wrong("descriptions", "one description, or one with `key: base`")


def _difficulty(table: _Table) -> str | None:
    value = table.values.get("difficulty")
    if value is None:
        table.warnings.append("difficulty: missing; the official harness refuses that")
        return None
    if not isinstance(value, str) or not value.strip():
        raise table.wrong("difficulty", "easy, medium, hard or unknown")
    word = value.strip().lower()
    if value not in DIFFICULTIES:
        table.warn("difficulty", f"{show(value)} is none of {', '.join(DIFFICULTIES)}; "
                   f"it is read as {show(word)}")  # fmt: skip
    return word


def _tags(table: _Table) -> tuple[str, ...]:
    value = table.values.get("tags", [])
    if value is None:
        table.warn("tags", "empty; none are taken")
        return ()
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int | float) for item in items):
        raise table.wrong("tags", "a list of words")
    if items is not value or not all(isinstance(item, str) for item in items):
        table.warn("tags", f"expected a list of words, found {show(value)}")
    return tuple(str(item) for item in items)


def _parser(table: _Table) -> str:
    name = table.text("parser_name", "pytest")
    if name not in PARSERS:
        near = difflib.get_close_matches(name, PARSERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TaskError(f"parser_name: expected one of {', '.join(PARSERS)}, "
                        f"found {show(name)}{hint}")  # fmt: skip
    return name


def _typed(table: _Table) -> list[Command]:
    """One entry of solution.yaml. One that does not block waits its least time, as officially."""
    text = table.values.get("command")
    if not isinstance(text, str):
        raise TaskError(f"{table.at('command')}: expected text, found {show(text)}")
    shortest = table.seconds("min_timeout_sec", 0.0, zero=True)
    longest = table.seconds("max_timeout_sec", KEYSTROKES_TIMEOUT_S)
    wait_s = longest if table.boolean("block") else max(shortest, SHORTEST_WAIT_S)
    if not table.boolean("append_enter", True):
        return [Command(text=text, keys=True, timeout_s=wait_s)] if text else []
    enter = Command(text="Enter", keys=True, timeout_s=wait_s)  # a key: editors tell it from \n
    return [Command(text=text, keys=True, timeout_s=SHORTEST_WAIT_S), enter] if text else [enter]
