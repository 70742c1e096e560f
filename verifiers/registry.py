"""Which verifier grades which task: by `VerifierRecipe.kind`."""

from headrace.configs.models import VerifierConfig
from headrace.errors import ContractError
from headrace.sandbox.base import Sandbox
from headrace.types import Task, Verdict
from headrace.verifiers.base import Verifier
from headrace.verifiers.harbor import HarborVerifier
from headrace.verifiers.terminal_bench_1 import TerminalBench1Verifier


class ByKind:
    """A verifier that hands each task to the one for its kind."""

    def __init__(self, verifiers: dict[str, Verifier]) -> None:
        self._verifiers = verifiers

    async def verify(self, task: Task, sandbox: Sandbox) -> Verdict:
        """See `Verifier.verify`."""
        kind = task.verifier.kind
        if kind not in self._verifiers:
            known = ", ".join(self._verifiers)
            raise ContractError(f"{task.name}: verifier kind {kind!r}: expected one of {known}")
        return await self._verifiers[kind].verify(task, sandbox)


def build(config: VerifierConfig) -> Verifier:
    """The verifier of a run."""
    return ByKind(
        {
            "harbor": HarborVerifier(),
            "terminal-bench-1": TerminalBench1Verifier(config.compat),
        }
    )
