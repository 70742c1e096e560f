"""`task.toml` of a Harbor task, interpreted.

Rule: pure, from the parsed document to `Fields`. A known field of a wrong type or value is a
`TaskError` with its dotted path; an unknown key is a warning with the nearest known name; a field
that is read but not acted on is listed as inert when it asks for something. Reading files is the
work of `harbor.py`.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.errors import TaskError
from headrace.tasks import harbor_environment
from headrace.tasks.harbor_fields import artifacts, collect_hooks, healthcheck, overlaps, variables
from headrace.tasks.harbor_network import phase_network
from headrace.tasks.keyed import plain, show
from headrace.tasks.toml_table import Table
from headrace.types import (
    AgentRecipe,
    Artifact,
    CollectHook,
    EnvironmentRecipe,
    HealthCheck,
    NetworkPolicy,
    Record,
)

ROOT = (
    "schema_version version task metadata verifier agent environment solution source "
    "multi_step_reward_strategy steps artifacts"
)
TASK = "name version description authors keywords"
AGENT = "timeout_sec user network_mode allowed_hosts"
VERIFIER = "timeout_sec env user network_mode allowed_hosts environment_mode environment collect"
STEP = "name agent verifier min_reward healthcheck artifacts"
MAX_STEPS = 1000
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NOT_IN_A_NAME = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
_DEVICE = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(?:COM|LPT)[1-9¹²³])", re.IGNORECASE)


class VerifierFields(Record, frozen=True, kw_only=True):
    """`[verifier]` of a task or a step; None and empty where it says nothing."""

    timeout_s: float | None
    env: dict[str, str]
    user: str | None
    network: NetworkPolicy | None
    separate: bool | None
    environment: EnvironmentRecipe | None
    collect: tuple[CollectHook, ...]


class StepFields(Record, frozen=True, kw_only=True):
    """One of `[[steps]]`."""

    name: str
    agent: AgentRecipe
    verifier: VerifierFields
    min_reward: dict[str, float]
    healthcheck: HealthCheck | None
    artifacts: tuple[Artifact, ...]


class Fields(Record, frozen=True, kw_only=True):
    """What a task.toml says, defaults filled in, templates resolved."""

    name: str | None
    environment: EnvironmentRecipe
    agent: AgentRecipe
    verifier: VerifierFields
    solution_env: dict[str, str]
    steps: tuple[StepFields, ...]
    reward_strategy: str
    artifacts: tuple[Artifact, ...]
    category: str | None
    difficulty: str | None
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    inert: tuple[str, ...]
    warnings: tuple[str, ...]


def interpret(document: Mapping[str, Any], environ: Mapping[str, str]) -> Fields:
    """The fields of a parsed task.toml. `environ` fills `${VAR}` values."""
    warnings: list[str] = []
    root = Table(document, "", warnings).expect(ROOT)
    environment = root.table("environment")
    metadata = plain(root.table("metadata").values)
    steps = _steps(root, environ)
    fields = Fields(
        name=_name(root.table("task").expect(TASK)),
        environment=harbor_environment.environment(environment, environ),
        agent=_agent(root.table("agent")),
        verifier=_verifier(root.table("verifier"), environ),
        solution_env=variables(root.table("solution").expect("env"), environ, required=False),
        steps=steps,
        reward_strategy=_strategy(root, bool(steps)),
        artifacts=artifacts(root),
        category=_label(metadata, "category"),
        difficulty=_label(metadata, "difficulty"),
        tags=_tags(metadata.get("tags")),
        metadata=metadata,
        inert=tuple(harbor_environment.inert(environment)),
        warnings=(),
    )
    for step in steps or (None,):
        warnings += overlaps((*fields.artifacts, *(step.artifacts if step else ())))
    return msgspec.structs.replace(fields, warnings=tuple(dict.fromkeys(warnings)))


def _name(task: Table) -> str | None:
    name = task.string("name")
    if name is None:
        return None
    if ".." in name or name.startswith("/"):
        raise task.wrong("name", "org/name without '..'")
    if not _NAME.fullmatch(name):
        task.warn("name", f"{show(name)} is not of the form org/name")
    return name


def _agent(table: Table) -> AgentRecipe:
    table.expect(AGENT)
    return AgentRecipe(
        timeout_s=table.seconds("timeout_sec"), user=table.user(), network=phase_network(table)
    )


def _verifier(table: Table, environ: Mapping[str, str]) -> VerifierFields:
    table.expect(VERIFIER)
    mode = table.values.get("environment_mode")
    if mode not in (None, "shared", "separate"):
        raise table.wrong("environment_mode", '"shared" or "separate"')
    given = "environment" in table.values
    if mode == "shared" and given:
        raise TaskError(
            f'{table.at("environment_mode")} = "shared" contradicts [{table.at("environment")}]'
        )
    own = harbor_environment.environment(table.table("environment"), environ) if given else None
    return VerifierFields(
        timeout_s=table.seconds("timeout_sec"),
        env=variables(table, environ, required=True),
        user=table.user(),
        network=phase_network(table),
        separate=True if given else None if mode is None else mode == "separate",
        environment=own,
        collect=collect_hooks(table),
    )


def _steps(root: Table, environ: Mapping[str, str]) -> tuple[StepFields, ...]:
    tables = root.tables("steps")
    if len(tables) > MAX_STEPS:
        raise TaskError(f"steps: expected at most {MAX_STEPS}, found {len(tables)}")
    found: dict[str, StepFields] = {}
    for table in tables:
        step = _step(table.expect(STEP), environ)
        key = unicodedata.normalize("NFC", step.name).casefold()
        if key in found:
            raise TaskError(
                f"{table.at('name')}: {step.name!r} is the name of another step, "
                f"{found[key].name!r}, on some file system; rename one"
            )
        found[key] = step
    return tuple(found.values())


def _step(table: Table, environ: Mapping[str, str]) -> StepFields:
    return StepFields(
        name=_step_name(table),
        agent=_agent(table.table("agent")),
        verifier=_verifier(table.table("verifier"), environ),
        min_reward=_min_reward(table),
        healthcheck=healthcheck(table),
        artifacts=artifacts(table),
    )


def _step_name(table: Table) -> str:
    """A name that is a folder's on every host."""
    name = table.values.get("name")
    if (
        not isinstance(name, str)
        or not name.strip()
        or name.endswith((".", " "))
        or _NOT_IN_A_NAME.search(name)
        or _DEVICE.fullmatch(name.partition(".")[0].rstrip(" "))
        or len(name.encode()) > 255
        or not name.isprintable()
    ):
        raise table.wrong("name", "the name of a folder under steps/ that every system takes")
    return name


def _min_reward(table: Table) -> dict[str, float]:
    if not isinstance(table.values.get("min_reward"), dict):
        least = table.number("min_reward")
        return {} if least is None else {"reward": least}
    by_key = table.table("min_reward")
    found = {key: by_key.number(key) for key in by_key.values}
    return {key: least for key, least in found.items() if least is not None}


def _strategy(root: Table, has_steps: bool) -> str:
    strategy = root.values.get("multi_step_reward_strategy", "mean")
    if strategy not in ("mean", "final"):
        raise root.wrong("multi_step_reward_strategy", '"mean" or "final"')
    if not has_steps and "multi_step_reward_strategy" in root.values:
        root.warn("multi_step_reward_strategy", "not used: the task has no [[steps]]")
    return str(strategy)


def _label(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) and value else None


def _tags(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    return tuple(item for item in items if isinstance(item, str))
