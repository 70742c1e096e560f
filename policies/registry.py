"""From a policy's configuration to the policy.

Rule: a plain table; a policy's module is imported when it is asked for, so that vLLM's clients
cost nothing to who runs the oracle.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from headrace.configs.models import PolicyConfig
from headrace.errors import ContractError
from headrace.policies.base import Policy
from headrace.policies.replay import Recorded

POLICIES = {
    "noop": "headrace.policies.noop.NoopPolicy",
    "oracle": "headrace.policies.oracle.OraclePolicy",
    "replay": "headrace.policies.replay.ReplayPolicy",
    "scripted": "headrace.policies.scripted.ScriptedPolicy",
    "vllm": "headrace.policies.vllm.VllmPolicy",
}


def build(
    config: PolicyConfig,
    *,
    seed: int = 0,
    log_path: Path | None = None,
    progress: Callable[[str], None] | None = None,
    recorded: Recorded | None = None,
) -> Policy:
    """The policy that `config` asks for; not yet entered.

    `seed`, `log_path` (of a server that is started) and `progress` (told of long steps) are for
    `vllm`; `recorded` is what `replay` repeats.
    """
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = {}
    if config.type == "vllm":
        arguments = (config,)
        options = {"seed": seed, "log_path": log_path, "progress": progress}
    elif config.type == "scripted":
        arguments = (config,)
    elif config.type == "replay":
        if recorded is None:
            raise ContractError("a replay needs the recorded turns of its run")
        arguments = (recorded,)
        options = {"source": config.run}
    return cast(Policy, _load(config.type)(*arguments, **options))


def _load(name: str) -> Any:
    module, _, attribute = POLICIES[name].rpartition(".")
    return getattr(import_module(module), attribute)
