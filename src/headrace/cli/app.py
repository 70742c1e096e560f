"""The command line: its commands, and what becomes of errors.

Rule: commands are thin and import what they need when they run, so that `--help` imports no
engine. A mistake of the user and a failure of the infrastructure are one message each on stderr;
a traceback is for `--debug` and for bugs.
"""

import sys
import traceback
from typing import Annotated

import typer

import headrace
from headrace.cli import exchange, export, images, live, machine, pairs, reports, runs, shows, tasks
from headrace.errors import InfrastructureError, UsageError

EXIT_CODES = {
    0: "done",
    1: "`pairs` or `export` found nothing to write, `doctor` found a lack in the way, stdout was"
    " closed early, or a bug (with a traceback)",
    2: "a mistake of the user; the message says which",
    3: "the infrastructure failed: the run ended early, or episodes are still owed",
    130: "stopped by Ctrl-C or SIGTERM; what was finished is in the run folder",
}

app = typer.Typer(
    name="headrace",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(runs.run)
app.command("eval")(runs.evaluate)
app.command("resume")(runs.resume)
app.command("report")(reports.report)
app.command("compare")(reports.compare)
app.command("show")(shows.show)
app.add_typer(shows.shards, name="shards")
app.command("top")(live.top)
app.command("limits")(live.limits)
app.command("trace")(live.trace)
app.command("pairs")(pairs.pairs)
app.command("export")(export.export)
app.command("import")(exchange.import_)
app.add_typer(tasks.app, name="tasks")
app.add_typer(images.app, name="images")
app.command("sweep")(machine.sweep)
app.command("doctor")(machine.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headrace {headrace.__version__}")
        raise typer.Exit


@app.callback()
def headrace_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; works anywhere.")
    ] = False,
) -> None:
    """Terminal agents in sandboxes by the thousand, verified trajectories back."""


def run() -> None:
    """Entry point: run the command of the process's arguments and exit."""
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(arguments, prog_name="headrace")
    except (Exception, BaseExceptionGroup) as e:
        errors = _leaves(e)
        if not all(isinstance(x, UsageError | InfrastructureError) for x in errors):
            raise
        if debug:
            traceback.print_exception(e)
        for message in dict.fromkeys(str(error) for error in errors):
            sys.stderr.write(f"Error: {message}\n")
        sys.exit(2 if isinstance(errors[0], UsageError) else 3)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
