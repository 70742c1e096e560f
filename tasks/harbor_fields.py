"""The smaller tables of a task.toml: health checks, MCP servers, artifacts, hooks, variables.

Rule: pure, from a `Table` to the record of the same thing in `types`. What is wrong is a
`TaskError` with its dotted path.
"""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from headrace.errors import TaskError
from headrace.tasks.keyed import show
from headrace.tasks.toml_table import Table
from headrace.types import Artifact, CollectHook, HealthCheck, McpServer

MAX_ENV_BYTES = 16 << 10
"""Of one `env` table, so that two of them fit into the script of one command."""
MAX_ARTIFACTS = 1000
MANIFEST = "manifest.json"
_TRANSPORTS = {
    "sse": "sse",
    "stdio": "stdio",
    "streamable-http": "streamable-http",
    "http": "streamable-http",
}
_SERVICE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_TEMPLATE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?\}", re.DOTALL)


def healthcheck(parent: Table) -> HealthCheck | None:
    """The `healthcheck` of an environment or a step."""
    if "healthcheck" not in parent.values:
        return None
    table = parent.table("healthcheck").expect(
        "command interval_sec timeout_sec start_period_sec start_interval_sec retries"
    )
    retries = table.count("retries")
    if retries == 0:
        table.warn("retries", "0 is read as 1: the first failure counts")
    return HealthCheck(
        command=table.text("command"),
        interval_s=table.pause("interval_sec", 5.0),
        timeout_s=table.seconds("timeout_sec") or 30.0,
        start_period_s=table.pause("start_period_sec", 0.0),
        start_interval_s=table.pause("start_interval_sec", 5.0),
        retries=3 if retries is None else max(1, retries),
    )


def mcp_servers(environment: Table) -> tuple[McpServer, ...]:
    """The tool servers of an environment."""
    found: dict[str, McpServer] = {}
    for table in environment.tables("mcp_servers"):
        server = _mcp_server(table.expect("name transport url command args headers"))
        if server.name in found:
            table.warn("name", f"{server.name!r} is there twice; the last one counts")
        found[server.name] = server
    return tuple(found.values())


def _mcp_server(table: Table) -> McpServer:
    transport = table.values.get("transport", "sse")
    if not isinstance(transport, str) or transport not in _TRANSPORTS:
        raise table.wrong("transport", '"stdio", "sse" or "streamable-http"')
    name = table.string("name")
    if name is None:
        raise table.wrong("name", "a name")
    server = McpServer(
        name=name,
        transport=_TRANSPORTS[transport],
        url=table.string("url"),
        command=table.string("command"),
        args=table.strings("args"),
    )
    headers = table.table("headers").values
    if not all(isinstance(value, str) for value in headers.values()):
        raise table.wrong("headers", "a table of texts")
    if server.transport == "stdio" and server.command is None:
        raise table.wrong("command", 'the program of a server with transport "stdio"')
    if server.transport != "stdio" and server.url is None:
        raise table.wrong("url", f'the address of a server with transport "{server.transport}"')
    return server


def artifacts(parent: Table) -> tuple[Artifact, ...]:
    """The `artifacts` of a task or a step: texts, and tables."""
    value = parent.values.get("artifacts", [])
    if not isinstance(value, list):
        raise parent.wrong("artifacts", "a list of paths and tables")
    if len(value) > MAX_ARTIFACTS:
        raise parent.wrong("artifacts", f"at most {MAX_ARTIFACTS} entries")
    found = []
    for i, item in enumerate(value):
        path = f"{parent.at('artifacts')}[{i}]"
        if not isinstance(item, str | dict):
            raise TaskError(f"{path}: expected a path or a table, found {show(item)}")
        values = {"source": item} if isinstance(item, str) else item
        found.append(_artifact(Table(values, path, parent.warnings)))
    return tuple(found)


def _artifact(table: Table) -> Artifact:
    table.expect("source destination exclude service")
    source = table.string("source")
    if source is None or ".." in PurePosixPath(source).parts:
        raise table.wrong("source", "a path of the sandbox without '..'")
    service = _service(table)
    if service != "main" and not source.startswith("/"):
        raise table.wrong("source", f"an absolute path, because it is of the service {service!r}")
    return Artifact(
        source=source,
        destination=_destination(table),
        exclude=table.strings("exclude"),
        service=service,
    )


def _destination(table: Table) -> str | None:
    destination = table.string("destination")
    if destination is None:
        return None
    path = PurePosixPath(destination)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in destination:
        raise table.wrong("destination", "a relative path without '..' and backslashes")
    if destination.rstrip("/") == MANIFEST:
        raise table.wrong("destination", f"another name: {MANIFEST} lists the artifacts")
    return destination


def overlaps(entries: tuple[Artifact, ...]) -> list[str]:
    """Warnings about entries that would be kept at one place; the first of them counts."""
    found = []
    places: dict[PurePosixPath, Artifact] = {}
    for one in entries:
        first = places.setdefault(_kept_at(one), one)
        if (first.source, first.service) != (one.source, one.service):
            found.append(
                f"artifacts: {first.source!r} and {one.source!r} are both kept at "
                f"{str(_kept_at(one))!r}; the first one counts"
            )
    return found


def _kept_at(artifact: Artifact) -> PurePosixPath:
    return PurePosixPath((artifact.destination or artifact.source).lstrip("/"))


def collect_hooks(verifier: Table) -> tuple[CollectHook, ...]:
    """`[[verifier.collect]]`."""
    return tuple(
        CollectHook(
            command=table.expect("command service timeout_sec user").text("command"),
            service=_service(table),
            timeout_s=table.seconds("timeout_sec") or 60.0,
            user=table.user(),
        )
        for table in verifier.tables("collect")
    )


def _service(table: Table) -> str:
    service = (table.string("service") or "main").strip()
    if not _SERVICE.fullmatch(service):
        raise table.wrong("service", "the name of a compose service")
    return service


def variables(parent: Table, environ: Mapping[str, str], *, required: bool) -> dict[str, str]:
    """The table's `env`, with whole-value templates filled from `environ`."""
    env = parent.table("env")
    resolved = {}
    for key, value in env.values.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise env.wrong(key, "text")
        if not (key.isidentifier() and key.isascii()):
            raise TaskError(
                f"{env.path}: expected names of shell variables (letters, digits and _), "
                f"found {show(key)}"
            )
        text: str | None = value if isinstance(value, str) else _decimal(env, key)
        assert text is not None
        if template := _TEMPLATE.fullmatch(text):
            text = _filled(env, key, template, environ, required=required)
        if text is None:
            continue
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


def _decimal(env: Table, key: str) -> str:
    try:
        return str(env.values[key])
    except ValueError:  # an integer of thousands of digits
        raise env.wrong(key, "text") from None


def _filled(
    env: Table, key: str, template: re.Match[str], environ: Mapping[str, str], *, required: bool
) -> str | None:
    name, default = template[1], template[2]
    found = environ.get(name, default)
    if found is None and required:
        raise TaskError(
            f"{env.at(key)}: the variable {name} is not set here and has no "
            f"default; set it, or write ${{{name}:-default}}"
        )
    if found is None:
        env.warn(key, f"left out: the variable {name} is not set here")
    elif name in environ:
        env.warn(key, f"takes the variable {name} of this machine")
        found = found.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return found
