"""One run: from a configuration to a folder of verified trajectories.

Rule: this file opens everything a run owns and closes it in reverse, whatever happens; the driver
between is handed open parts. Running the same folder again does only what is owed.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from headrace.aio import background, fan_out, in_thread, unwrap
from headrace.configs.models import EngineConfig, ReplayConfig, RunConfig
from headrace.engine import collector, fleet, live_limits, preflight, sizing
from headrace.engine.admission import Admission
from headrace.engine.breaker import Breaker
from headrace.engine.driven import Driven, Warmth
from headrace.engine.driver import Driver
from headrace.engine.episode import Parts, Planned
from headrace.engine.evaluate import curve
from headrace.engine.events import Note, OnEvent, Preparing, RunFinished, RunStarted, ignore
from headrace.engine.exporter import exported
from headrace.engine.fleet import Fleet
from headrace.engine.groups import Groups, longest_first
from headrace.engine.history import seconds_by_task
from headrace.engine.image_phase import ImagePhase
from headrace.engine.limits import combine
from headrace.engine.measured import Merged
from headrace.engine.meters import Meters
from headrace.engine.outcomes import outcome
from headrace.engine.reader import latest_episodes
from headrace.engine.resume import episode_id, owed
from headrace.engine.run_folder import RunFolder, read_manifest
from headrace.engine.shutdown import Shutdown, signals
from headrace.engine.steering import Steering
from headrace.engine.store import Store
from headrace.engine.summary import Counted, Summary, summarise, write
from headrace.engine.warming import keep_warm
from headrace.engine.world import limits_of
from headrace.errors import ConfigError, TaskError
from headrace.policies.base import Policy
from headrace.policies.registry import build
from headrace.policies.served import elsewhere
from headrace.sandbox.base import Limits, Provider
from headrace.sandbox.pool import Pool
from headrace.sandbox.providers import Chosen, choose
from headrace.tasks.catalog import Catalog, load
from headrace.tasks.phases import asks_for_network
from headrace.tasks.recipes import unsupported
from headrace.types import Task, Turn
from headrace.verifiers import registry as verifiers

TOLD = 10
"""Lines of one kind about tasks at the start of a run; `tasks check` tells all."""
REFUSALS = 4
"""Asked for at once: of a compose file the provider asks another program."""
_NOT_IN_A_LABEL = re.compile(r"[^A-Za-z0-9_.-]")


class Interrupted(Exception):
    """The user stopped the run. What is durable stays; `summary` counts it."""

    def __init__(self, reason: str, summary: Summary) -> None:
        super().__init__(reason)
        self.reason = reason
        self.summary = summary


async def run(
    config: RunConfig,
    out: Path,
    *,
    policy: Policy | None = None,
    provider: Provider | None = None,
    on_event: OnEvent = ignore,
) -> Summary:
    """Run what `out` still owes of `config` and write `summary.json`.

    `policy` and `provider`: those of one's own, not opened yet, in place of what `config` names.
    Raises `UsageError` before anything starts; `Interrupted` after Ctrl-C, with the summary of
    what is durable; an `InfrastructureError` that is `final` when the sandbox engine, the model
    server or the disk gave out for good. Cancelling it closes everything first.
    """
    if config.engine.processes > 1 and (policy is not None or provider is not None):
        raise ConfigError(
            f"engine.processes = {config.engine.processes}: a policy or a provider of one's own"
            " stays in this process; expected 1"
        )
    preflight.check()  # blocks for a moment: nothing is going on yet, and threads may be lacking
    shutdown = Shutdown()
    with signals(shutdown):
        catalog = await in_thread(_catalog, config, on_event)
        tell = _line(on_event)
        if policy is None:
            policy = await in_thread(policy_of, config, out, tell)
        label = label_of(out)
        chosen = None if provider is None else Chosen(provider, f"{provider.name}: as given")
        async with chosen or await choose(
            config.sandbox, images=config.images, run_id=label, progress=tell
        ) as chosen:
            return await _run(config, out, catalog, policy, chosen, shutdown, on_event)


async def _run(
    config: RunConfig,
    out: Path,
    catalog: Catalog,
    policy: Policy,
    chosen: Chosen,
    shutdown: Shutdown,
    on_event: OnEvent,
) -> Summary:
    provider, tasks = chosen.provider, catalog.tasks
    unreadable = {Path(problem.path).name: problem.message for problem in catalog.problems}
    folder = await in_thread(_open, config, out, tasks, policy, provider)
    with folder:
        finished = await in_thread(folder.finished)
        for torn in folder.damage:
            on_event(Note(text=f"unreadable, to be run again: {torn}"))
        refused = await _refused(provider, tasks, network=config.sandbox.network == "task")
        for name, reason in refused.items():
            on_event(Note(text=f"left out: {name}: {reason}"))
        runnable = [task for task in tasks if task.name not in refused]
        if not runnable:
            raise TaskError(
                f"expected at least one task that {provider.name} can run, found none:\n"
                + "\n".join(f"  {name}: {reason}" for name, reason in refused.items())
            )
        plan = await in_thread(plan_episodes, config, runnable, policy.version)
        groups, due = await in_thread(_due, config, plan, finished)
        started = RunStarted(
            run=folder.manifest.run,
            planned=len(plan),
            skipped=sum(p.id in finished for p in plan),
            dropped=sum(p.id not in finished and p.id not in due for p in plan),
            provider=provider.name,
            provider_reason=chosen.reason,
            policy=policy.name,
        )
        on_event(started)
        todo = await in_thread(_ordered, config, [p for p in plan if p.id in due], out)
        session = _Session(config, folder, todo, shutdown, on_event, groups)
        if todo:
            await session.drive(provider, policy)
        summary = await in_thread(session.summarise, provider.name, plan, {**unreadable, **refused})
        finished_now = summary.planned - summary.owed - summary.dropped
        on_event(RunFinished(finished=finished_now, owed=summary.owed))
        if session.error is not None:
            raise session.error
        if shutdown.reason:
            raise Interrupted(shutdown.reason, summary)
        return summary


def plan_episodes(config: RunConfig, tasks: Sequence[Task], policy_version: str) -> list[Planned]:
    """Every (task, sample) of the run, siblings beside each other, in task order."""
    return [
        Planned(
            id=episode_id(task.digest, policy_version, sample),
            task=task,
            sample=sample,
            limits=combine(
                task,
                max_turns=config.limits.max_turns,
                max_tokens=config.limits.max_tokens,
                agent_timeout_s=config.limits.agent_timeout_s,
                command_timeout_s=config.limits.command_timeout_s,
                verifier_timeout_s=config.limits.verifier_timeout_s,
            ),
            sandbox=_limits(config, task),
            network=config.sandbox.network == "task",
        )
        for task in tasks
        for sample in range(config.attempts)
    ]


class _Session:
    """One process's work on a run folder."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        todo: Sequence[Planned],
        shutdown: Shutdown,
        on_event: OnEvent,
        groups: Groups,
    ) -> None:
        self._groups = groups
        self._config = config
        self._folder = folder
        self._todo = todo
        self._shutdown = shutdown
        self._on_event = on_event
        self._meters = Meters()
        self._wall_s = self._cpu_s = 0.0
        self._done = 0
        self.error: Exception | None = None

    async def drive(self, provider: Provider, policy: Policy) -> None:
        """Images and model server side by side, then the episodes."""
        try:
            await self._drive(provider, policy)
        except BaseExceptionGroup as group:
            raise unwrap(group) from group

    async def _drive(self, provider: Provider, policy: Policy) -> None:
        tasks = list({p.task.name: p.task for p in self._todo}.values())
        images = ImagePhase(tasks, provider, self._on_event)
        number = self._processes(min(len(tasks), sizing.most(self._config.engine)))
        engine, warm = await in_thread(
            sizing.fitted, self._config, provider, len(self._todo), number, self._on_event
        )
        number = min(number, sizing.most(engine))
        async with background(images.run()), policy:
            if number > 1:
                await self._together(provider, policy, engine, warm, images, number)
            else:
                await self._alone(provider, policy, engine, warm, images)

    def _processes(self, busy: int) -> int:
        asked, cpus = self._config.engine.processes, fleet.usable_cpus()
        number, note = fleet.processes(asked, cpus=cpus, busy=busy)
        if note:
            self._on_event(Note(text=note))
        return number

    async def _alone(
        self,
        provider: Provider,
        policy: Policy,
        engine: EngineConfig,
        warm: int,
        images: ImagePhase,
    ) -> None:
        """In this process."""
        async with (
            Store(self._folder.path, self._config.store) as store,
            Pool(provider, most=warm, opening=sizing.opening(engine)) as pool,
        ):
            self._meters = Meters()
            parts = parts_of(self._config, self._folder.path, pool, policy)
            driver = Driver(
                self._todo,
                parts,
                sizing.bounds(engine),
                sink=store,
                meters=self._meters,
                shutdown=self._shutdown,
                grace_s=self._config.engine.grace_s,
                on_event=self._on_event,
                held=images.held,
                groups=self._groups,
                breaker=Breaker(outage_s=engine.outage_s),
            )
            images.listener = driver.release
            with collector.seldom():
                async with (
                    self._steered(driver, policy, pool, sizing.admission(engine)),
                    background(keep_warm(driver, pool, parts)),
                ):
                    await driver.drive()
            self._take(driver)

    async def _together(
        self,
        provider: Provider,
        policy: Policy,
        engine: EngineConfig,
        warm: int,
        images: ImagePhase,
        number: int,
    ) -> None:
        """In `number` processes; this one steers them."""
        self._meters = meters = Merged()
        asked, server = elsewhere(self._config.policy, policy)
        sandbox = self._config.sandbox.model_copy(update={"provider": provider.name})
        all_of_them = Fleet(
            self._todo,
            self._config.model_copy(update={"policy": asked, "sandbox": sandbox}),
            self._folder.path,
            sizing.bounds(engine),
            number=number,
            label=label_of(self._folder.path),
            warm=warm,
            opening=sizing.opening(engine),
            provider=provider,
            meters=meters,
            shutdown=self._shutdown,
            on_event=self._on_event,
            held=images.held,
            graded={p.task.digest: self._groups.graded(p.task.digest) for p in self._todo},
            server=server,
            locks=(self._folder.lock,),
        )
        images.listener = all_of_them.release
        admission = sizing.admission(engine)
        async with self._steered(all_of_them, policy, all_of_them.pool, admission, number):
            with collector.seldom():
                await all_of_them.drive()
        self._take(all_of_them)

    def _take(self, driven: Driver | Fleet) -> None:
        """What it came to."""
        self._wall_s, self._cpu_s = self._meters.wall_s, self._meters.cpu_s
        self._done = driven.finished
        self.error = driven.error

    @asynccontextmanager
    async def _steered(
        self,
        driven: Driven,
        policy: Policy,
        pool: Warmth,
        admission: Admission | None,
        processes: int = 1,
    ) -> AsyncIterator[None]:
        """Everything that looks on and steers, beside the block that drives."""
        steering = Steering(
            driven,
            policy,
            self._meters,
            self._folder.path,
            run=self._folder.manifest.run,
            admission=admission,
            pool=pool,
            on_event=self._on_event,
            processes=processes,
        )
        await in_thread(live_limits.clear, self._folder.path)
        async with AsyncExitStack() as stack:
            port = self._config.engine.metrics_port
            if port is not None:
                address = await stack.enter_async_context(exported(port, lambda: steering.latest))
                self._on_event(Note(text=f"metrics: {address}"))
            for beside in (self._meters.watch_loop, steering.steer):
                await stack.enter_async_context(background(beside()))
            yield
        await steering.show(ended=True)

    def summarise(
        self, provider: str, plan: Sequence[Planned], refused: Mapping[str, str]
    ) -> Summary:
        """Read the shards, sum up, write `summary.json`. Blocking.

        What cannot be read was said when the folder was opened, and counts as owed.
        """
        counted, outcomes = Counted(), []
        damage: list[object] = []
        for episode in latest_episodes(self._folder.path, on_damage=damage.append):
            counted.add(episode)
            outcomes.append(outcome(episode))
        summary = summarise(
            counted,
            self._meters,
            run=self._folder.manifest.run,
            provider=provider,
            planned=len(plan),
            dropped=_dropped(plan, counted, self._config.engine.min_group),
            this_session=self._done,
            wall_s=self._wall_s,
            cpu_s=self._cpu_s,
            pass_at_k={str(k): value for k, value in curve(outcomes).items()},
            refused=refused,
        )
        write(summary, self._folder.path)
        return summary


# --- what can be run ---


async def _refused(provider: Provider, tasks: Sequence[Task], *, network: bool) -> dict[str, str]:
    """Why the provider cannot run a task as it asks, by name; nothing of these is started."""

    async def why(task: Task) -> str | None:
        return unsupported(task) or await provider.refuses(task, network=network)

    reasons = await fan_out(why, tasks, limit=REFUSALS)
    told = zip(tasks, reasons, strict=True)
    return {task.name: reason for task, reason in told if reason is not None}


# --- from configuration to parts ------------------------------------------------------------


def _catalog(config: RunConfig, on_event: OnEvent) -> Catalog:
    source = config.tasks
    catalog = load(source.source, source.include, source.exclude, source.limit)
    for note in catalog.notes:
        on_event(Note(text=note))
    left_out = [f"left out: {problem.message}" for problem in catalog.problems]
    odd = [f"{name}: {'; '.join(warnings)}" for name, warnings in catalog.warnings.items()]
    _tell(left_out, "tasks left out", source.source, on_event)
    _tell(odd, "tasks with warnings", source.source, on_event)
    cut_off = sum(map(asks_for_network, catalog.tasks))
    if cut_off and config.sandbox.network == "none":
        on_event(
            Note(
                text=f"{cut_off} of {len(catalog.tasks)} tasks ask for a network and get none;"
                " for theirs: --set sandbox.network=task"
            )
        )
    if not catalog.tasks:
        raise TaskError(
            f"{source.source}: expected at least one task, found none that is readable and"
            " matches tasks.include and tasks.exclude; see `headrace tasks check`"
        )
    inert = [
        f"{task.name}: read but not acted on: {', '.join(task.inert)}"
        for task in catalog.tasks
        if task.inert
    ]
    _tell(inert, "tasks with fields that are not acted on", source.source, on_event)
    return catalog


def _tell(lines: Sequence[str], what: str, source: str, on_event: OnEvent) -> None:
    """The first of many lines, and where the others are told."""
    for line in lines[:TOLD]:
        on_event(Note(text=line))
    if len(lines) > TOLD:
        on_event(Note(text=f"{len(lines) - TOLD} more {what}: headrace tasks check {source}"))


def policy_of(config: RunConfig, out: Path, tell: Callable[[str], None]) -> Policy:
    """The policy of a run in folder `out`, not opened yet; `tell` hears of long steps. Blocking."""
    recorded = None
    if isinstance(config.policy, ReplayConfig):
        recorded = _recorded(Path(config.policy.run))
    return build(
        config.policy,
        seed=config.seed,
        log_path=out / "logs" / "vllm.log",
        progress=tell,
        recorded=recorded,
    )


def parts_of(config: RunConfig, folder: Path, pool: Pool, policy: Policy) -> Parts:
    """What every episode of a run shares."""
    return Parts(
        provider=pool,
        policy=policy,
        verifier=verifiers.build(config.verifier),
        strict=config.verifier.compat == "strict",
        artifacts=folder / "artifacts",
    )


def label_of(folder: Path) -> str:
    """What the sandboxes of a run are named after."""
    return _NOT_IN_A_LABEL.sub("-", folder.name)


def _recorded(run: Path) -> Callable[[str, int], Sequence[Turn]]:
    """The turns of a stored run by task digest and sample."""
    read_manifest(run)  # refuses what is no run
    turns = {(e.task_digest, e.sample): e.turns for e in latest_episodes(run)}

    def find(task_digest: str, sample: int) -> Sequence[Turn]:
        return turns.get((task_digest, sample), ())

    return find


def _open(
    config: RunConfig, out: Path, tasks: Sequence[Task], policy: Policy, provider: Provider
) -> RunFolder:
    return RunFolder.open(
        out,
        config,
        tasks={task.name: task.digest for task in tasks},
        policy=policy.name,
        policy_version=policy.version,
        provider=provider.name,
    )


def _limits(config: RunConfig, task: Task) -> Limits:
    """The task's limits where it names them, else the run's."""
    ours = config.sandbox
    runs = Limits(
        cpus=ours.cpus,
        memory_mb=ours.memory_mb,
        pids=ours.pids,
        storage_mb=ours.storage_mb,
        max_output_bytes=ours.max_output_bytes,
    )
    return limits_of(task.environment, runs)


def _ordered(config: RunConfig, todo: list[Planned], out: Path) -> list[Planned]:
    """In the order in which they start. Blocking."""
    if config.engine.order == "plan":
        return todo
    seconds = seconds_by_task([out, *map(Path, config.engine.history)])
    groups: dict[str, list[Planned]] = {}
    for planned in todo:
        groups.setdefault(planned.task.digest, []).append(planned)
    return [p for digest in longest_first(list(groups), seconds) for p in groups[digest]]


def _dropped(plan: Sequence[Planned], counted: Counted, enough: int | None) -> int:
    """Episodes of the plan that their groups are complete without."""
    if enough is None:
        return 0
    graded = {digest: counts[0] for digest, counts in counted.graded.items()}
    planned = Counter(p.task.digest for p in plan)
    return sum(
        max(0, n - graded.get(digest, 0))
        for digest, n in planned.items()
        if graded.get(digest, 0) >= enough
    )


def _due(
    config: RunConfig, plan: Sequence[Planned], finished: Collection[str]
) -> tuple[Groups, set[str]]:
    """The groups as earlier sessions left them, and the ids of what is still to be run."""
    groups = _groups(config, plan, finished)
    due = set(owed([p.id for p in plan], finished))
    return groups, due - {p.id for p in plan if groups.complete(p.task.digest)}


def _groups(config: RunConfig, plan: Sequence[Planned], finished: Collection[str]) -> Groups:
    groups = Groups(config.engine.min_group, config.engine.patience)
    graded = Counter(p.task.digest for p in plan if p.id in finished)
    for digest, n in graded.items():
        groups.known(digest, n)
    return groups


def _line(on_event: OnEvent) -> Callable[[str], None]:
    """A progress callback that becomes an event; safe to call from other threads."""
    loop = asyncio.get_running_loop()

    def tell(what: str) -> None:
        loop.call_soon_threadsafe(on_event, Preparing(what=what))

    return tell
