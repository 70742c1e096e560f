"""`task.toml` of a Harbor task, interpreted.

Rule: pure, from the parsed document to `Fields`. A known field of a wrong type or value is a
`TaskError` with its dotted path; an unknown key is a warning with the nearest known name; a field
that is read but not acted on yet is listed as inert when it asks for something. Reading files is
the work of `harbor.py`.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from headrace.errors import TaskError
from headrace.types import Record

KNOWN = {
    "": "schema_version version task metadata verifier agent environment solution source "
    "multi_step_reward_strategy steps artifacts",
    "task": "name version description authors keywords",
    "agent": "timeout_sec user network_mode allowed_hosts",
    "verifier": "timeout_sec env user network_mode allowed_hosts environment_mode environment "
    "collect",
    "environment": "network_mode allowed_hosts build_timeout_sec docker_image os cpus memory_mb "
    "storage_mb gpus gpu_types tpu mcp_servers env skills_dir healthcheck workdir allow_internet "
    "memory storage",
    "solution": "env",
}
_INERT = {
    "": "artifacts",
    "agent": "network_mode allowed_hosts",
    "verifier": "network_mode allowed_hosts collect",
    "environment": "allowed_hosts storage_mb storage gpus gpu_types tpu mcp_servers skills_dir "
    "healthcheck",
}
_NETWORK_MODES = {"public": "public", "no-network": "none", "allowlist": "allowlist"}
MAX_ENV_BYTES = 16 << 10
"""Of one `env` table, so that two of them fit into the script of one command."""
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMG])(iB?|B)?", re.IGNORECASE)
_MB = {"K": 1 / 1024, "M": 1.0, "G": 1024.0}
_TEMPLATE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?\}", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Fields(Record, frozen=True, kw_only=True):
    """What a task.toml says, defaults filled in, templates resolved."""

    name: str | None
    docker_image: str | None
    workdir: str | None
    env: dict[str, str]
    cpus: float | None
    memory_mb: int | None
    storage_mb: int | None
    network: str
    build_timeout_s: float
    agent_timeout_s: float | None
    agent_user: str | None
    verifier_timeout_s: float
    verifier_env: dict[str, str]
    verifier_user: str | None
    solution_env: dict[str, str]
    category: str | None
    difficulty: str | None
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    inert: tuple[str, ...]
    warnings: tuple[str, ...]


def interpret(document: Mapping[str, Any], environ: Mapping[str, str]) -> Fields:
    """The fields of a parsed task.toml. `environ` fills `${VAR}` values."""
    warnings: list[str] = []
    root = _Table(document, "", warnings)
    environment, agent = root.table("environment"), root.table("agent")
    verifier, solution = root.table("verifier"), root.table("solution")
    tables = {"": root, "task": root.table("task"), "agent": agent, "verifier": verifier}
    tables |= {"environment": environment, "solution": solution}
    for table in tables.values():
        table.warn_of_unknown()
    _refuse_what_comes_later(root, environment, verifier)
    metadata = _plain(root.table("metadata").values)
    return Fields(
        name=_name(tables["task"]),
        docker_image=environment.string("docker_image"),
        workdir=_workdir(environment),
        env=_resolved(environment, environ, required=True),
        cpus=environment.amount("cpus"),
        memory_mb=_size_mb(environment, "memory"),
        storage_mb=_size_mb(environment, "storage"),
        network=_network(environment),
        build_timeout_s=environment.seconds("build_timeout_sec") or 600.0,
        agent_timeout_s=agent.seconds("timeout_sec"),
        agent_user=agent.user(),
        verifier_timeout_s=verifier.seconds("timeout_sec") or 600.0,
        verifier_env=_resolved(verifier, environ, required=True),
        verifier_user=verifier.user(),
        solution_env=_resolved(solution, environ, required=False),
        category=_label(metadata, "category"),
        difficulty=_label(metadata, "difficulty"),
        tags=_tags(metadata.get("tags")),
        metadata=metadata,
        inert=tuple(_inert(tables)),
        warnings=tuple(warnings),
    )


class _Table:
    """Typed access to one table; every error carries the dotted path."""

    def __init__(self, values: Mapping[str, Any], path: str, warnings: list[str]) -> None:
        self.values = values
        self.path = path
        self.warnings = warnings

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def warn(self, key: str, message: str) -> None:
        self.warnings.append(f"{self.at(key)}: {message}")

    def wrong(self, key: str, expected: str) -> TaskError:
        return TaskError(f"{self.at(key)}: expected {expected}, found {_show(self.values[key])}")

    def warn_of_unknown(self) -> None:
        known = KNOWN[self.path].split()
        for key in self.values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                self.warnings.append(f"unknown key {self.at(key)!r}{hint}")

    def table(self, key: str) -> "_Table":
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "a table")
        return _Table(value, self.at(key), self.warnings)

    def string(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is None or value == "":
            return None
        if not isinstance(value, str) or not value.isprintable():
            raise self.wrong(key, "a line of text")
        return value

    def number(self, key: str) -> float | None:
        value = self.values.get(key)
        if value is None:
            return None
        number = _number(value)
        if number is None:
            raise self.wrong(key, "a finite number")
        if isinstance(value, str):
            self.warn(key, f"the number {value!r} is written as text")
        return number

    def seconds(self, key: str) -> float | None:
        number = self.number(key)
        if number is not None and number <= 0:
            raise self.wrong(key, "more than 0 seconds")
        return number

    def amount(self, key: str) -> float | None:
        """A limit: positive, or 0 for none."""
        number = self.number(key)
        if number is not None and number < 0:
            raise self.wrong(key, "no negative number")
        if number == 0:
            self.warn(key, "0 is read as no limit")
        return number or None

    def user(self) -> str | None:
        value = self.values.get("user")
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return str(value)
        return self.string("user")


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _refuse_what_comes_later(root: _Table, environment: _Table, verifier: _Table) -> None:
    os_name = environment.values.get("os", "linux")
    if not isinstance(os_name, str) or os_name.lower() not in ("linux", "windows"):
        raise environment.wrong("os", '"linux" or "windows"')
    if os_name.lower() == "windows":
        raise TaskError('environment.os = "windows": only Linux tasks can be run')
    if root.values.get("steps"):
        raise TaskError("steps: tasks of several steps cannot be run yet; this one has [[steps]]")
    mode = verifier.values.get("environment_mode")
    if mode not in (None, "shared", "separate"):
        raise verifier.wrong("environment_mode", '"shared" or "separate"')
    if mode == "shared" and "environment" in verifier.values:
        raise TaskError('verifier.environment_mode = "shared" contradicts [verifier.environment]')
    if mode == "separate" or "environment" in verifier.values:
        raise TaskError("verifier.environment: verifiers in an image of their own cannot run yet")


def _name(task: _Table) -> str | None:
    name = task.string("name")
    if name is None:
        return None
    if ".." in name or name.startswith("/"):
        raise task.wrong("name", "org/name without '..'")
    if not _NAME.fullmatch(name):
        task.warn("name", f"{_show(name)} is not of the form org/name")
    return name


def _workdir(environment: _Table) -> str | None:
    workdir = environment.string("workdir")
    if workdir is not None and not workdir.startswith("/"):
        raise environment.wrong("workdir", "an absolute path")
    return workdir


def _network(environment: _Table) -> str:
    mode, values = environment.values.get("network_mode"), environment.values
    if mode is not None:
        if not isinstance(mode, str) or mode not in _NETWORK_MODES:
            raise environment.wrong("network_mode", '"public", "no-network" or "allowlist"')
        if mode != "allowlist" and values.get("allowed_hosts"):
            raise TaskError(
                f"environment.allowed_hosts needs network_mode = 'allowlist', found {mode!r}"
            )
        return _NETWORK_MODES[mode]
    if values.get("allowed_hosts"):
        raise TaskError(
            "environment.allowed_hosts needs network_mode = 'allowlist', and none is given"
        )
    allowed = values.get("allow_internet")
    if allowed is not None and not isinstance(allowed, bool):
        raise environment.wrong("allow_internet", "true or false")
    return "none" if allowed is False else "public"


def _size_mb(environment: _Table, legacy: str) -> int | None:
    """`memory_mb` or `storage_mb`, else the older `memory = "2G"` form."""
    key = f"{legacy}_mb"
    amount = environment.amount(key)
    size = None if amount is None else math.ceil(amount)
    old = environment.values.get(legacy)
    if old is None:
        return size
    if isinstance(old, int) and not isinstance(old, bool):
        environment.warn(legacy, f"an integer has no unit and is ignored; write {key} = ...")
        return size
    match = _SIZE.fullmatch(old) if isinstance(old, str) else None
    if match is None or len(match[1]) > 15:
        raise environment.wrong(legacy, 'a size such as "2G", "512M" or "1024K"')
    if match[3]:
        environment.warn(legacy, f"{old!r} is read as {old[: -len(match[3])]!r}")
    old_mb = math.ceil(float(match[1]) * _MB[match[2].upper()])
    if size is not None and size != old_mb:
        raise TaskError(f"environment.{legacy} = {old!r} contradicts environment.{key} = {size}")
    return old_mb or None


def _resolved(table: _Table, environ: Mapping[str, str], *, required: bool) -> dict[str, str]:
    """The table's `env`, with whole-value templates filled from `environ`."""
    env = table.table("env")
    resolved = {}
    for key, value in env.values.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise env.wrong(key, "text")
        if not (key.isidentifier() and key.isascii()):
            raise TaskError(
                f"{env.path}: expected names of shell variables (letters, digits and _), "
                f"found {_show(key)}"
            )
        text = str(value)
        if template := _TEMPLATE.fullmatch(text):
            found = environ.get(template[1], template[2])
            if found is None and required:
                raise TaskError(
                    f"{env.at(key)}: the variable {template[1]} is not set here and has no "
                    f"default; set it, or write ${{{template[1]}:-default}}"
                )
            if found is None:
                env.warn(key, f"left out: the variable {template[1]} is not set here")
                continue
            if template[1] in environ:
                env.warn(key, f"takes the variable {template[1]} of this machine")
            text = found
        if "\0" in text:
            raise env.wrong(key, "text without NUL")
        resolved[key] = text
    size = sum(len(name.encode()) + len(text.encode()) for name, text in resolved.items())
    if size > MAX_ENV_BYTES:
        raise TaskError(
            f"{env.path}: expected at most {MAX_ENV_BYTES} bytes of variables, found {size}; "
            "put long values into a file of the task"
        )
    return resolved


def _inert(tables: Mapping[str, _Table]) -> Iterable[str]:
    for path, keys in _INERT.items():
        table = tables[path]
        yield from (table.at(key) for key in keys.split() if table.values.get(key))


def _label(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) and value else None


def _tags(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    return tuple(item for item in items if isinstance(item, str))


def _plain(value: Any) -> Any:
    """`value` with dates and huge integers as text, so that it can be stored anywhere."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -(1 << 63) <= value < 1 << 63 else hex(value)
    return value if isinstance(value, str | bool | float) else str(value)


def _show(value: Any) -> str:
    text = repr(value if isinstance(value, str) else msgspec.to_builtins(_plain(value)))
    return text if len(text) <= 60 else text[:57] + "..."
