"""`headrace images plan|build|prune`: what tasks are made from, before any of them runs."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from headrace.sandbox.base import Provider
    from headrace.sandbox.image_stock import Pruned, Stock
    from headrace.sandbox.images import ImagePlan, PlannedImage
    from headrace.types import Task

app = typer.Typer(no_args_is_help=True, help="Plan, build and remove the images of tasks.")

INFRASTRUCTURE = 3
INTERRUPTED = 130

Source = Annotated[
    str,
    typer.Argument(
        metavar="PATH", help="A folder of tasks, one task, or a bundled pack (first-steps)."
    ),
]
Where = Annotated[
    Literal["auto", "docker", "namespace"],
    typer.Option("--provider", help="Where the images are for."),
]


@app.command("plan")
def plan(
    source: Source,
    provider: Where = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show which images tasks need, what they share, and what cannot be built. Builds nothing."""
    import json

    import uvloop

    from headrace.cli.shows import print_table

    name, planned, stock = uvloop.run(_plan(source, provider))
    if as_json:
        typer.echo(json.dumps(_as_json(name, planned, stock), indent=2))
        return
    print_table(_table(planned, stock))
    for line in _totals(name, planned, stock):
        typer.echo(line)


@app.command("build")
def build(
    source: Source,
    provider: Where = "auto",
    building: Annotated[
        int, typer.Option("--building", metavar="N", min=1, help="Builds at once.")
    ] = 2,
) -> None:
    """Build or pull every image of the tasks, so that runs find them there.

    Exit code 3 if an image could not be made; the others are made all the same.
    """
    import asyncio

    import uvloop

    try:
        failed = uvloop.run(_build(source, provider, building))
    except (asyncio.CancelledError, KeyboardInterrupt):
        typer.echo("stopped; what is built stays, and the same command goes on", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if failed:
        raise typer.Exit(INFRASTRUCTURE)


@app.command("prune")
def prune(
    source: Annotated[
        str | None,
        typer.Argument(metavar="PATH", help="Tasks whose images stay; see `--all`."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Keep no task's images, only the base image.")
    ] = False,
    provider: Where = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")
    ] = False,
) -> None:
    """Remove images made by headrace that no task of PATH needs. Foreign images are not touched.

    Those of services beside the agent's in a compose file go too: the next run makes them again.
    """
    import uvloop

    from headrace.errors import UsageError

    if (source is None) != everything:
        raise UsageError("expected PATH, whose images stay, or --all: one of the two")
    done = uvloop.run(_prune(source, provider, dry_run))
    would = "would be removed" if dry_run else "removed"
    for name in done.removed:
        typer.echo(f"{name}: {would}")
    for line in done.kept:
        typer.echo(f"{line}: stays", err=True)
    used = f"{_size(done.before_bytes)} of layers"
    if not dry_run:
        used += f" before, {_size(done.after_bytes)} after"
    typer.echo(f"{len(done.removed)} {would}; {used}")


# --- the work -------------------------------------------------------------------------------


async def _plan(source: str, provider: str) -> "tuple[str, ImagePlan, Stock | None]":
    from headrace.aio import in_thread
    from headrace.sandbox.image_findings import found_on
    from headrace.sandbox.image_stock import docker_stock, namespace_stock
    from headrace.sandbox.images import plan_images

    tasks = await in_thread(_tasks, source)
    name, missing = await _name_of(provider)
    planned = await found_on(name, await in_thread(plan_images, tasks))
    if missing is not None:
        typer.echo(f"note: what is there already cannot be looked up: {missing}", err=True)
        return name, planned, None
    return name, planned, await (docker_stock() if name == "docker" else namespace_stock())


async def _build(source: str, provider: str, building: int) -> int:
    """Makes every image; how many could not be made."""
    import asyncio

    from headrace.aio import in_thread
    from headrace.configs.models import ImagesConfig, SandboxConfig
    from headrace.sandbox.images import plan_images
    from headrace.sandbox.providers import choose

    tasks = await in_thread(_tasks, source)
    planned = await in_thread(plan_images, tasks)
    chosen = await choose(
        SandboxConfig.model_validate({"provider": provider}),
        images=ImagesConfig(building=building),
        progress=lambda line: typer.echo(line, err=True),
    )
    typer.echo(chosen.reason, err=True)
    results: list[bool] = []
    async with chosen:
        async with asyncio.TaskGroup() as group:
            for image in planned.images:
                group.create_task(_make(chosen.provider, image, len(planned.images), results))
    failed = results.count(False)
    typer.echo(f"{len(results) - failed} images ready, {failed} failed")
    return failed


async def _make(
    provider: "Provider", image: "PlannedImage", total: int, results: list[bool]
) -> None:
    from headrace.errors import ImageError

    try:
        name = await provider.prepare(image.recipe)
    except ImageError as e:
        results.append(False)
        typer.echo(f"Error: no image for {_tasks_of(image)}: {e}", err=True)
    else:
        results.append(True)
        typer.echo(f"{len(results)}/{total} {name} for {_tasks_of(image)}")


async def _prune(source: str | None, provider: str, dry_run: bool) -> "Pruned":
    from headrace.aio import in_thread
    from headrace.errors import UsageError
    from headrace.sandbox.image_stock import prune_docker, prune_namespace
    from headrace.sandbox.images import plan_images

    tasks = () if source is None else await in_thread(_tasks, source)
    planned = await in_thread(plan_images, tasks)
    name, missing = await _name_of(provider)
    if missing is not None:
        raise UsageError(missing)
    if name == "docker":
        return await prune_docker({image.name for image in planned.images}, dry_run=dry_run)
    recipes = [image.recipe for image in planned.images]
    return await prune_namespace(
        recipes, names={image.name for image in planned.images}, dry_run=dry_run
    )


async def _name_of(provider: str) -> tuple[str, str | None]:
    """Which provider is meant, and why it cannot be used here, if it cannot."""
    from headrace.sandbox import docker, namespace

    no_docker = None if provider == "namespace" else await docker.available()
    if provider == "docker" or (provider == "auto" and no_docker is None):
        return "docker", no_docker
    return "namespace", await namespace.available()


def _tasks(source: str) -> "tuple[Task, ...]":
    """The tasks that can be read, at least one; the others are said on stderr. Blocking."""
    from headrace.errors import TaskError
    from headrace.tasks.catalog import load

    catalog = load(source)
    for problem in catalog.problems:
        typer.echo(f"left out: {problem.message}", err=True)
    if not catalog.tasks:
        raise TaskError(
            f"{source}: expected at least one task that can be read, found none;"
            f" see `headrace tasks check {source}`"
        )
    return catalog.tasks


# --- what is shown --------------------------------------------------------------------------


def _table(planned: "ImagePlan", stock: "Stock | None") -> "Table":
    from rich.table import Table

    there = {one.name for one in stock.items} if stock is not None else set()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("image", no_wrap=True)
    for column in ("tasks", "layers", "shared", "context"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("made from", overflow="fold")
    for image in planned.images:
        made = "there" if image.name in there else ", ".join(image.bases)
        table.add_row(
            image.name or "-",
            str(len(image.tasks)),
            str(len(image.layers)),
            str(image.shared),
            _size(image.context_bytes) if image.layers else "-",
            made if image.built else "a ready image",
        )
        for finding in image.findings:
            table.add_row("", "", "", "", "", f"{finding.kind}: {finding.message}")
    return table


def _totals(name: str, planned: "ImagePlan", stock: "Stock | None") -> list[str]:
    from headrace.cli.progress import count

    stopped = sum(bool(image.findings) for image in planned.images)
    lines = [
        f"{count(planned.tasks, 'task')} need {count(len(planned.images), 'image')}, {stopped} of "
        f"which cannot be built on {name}; {_size(planned.context_bytes)} of build contexts",
        f"{planned.layers_distinct} layers to build, where one build per task makes "
        f"{planned.layers_naive}: {planned.factor:.1f} times fewer "
        f"({planned.file_layers_distinct} and {planned.file_layers_naive} of them change files)",
    ]
    if stock is not None:
        lines.append(
            f"there now: {len(stock.items)} {'images' if name == 'docker' else 'layers'} made by "
            f"headrace; {_size(stock.used_bytes)} of layers"
        )
    return lines


def _as_json(name: str, planned: "ImagePlan", stock: "Stock | None") -> dict[str, object]:
    return {
        "provider": name,
        "tasks": planned.tasks,
        "layers_naive": planned.layers_naive,
        "layers": planned.layers_distinct,
        "file_layers_naive": planned.file_layers_naive,
        "file_layers": planned.file_layers_distinct,
        "factor": round(planned.factor, 3),
        "context_bytes": planned.context_bytes,
        "used_bytes": None if stock is None else stock.used_bytes,
        "images": [
            {
                "name": image.name,
                "tasks": list(image.tasks),
                "layers": len(image.layers),
                "shared": image.shared,
                "bases": list(image.bases),
                "context_bytes": image.context_bytes,
                "findings": [
                    {"kind": finding.kind.value, "message": finding.message}
                    for finding in image.findings
                ],
            }
            for image in planned.images
        ],
    }


def _tasks_of(image: "PlannedImage") -> str:
    more = len(image.tasks) - 1
    return image.tasks[0] + (f" and {more} more" if more else "")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
