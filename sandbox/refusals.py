"""Why a provider cannot run a task as it asks. Pure.

Rule: one sentence, with the way out; the first reason counts. What a sandbox can do by itself is
never refused: a task that asks for no network, or for all of it, runs everywhere.
"""

from headrace.tasks.phases import reach, verifier_reach, views_of
from headrace.tasks.recipes import recipes_of
from headrace.types import Task


def no_allow_list(task: Task, *, follow: bool, lacks: str | None) -> str | None:
    """`lacks`: why networks that change cannot be given here."""
    if lacks is None or not _changes(task, follow=follow):
        return None
    return (
        f"its phases differ in what they may reach, or name hosts, and {lacks}: run as root, or "
        "cut every task off with sandbox.network = 'none'"
    )


def no_compose(task: Task) -> str | None:
    """For a provider with one container only."""
    for recipe in recipes_of(task):
        if recipe.compose is not None:
            return (
                f"it has a compose file ({recipe.compose.path}) with "
                f"{', '.join(recipe.compose.services)}, and namespace sandboxes stand alone: run "
                "it with sandbox.provider = 'docker'"
            )
    return None


def _changes(task: Task, *, follow: bool) -> bool:
    reaches = [reach(task, follow=follow)]
    reaches += [
        verifier_reach(view, follow=follow)
        for view in views_of(task)
        if view.verifier.environment is not None
    ]
    return any(each.egress is not None for each in reaches)
