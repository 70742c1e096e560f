"""The policy with a fixed list of commands, or of a model's answers.

Rule: one turn each, whatever came of them. After the last command it is done; an answer is done
when it says so, read by an agent protocol as if a model had given it, and when none is left the
policy is done too.
"""

import tomllib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from headrace.configs.models import ScriptedConfig
from headrace.errors import ConfigError
from headrace.policies.base import Budget, NoServer
from headrace.policies.listed import NOTHING_LEFT, ListedSession
from headrace.policies.protocols.base import AgentProtocol, Parsed
from headrace.policies.protocols.confirm import session_protocol
from headrace.policies.protocols.instruction import instruction_of
from headrace.policies.protocols.registry import protocol
from headrace.policies.version import version_of
from headrace.types import Action, Command, CommandResult, Record, Task

MAX_SCRIPT_BYTES = 16 << 20
_LISTS = ("commands", "answers")


class Lines(Record, frozen=True, kw_only=True):
    """What is done in one task: commands, or answers."""

    commands: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()


class Script(Record, frozen=True, kw_only=True):
    """Lines for all tasks, and for single ones."""

    lines: Lines = Lines()
    tasks: dict[str, Lines] = {}
    """By task name, with or without its organisation; instead of `lines`."""

    def lines_of(self, task: Task) -> Lines:
        for name in (task.name, task.name.rpartition("/")[2]):
            if name in self.tasks:
                return self.tasks[name]
        return self.lines


class ScriptedPolicy(NoServer):
    """Runs the commands of a script, or gives its answers."""

    name = "scripted"

    def __init__(self, config: ScriptedConfig) -> None:
        """Reads the script file, if there is one; `ConfigError` says what is wrong with it."""
        script = Script() if config.script is None else read_script(Path(config.script))
        own = Lines(commands=config.commands, answers=config.answers)
        self.script = Script(
            lines=_joined(script.lines, own, "policy"),
            tasks={name: _joined(lines, own, name) for name, lines in script.tasks.items()},
        )
        if self.script == Script():
            raise ConfigError(
                "policy.commands: expected policy.commands, policy.answers or policy.script, found"
                " nothing to do; the policy that does nothing is noop"
            )
        self._protocol = protocol(config.protocol)
        has_answers = any(x.answers for x in (self.script.lines, *self.script.tasks.values()))
        self.terminal = has_answers and self._protocol.terminal
        self._confirm = config.confirm
        read_by = (
            [self._protocol.name, self._protocol.version, config.confirm] if has_answers else []
        )
        self.version = version_of(name=self.name, rules=2, script=self.script, read_by=read_by)

    @asynccontextmanager
    async def session(
        self, task: Task, sample: int
    ) -> "AsyncIterator[ListedSession | AnswersSession]":
        lines = self.script.lines_of(task)
        if lines.answers:
            agent = session_protocol(self._protocol, confirm=self._confirm)
            yield AnswersSession(agent, task, lines.answers)
        else:
            yield ListedSession(_actions(lines.commands))

    async def __aenter__(self) -> "ScriptedPolicy":
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


class AnswersSession:
    """Gives a model's answers one by one, and is told what came of them as the model would be."""

    def __init__(self, agent: AgentProtocol, task: Task, answers: Sequence[str]) -> None:
        self.prompt = self.opening = agent.opening(instruction_of(task))
        self._agent = agent
        self._left = iter(answers)
        self._previous: Parsed | None = None
        self._shown = ""

    async def act(self, results: Sequence[CommandResult], budget: Budget) -> Action:
        if self._previous is not None:
            self._shown = self._agent.observe(self._previous, results)
        text = next(self._left, None)
        if text is None:
            return NOTHING_LEFT
        parsed = self._previous = self._agent.parse(text)
        return Action(
            text=text,
            commands=parsed.commands,
            done=parsed.done,
            problems=parsed.problems,
            warnings=parsed.warnings,
        )

    def observation(self) -> str:
        return self._shown


def _joined(lines: Lines, more: Lines, where: str) -> Lines:
    both = Lines(commands=lines.commands + more.commands, answers=lines.answers + more.answers)
    if both.commands and both.answers:
        raise ConfigError(f"policy.commands: {where}: expected commands or answers, found both")
    if any("\0" in command for command in both.commands):
        raise ConfigError("policy.commands: a command has a NUL character")
    return both


def _actions(commands: Sequence[str]) -> list[Action]:
    """One action per command; the last one says it is done."""
    last = len(commands) - 1
    return [
        Action(text=text, commands=(Command(text=text),), done=number == last)
        for number, text in enumerate(commands)
    ]


def read_script(path: Path) -> Script:
    """A script file: `commands` or `answers` for all tasks, and `[tasks."NAME"]` with its own."""
    try:
        if not path.is_file():
            raise ConfigError(f"policy.script: expected a TOML file, found nothing at {path}")
        if path.stat().st_size > MAX_SCRIPT_BYTES:
            raise ConfigError(f"policy.script: {path} is larger than {MAX_SCRIPT_BYTES} bytes")
        document = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise ConfigError(f"policy.script: {path} is not UTF-8 at byte {e.start}") from None
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"policy.script: {path}: broken TOML: {e}") from None
    except OSError as e:
        raise ConfigError(f"policy.script: {path}: {e.strerror}") from None
    _refuse_unknown(document, {*_LISTS, "tasks"}, path, "")
    tasks = document.get("tasks", {})
    if not isinstance(tasks, dict):
        raise ConfigError(f"policy.script: {path}: tasks: expected tables of task names")
    own: dict[str, Lines] = {}
    for name, table in tasks.items():
        where = f"tasks.{name!r}"
        if not isinstance(table, dict):
            raise ConfigError(f"policy.script: {path}: {where}: expected a table")
        _refuse_unknown(table, set(_LISTS), path, f"{where}.")
        own[name] = _lines(table, path, f"{where}.")
    return Script(lines=_lines(document, path, ""), tasks=own)


def _refuse_unknown(table: Mapping[str, Any], known: set[str], path: Path, where: str) -> None:
    for key in table.keys() - known:
        expected = " or ".join(sorted(known))
        raise ConfigError(f"policy.script: {path}: unknown key {where}{key}; expected {expected}")


def _lines(table: Mapping[str, Any], path: Path, where: str) -> Lines:
    return Lines(**{name: _texts(table, name, path, where) for name in _LISTS})


def _texts(table: Mapping[str, Any], name: str, path: Path, where: str) -> tuple[str, ...]:
    texts = table.get(name, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"policy.script: {path}: {where}{name}: expected a list of texts")
    return tuple(texts)
