"""`headrace run`, `eval` and `resume`: one engine, three ways to say what it shall do."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from headrace.configs.models import RunConfig
    from headrace.engine.summary import Summary

INFRASTRUCTURE = 3
INTERRUPTED = 130

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the configuration, such as limits.max_turns=4. May be repeated.",
    ),
]


Attempts = Annotated[
    int | None,
    typer.Option(
        "--attempts",
        "--samples",
        metavar="N",
        help="Episodes per task. The same run may be given more later.",
    ),
]


def run(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="A TOML file, or a preset: docker-gpu, oracle, quickstart.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="The run folder: made, or resumed."),
    ],
    settings: Settings = None,
) -> None:
    """Run a configuration. The same run folder again does only what is missing."""
    from headrace.configs.load import load

    _run(load(config, settings or ()), out)


def evaluate(
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks", metavar="PATH|PACK", help="A folder of tasks, one task, or a bundled pack."
        ),
    ],
    policy: Annotated[
        str,
        typer.Option("--policy", metavar="TYPE", help="oracle, noop, scripted, replay or vllm."),
    ],
    attempts: Attempts = None,
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="The run folder: made, or resumed. Left out: runs/TIMESTAMP.",
        ),
    ] = None,
) -> None:
    """Evaluate a policy on tasks and print pass@k."""
    from headrace.configs.load import load
    from headrace.configs.places import Override

    given: list[str | Override] = [
        Override(keys=("tasks", "source"), value=tasks, shown=f"--tasks {tasks}"),
        Override(keys=("policy", "type"), value=policy, shown=f"--policy {policy}"),
    ]
    if attempts is not None:
        given.append(Override(keys=("attempts",), value=attempts, shown=f"--attempts {attempts}"))
    _run(load(None, [*given, *(settings or ())]), out or _new_folder(), evaluated=True)


def resume(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder; its configuration is taken again.")
    ],
    attempts: Attempts = None,
    settings: Settings = None,
) -> None:
    """Go on with a run: what it still owes, or more attempts of each task.

    Tasks, policy and limits are those of the run. `--set` is for what may change: `engine.*`,
    `store.*`, where tasks and a server are. It ends with the report, as `headrace eval` does.
    """
    from headrace.configs.load import load_stored
    from headrace.configs.places import Override
    from headrace.engine.run_folder import RUN_FILE, read_manifest
    from headrace.errors import RunFolderError, TaskError
    from headrace.tasks.catalog import locate

    given: list[str | Override] = list(settings or ())
    if attempts is not None:
        given.append(Override(keys=("attempts",), value=attempts, shown=f"--attempts {attempts}"))
    stored = read_manifest(folder).config
    if "imported" in stored:
        raise RunFolderError(
            f"{folder} was imported, not run: it can be shown, reported and exported, not resumed"
        )
    config = load_stored(str(folder / RUN_FILE), stored, given)
    try:
        locate(config.tasks.source)
    except TaskError as e:
        raise TaskError(
            f"{e}. Relative paths of a run are read from the working directory: resume it from"
            " where it was begun, or say where its tasks are with --set tasks.source=PATH"
        ) from None
    _run(config, folder, evaluated=True)


def _new_folder() -> Path:
    return Path("runs") / time.strftime("%Y-%m-%dT%H-%M-%S")


def _run(config: "RunConfig", out: Path, *, evaluated: bool = False) -> None:
    """Drive the engine, show its progress on stderr and what came of it on stdout.

    `evaluated`: at the end there are intervals, by part too, and a report.
    """
    import asyncio

    import uvloop
    from rich.console import Console

    from headrace.cli.progress import watching
    from headrace.engine import runner
    from headrace.engine.events import EpisodeStarted, Event, RunStarted
    from headrace.errors import InfrastructureError

    begun = False

    try:
        with watching(Console(stderr=True)) as on_event:

            def seen(event: Event) -> None:
                nonlocal begun
                skipped = isinstance(event, RunStarted) and event.skipped > 0
                begun = begun or skipped or isinstance(event, EpisodeStarted)
                on_event(event)

            summary = uvloop.run(runner.run(config, out, on_event=seen))
    except runner.Interrupted as e:
        _report(e.summary, out)
        raise typer.Exit(INTERRUPTED) from None
    except asyncio.CancelledError:
        told = "stopped before the first episode; the same command starts again"
        if begun:
            told = f"stopped; what was finished is in {out}, and the same command goes on from it"
        typer.echo(told, err=True)
        raise typer.Exit(INTERRUPTED) from None
    except InfrastructureError:
        if (out / "summary.json").exists():
            typer.echo(f"what was finished is in {out}; the same command goes on from it", err=True)
        raise
    _report(summary, out, evaluated=evaluated)
    if summary.owed:
        raise typer.Exit(INFRASTRUCTURE)


def _report(summary: "Summary", out: Path, *, evaluated: bool = False) -> None:
    from headrace.cli.report import summary_lines

    for line in summary_lines(summary, out, rates=not evaluated):
        typer.echo(line)
    if evaluated:
        _evaluate(out)


def _evaluate(out: Path) -> None:
    from headrace.cli.shows import result_console
    from headrace.engine import evaluation_files
    from headrace.engine.evaluation_report import report
    from headrace.engine.evaluation_tables import render_rates

    found = report(out)
    typer.echo()
    result_console().print(render_rates(found))
    typer.echo(f"\nreport: {evaluation_files.write(found, out / evaluation_files.REPORT)}")
