"""`[environment]` and `[verifier.environment]` of a task.toml, interpreted.

Rule: pure. The result is an `EnvironmentRecipe` with everything but paths, which `harbor_world.py`
looks up. What no sandbox can give (Windows, GPUs, TPUs) is refused by name.
"""

import math
import re
from collections.abc import Iterator, Mapping

from headrace.errors import TaskError
from headrace.tasks.harbor_fields import healthcheck, mcp_servers, variables
from headrace.tasks.harbor_network import environment_network
from headrace.tasks.toml_table import Table
from headrace.types import EnvironmentRecipe

KNOWN = (
    "network_mode allowed_hosts build_timeout_sec docker_image os cpus memory_mb storage_mb gpus "
    "gpu_types tpu mcp_servers env skills_dir healthcheck workdir allow_internet memory storage"
)
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMG])(iB?|B)?", re.IGNORECASE)
_MB = {"K": 1 / 1024, "M": 1.0, "G": 1024.0}
MAX_MB = 1 << 40


def environment(table: Table, environ: Mapping[str, str]) -> EnvironmentRecipe:
    """What the table says, with `image` from `docker_image` and no paths."""
    table.expect(KNOWN)
    _refuse_other_machines(table)
    return EnvironmentRecipe(
        image=table.string("docker_image"),
        workdir=_workdir(table),
        env=variables(table, environ, required=True),
        cpus=table.amount("cpus"),
        memory_mb=_size_mb(table, "memory"),
        storage_mb=_size_mb(table, "storage"),
        network=environment_network(table),
        healthcheck=healthcheck(table),
        mcp_servers=mcp_servers(table),
        build_timeout_s=table.seconds("build_timeout_sec") or 600.0,
    )


def inert(table: Table) -> Iterator[str]:
    """Dotted names of what is read but not acted on."""
    for key in ("skills_dir", "gpu_types"):
        if table.values.get(key):
            yield table.at(key)
    if any(server.values.get("headers") for server in table.tables("mcp_servers")):
        yield table.at("mcp_servers.headers")


def _refuse_other_machines(table: Table) -> None:
    os_name = table.values.get("os", "linux")
    if not isinstance(os_name, str) or os_name.lower() not in ("linux", "windows"):
        raise table.wrong("os", '"linux" or "windows"')
    if os_name.lower() == "windows":
        raise TaskError(f'{table.at("os")} = "windows": only Linux tasks can be run')
    if gpus := table.count("gpus"):
        raise TaskError(f"{table.at('gpus')} = {gpus}: sandboxes have no GPU")
    if table.values.get("tpu"):
        raise TaskError(f"{table.at('tpu')}: sandboxes have no TPU")


def _workdir(table: Table) -> str | None:
    workdir = table.string("workdir")
    if workdir is not None and not workdir.startswith("/"):
        raise table.wrong("workdir", "an absolute path")
    return workdir


def _size_mb(table: Table, legacy: str) -> int | None:
    """`memory_mb` or `storage_mb`, else the older `memory = "2G"` form."""
    key = f"{legacy}_mb"
    amount = table.amount(key)
    if amount is not None and amount > MAX_MB:
        raise table.wrong(key, f"at most {MAX_MB} MB")
    size = None if amount is None else math.ceil(amount)
    old = table.values.get(legacy)
    if old is None:
        return size
    if isinstance(old, int) and not isinstance(old, bool):
        table.warn(legacy, f"an integer has no unit and is ignored; write {key} = ...")
        return size
    match = _SIZE.fullmatch(old.strip()) if isinstance(old, str) else None
    if match is None or len(match[1]) > 15:
        raise table.wrong(legacy, 'a size such as "2G", "512M" or "1024K"')
    if match[3]:
        table.warn(legacy, f"{old!r} is read as {old.strip()[: -len(match[3])]!r}")
    old_mb = math.ceil(float(match[1]) * _MB[match[2].upper()])
    if size is not None and size != old_mb:
        raise TaskError(f"{table.at(legacy)} = {old!r} contradicts {table.at(key)} = {size}")
    return old_mb or None
