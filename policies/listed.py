"""A session over actions that are known beforehand, for policies that do not look at results."""

from collections.abc import Sequence

from headrace.policies.base import Budget
from headrace.types import Action, CommandResult

NOTHING_LEFT = Action(text="Done.", done=True)


class ListedSession:
    """Gives the actions one by one, whatever came of them; then says it is done."""

    prompt = opening = ""

    def __init__(self, actions: Sequence[Action]) -> None:
        self._left = iter(actions)

    async def act(self, results: Sequence[CommandResult], budget: Budget) -> Action:
        return next(self._left, NOTHING_LEFT)

    def observation(self) -> str:
        return ""
