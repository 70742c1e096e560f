"""`headrace doctor` and `headrace sweep`: the machine before and after."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from headrace.cli.host import Finding

LACKING = 1
STYLES = {"ok": "green", "note": "yellow", "lack": "red"}


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as a JSON list.")
    ] = False,
) -> None:
    """Say what this machine has, and what to do about each lack.

    Exit code 1 if a lack is in the way of every run.
    """
    import json
    from dataclasses import asdict

    import uvloop

    from headrace.cli.doctor import diagnose
    from headrace.cli.shows import result_console

    findings = uvloop.run(diagnose(Path.cwd()))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        result_console().print(_table(findings))
    if any(finding.state == "lack" for finding in findings):
        raise typer.Exit(LACKING)


def _table(findings: "list[Finding]") -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        state = Text(finding.state, style=STYLES[finding.state])
        table.add_row(state, finding.name, Text(finding.found))
        if finding.advice:
            table.add_row("", "", Text(f"-> {finding.advice}"))
    return table


def sweep() -> None:
    """Remove what no live run owns: sandboxes, mounts, leases."""
    import uvloop

    from headrace.sandbox.providers import sweep_all

    lines = uvloop.run(sweep_all())
    for line in lines:
        typer.echo(line)
    if not lines:
        typer.echo("nothing to remove")
