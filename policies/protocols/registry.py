"""The agent protocols by name. Rule: a plain table; nothing is imported before it is asked for."""

from importlib import import_module
from typing import cast

from headrace.errors import ConfigError
from headrace.policies.protocols.base import AgentProtocol

PROTOCOLS = {
    "shell-block": "headrace.policies.protocols.shell_block.ShellBlock",
    "terminus-json": "headrace.policies.protocols.terminus_json.TerminusJson",
}


def protocol(name: str) -> AgentProtocol:
    """The protocol called `name`; `ConfigError` lists the known ones."""
    path = PROTOCOLS.get(name)
    if path is None:
        known = ", ".join(sorted(PROTOCOLS))
        raise ConfigError(f"policy.protocol: unknown protocol {name!r}; known: {known}")
    module, _, attribute = path.rpartition(".")
    return cast(AgentProtocol, getattr(import_module(module), attribute)())
