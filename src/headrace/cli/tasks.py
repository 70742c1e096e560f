"""`headrace tasks list` and `headrace tasks check`: what a folder of tasks holds."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from headrace.tasks.catalog import Catalog

app = typer.Typer(no_args_is_help=True, help="Look at tasks without running them.")

Source = Annotated[
    str,
    typer.Argument(
        metavar="PATH", help="A folder of tasks, one task, or a bundled pack (first-steps)."
    ),
]
UNREADABLE = 2


@app.command("list")
def list_tasks(source: Source = "first-steps") -> None:
    """List the tasks: name, category, difficulty, and what their world is made from."""
    from rich.table import Table

    from headrace.cli.shows import result_console
    from headrace.tasks.catalog import load

    catalog = load(source)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("task", "category", "difficulty", "made from"):
        table.add_column(column, overflow="fold")
    for task in catalog.tasks:
        world = "Dockerfile" if task.environment.dockerfile else "image"
        table.add_row(task.name, task.category or "-", task.difficulty or "-", world)
    result_console().print(table)
    _tell(catalog)


@app.command("check")
def check_tasks(source: Source) -> None:
    """Read every task and say what is broken or odd. Nothing is run."""
    from headrace.tasks.catalog import load
    from headrace.tasks.check import check

    catalog = load(source)
    odd = 0
    for task in catalog.tasks:
        findings = check(task)
        lines = [f"  {f.code}: {f.message}" for f in findings]
        lines += [f"  warning: {warning}" for warning in catalog.warnings.get(task.name, ())]
        odd += bool(lines)
        typer.echo(f"{task.name}: {'read' if lines else 'nothing to say'}")
        for line in lines:
            typer.echo(line)
    total = len(catalog.tasks) + len(catalog.problems)
    typer.echo(
        f"{total} tasks: {len(catalog.problems)} cannot be read, {odd} with something to look at"
    )
    if not catalog.problems:
        typer.echo(f"next: headrace eval --tasks {source} --policy oracle")
    _tell(catalog)


def _tell(catalog: "Catalog") -> None:
    if catalog.skipped:
        typer.echo(f"{catalog.skipped} folders without task.toml are passed over", err=True)
    for problem in catalog.problems:
        typer.echo(f"Error: {problem.message}", err=True)
    if catalog.problems:
        raise typer.Exit(UNREADABLE)
