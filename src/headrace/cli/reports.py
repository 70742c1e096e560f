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


Target = Path | None


def compare(
    a: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run folder: the one before.")],
    b: Annotated[Path, typer.Argument(metavar="RUN_B", help="A run folder: the one after.")],
    json: Annotated[
        Target, typer.Option("--json", metavar="FILE", help="Write every number as JSON.")
    ] = None,
    markdown: Annotated[
        Target, typer.Option("--markdown", metavar="FILE", help="Write it as Markdown.")
    ] = None,
    html: Annotated[
        Target, typer.Option("--html", metavar="FILE", help="Write it as one page.")
    ] = None,
) -> None:
    """Compare two runs over the same tasks, paired by task.

    A difference is RUN_B less RUN_A, with its interval, what chance alone would
    give, and the tasks that moved.
    """
    from headrace.cli.shows import result_console
    from headrace.engine import comparison_views as views
    from headrace.engine.compare import compare as compared
    from headrace.engine.evaluation_report import encoded
    from headrace.errors import RunFolderError

    if a.resolve() == b.resolve():
        raise RunFolderError(f"expected two runs, found {a} twice; give another folder")
    found = compared(views.side(a), views.side(b))
    if json is not None:
        save(json, encoded(found))
    if markdown is not None:
        save(markdown, views.markdown(found).encode())
    if html is not None:
        save(html, views.page(found).encode())
    result_console().print(views.render(found))


def save(path: Path, data: bytes) -> None:
    """Write a file that the user named. Raises `RunFolderError` where it cannot be."""
    from headrace.engine.run_folder import not_writable, write_atomically
    from headrace.errors import StoreError

    try:
        write_atomically(path.absolute(), data)
    except StoreError as e:
        if not isinstance(e.__cause__, OSError):
            raise
        raise not_writable(f"{path} cannot be written", e.__cause__) from e
