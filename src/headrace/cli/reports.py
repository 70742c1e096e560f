"""`headrace report` and `headrace compare`: what runs came to, for people and for programs."""

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


def report(
    run: Run,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Where the files go. Left out: RUN/report."
        ),
    ] = None,
) -> None:
    """Evaluate a run: pass@k with intervals, as a page, Markdown and JSON.

    Works while the run goes on. `headrace eval` does it at its end.
    """
    from headrace.cli.shows import result_console
    from headrace.engine import evaluation_files
    from headrace.engine.evaluation_report import report as evaluated
    from headrace.engine.evaluation_tables import render_report

    found = evaluated(run)
    page = evaluation_files.write(found, out or run / evaluation_files.REPORT)
    result_console().print(render_report(found))
    typer.echo(f"report: {page}")
