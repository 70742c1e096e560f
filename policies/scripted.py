"""The policy with a fixed list of commands: one per turn, then done, whatever came of them."""

import tomllib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from headrace.configs.models import ScriptedConfig
from headrace.errors import ConfigError
from headrace.policies.listed import ListedSession
from headrace.policies.version import version_of
from headrace.types import Action, Command, Record, Task

MAX_SCRIPT_BYTES = 16 << 20


class Script(Record, frozen=True, kw_only=True):
    """Commands for all tasks, and for single ones."""

    commands: tuple[str, ...] = ()
    tasks: dict[str, tuple[str, ...]] = {}
    """By task name, with or without its organisation; instead of `commands`."""

    def commands_of(self, task: Task) -> tuple[str, ...]:
        for name in (task.name, task.name.rpartition("/")[2]):
            if name in self.tasks:
                return self.tasks[name]
        return self.commands


class ScriptedPolicy:
    """Runs the commands of a script."""

    name = "scripted"

    def __init__(self, config: ScriptedConfig) -> None:
        """Reads the script file, if there is one; `ConfigError` says what is wrong with it."""
        script = Script() if config.script is None else read_script(Path(config.script))
        commands = script.commands + config.commands
        tasks = {name: own + config.commands for name, own in script.tasks.items()}
        for command in [*commands, *(c for own in tasks.values() for c in own)]:
            if "\0" in command:
                raise ConfigError("policy.commands: a command has a NUL character")
        self.script = Script(commands=commands, tasks=tasks)
        self.version = version_of(name=self.name, rules=1, script=self.script)

    @asynccontextmanager
    async def session(self, task: Task, sample: int) -> AsyncIterator[ListedSession]:
        yield ListedSession(_actions(self.script.commands_of(task)))

    async def __aenter__(self) -> "ScriptedPolicy":
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


def _actions(commands: Sequence[str]) -> list[Action]:
    """One action per command; the last one says it is done."""
    last = len(commands) - 1
    return [
        Action(text=text, commands=(Command(text=text),), done=number == last)
        for number, text in enumerate(commands)
    ]


def read_script(path: Path) -> Script:
    """A script file: `commands = [...]` and `[tasks."NAME"] commands = [...]`."""
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
    _refuse_unknown(document, {"commands", "tasks"}, path, "")
    tasks = document.get("tasks", {})
    if not isinstance(tasks, dict):
        raise ConfigError(f"policy.script: {path}: tasks: expected tables of task names")
    own: dict[str, tuple[str, ...]] = {}
    for name, table in tasks.items():
        where = f"tasks.{name!r}"
        if not isinstance(table, dict):
            raise ConfigError(f"policy.script: {path}: {where}: expected a table")
        _refuse_unknown(table, {"commands"}, path, f"{where}.")
        own[name] = _commands(table, path, f"{where}.")
    return Script(commands=_commands(document, path, ""), tasks=own)


def _refuse_unknown(table: Mapping[str, Any], known: set[str], path: Path, where: str) -> None:
    for key in table.keys() - known:
        expected = " or ".join(sorted(known))
        raise ConfigError(f"policy.script: {path}: unknown key {where}{key}; expected {expected}")


def _commands(table: Mapping[str, Any], path: Path, where: str) -> tuple[str, ...]:
    commands = table.get("commands", [])
    if not isinstance(commands, list) or not all(isinstance(c, str) for c in commands):
        raise ConfigError(f"policy.script: {path}: {where}commands: expected a list of texts")
    return tuple(commands)
