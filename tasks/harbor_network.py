"""What a Harbor task may reach: `network_mode` and `allowed_hosts` of an environment or a phase.

Rule: pure. Entries are host names, `*.suffix`, addresses and networks, lower-cased and in their
shortest form; a URL, a port, a path or a host bit behind a network's mask is a `TaskError`. Who
enforces a policy is decided elsewhere.
"""

import re
from ipaddress import ip_address, ip_network

from headrace.errors import TaskError
from headrace.tasks.keyed import show
from headrace.tasks.toml_table import Table
from headrace.types import NetworkPolicy

_MODES = {"public": "public", "no-network": "none", "allowlist": "allowlist"}
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
MAX_HOST_BYTES = 253
MAX_HOSTS = 1000


def environment_network(table: Table) -> NetworkPolicy:
    """The policy of an environment; `public` where it names none."""
    policy = phase_network(table)
    if policy is not None:
        return policy
    allowed = table.boolean("allow_internet")
    return NetworkPolicy(mode="none" if allowed is False else "public")


def phase_network(table: Table) -> NetworkPolicy | None:
    """The policy that a table names, or None."""
    mode = table.values.get("network_mode")
    hosts = table.values.get("allowed_hosts")
    if mode is None:
        if hosts:
            raise TaskError(
                f"{table.at('allowed_hosts')} needs network_mode = 'allowlist', and none is given"
            )
        return None
    if not isinstance(mode, str) or mode not in _MODES:
        raise table.wrong("network_mode", '"public", "no-network" or "allowlist"')
    if hosts and mode != "allowlist":
        raise TaskError(
            f"{table.at('allowed_hosts')} needs network_mode = 'allowlist', found {mode!r}"
        )
    if mode == "allowlist" and not hosts:
        table.warn("allowed_hosts", "the list is empty: nothing can be reached")
    return NetworkPolicy(mode=_MODES[mode], allowed_hosts=_hosts(table))


def _hosts(table: Table) -> tuple[str, ...]:
    entries = table.strings("allowed_hosts")
    if len(entries) > MAX_HOSTS:
        raise table.wrong("allowed_hosts", f"at most {MAX_HOSTS} entries")
    found: dict[str, None] = {}
    for i, entry in enumerate(entries):
        normal = normal_host(entry)
        if normal is None:
            raise TaskError(
                f"{table.at('allowed_hosts')}[{i}]: expected a host name, *.suffix, an address or "
                f"a network such as 192.0.2.0/24, without scheme, port or path; found {show(entry)}"
            )
        found[normal] = None
    return tuple(found)


def normal_host(entry: str) -> str | None:
    """An entry of a list of allowed hosts in its one form, or None where it is none."""
    host = entry.strip().lower().rstrip(".")
    if "%" in host:  # the zone of an address means nothing elsewhere
        return None
    try:
        if "/" in host:
            return ip_network(host, strict=True).compressed
        if ":" in host:
            return ip_address(host).compressed
    except ValueError:
        return None
    name = host.removeprefix("*.")
    if not name or len(name) > MAX_HOST_BYTES or (name != host and _is_address(name)):
        return None
    return host if all(_LABEL.fullmatch(label) for label in name.split(".")) else None


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
