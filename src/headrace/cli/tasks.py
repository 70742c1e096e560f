"""`headrace tasks list` and `headrace tasks check`: what a folder of tasks holds."""

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from headrace.tasks.catalog import Catalog
    from headrace.types import Task

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
    """List the tasks: name, category, difficulty, what they are made from, how they are graded."""
    from rich.table import Table

    from headrace.cli.shows import print_table
    from headrace.tasks.catalog import load
    from headrace.tasks.describe import describe

    catalog = load(source)
    columns = ("task", "category", "difficulty", "made from", "verifier", "network", "steps",
               "format")  # fmt: skip
    rows = []
    for task in catalog.tasks:
        said = describe(task)
        rows.append(
            (task.name, task.category or "-", task.difficulty or "-", said.world, said.verifier,
             said.network, str(said.steps or "-"), said.format)
        )  # fmt: skip
    table = Table(box=None, pad_edge=False, header_style="bold")
    usual = {"steps": "-", "format": "harbor"}  # a column that says nothing else is left out
    shown = [i for i, name in enumerate(columns) if {r[i] for r in rows} != {usual.get(name)}]
    for i in shown:
        table.add_column(columns[i], overflow="fold")
    for row in rows:
        table.add_row(*(row[i] for i in shown))
    print_table(table)
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
        typer.echo(f"{task.name}: {_in_words(task)}{'' if lines else '; nothing to say'}")
        for line in lines:
            typer.echo(line)
    total = len(catalog.tasks) + len(catalog.problems)
    typer.echo(
        f"{total} tasks: {len(catalog.problems)} cannot be read, {odd} with something to look at"
    )
    if not catalog.problems:
        typer.echo(f"next: headrace eval --tasks {shlex.quote(source)} --policy oracle")
    _tell(catalog)


def _in_words(task: "Task") -> str:
    """One line about a task: format, world, steps, verifier, network, needs."""
    from headrace.tasks.describe import describe

    said = describe(task)
    parts = [said.format, said.world]
    if task.environment.compose is not None:
        parts[-1] = f"services {', '.join(task.environment.compose.services)}"
    if said.steps:
        parts.append(f"{said.steps} steps")
    parts += [f"verifier {said.verifier}", f"network {said.network}"]
    if said.needs:
        parts.append(f"needs {', '.join(said.needs)}")
    return "; ".join(parts)


def _tell(catalog: "Catalog") -> None:
    for note in catalog.notes:
        typer.echo(f"note: {note}", err=True)
    if catalog.skipped:
        folders = "1 folder" if catalog.skipped == 1 else f"{catalog.skipped} folders"
        typer.echo(f"without task.toml or task.yaml, passed over: {folders}", err=True)
    for problem in catalog.problems:
        typer.echo(f"Error: {problem.message}", err=True)
    if catalog.problems:
        raise typer.Exit(UNREADABLE)
