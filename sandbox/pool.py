"""`Pool`: a provider that opens sandboxes ahead of the episodes that will need them.

Rule: what is opened ahead follows from what comes next in the schedule (`expect`), is bounded, and
is handed out once; a sandbox that was used is closed, never reused. What nobody expects any more
is closed. One that fails to open ahead costs nobody a try: who needs it opens one itself.

Opened ahead are sandboxes that are equal but for their episode. Those with an egress rule or a
compose file are an episode's own from the start, and are opened when it comes.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from headrace.aio import run_shielded
from headrace.errors import ContractError, InfrastructureError
from headrace.sandbox.base import Provider, Sandbox, SandboxSpec
from headrace.types import EnvironmentRecipe, Task

WARM = "warm"
"""In place of an episode's id, on labels and leases."""

log = logging.getLogger("headrace.sandbox.pool")


class _Slot:
    """One sandbox that is being opened, is open, or is in use. Its own task opens and closes it."""

    def __init__(self, key: bytes, spec: SandboxSpec) -> None:
        self.key = key
        self.spec = spec
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[Sandbox | None] = loop.create_future()
        """None: it could not be opened."""
        self.unused = asyncio.Event()
        self.closed: asyncio.Future[InfrastructureError | None] = loop.create_future()
        self.task: asyncio.Task[None] | None = None
        self.begun = False
        """Its task runs: only then does a cancelled one still say that it is closed."""

    def discard(self) -> None:
        """Nobody will use it: close it, or stop opening it."""
        self.unused.set()
        if self.task is not None and self.begun and not self.opened.done():
            self.task.cancel()

    async def end(self) -> InfrastructureError | None:
        """Returns when it is closed, whoever is cancelled meanwhile."""
        return await run_shielded(self._wait())

    async def _wait(self) -> InfrastructureError | None:
        return await asyncio.shield(self.closed)


class Pool:
    """See `Provider`. An async context manager inside that of the provider it takes from."""

    def __init__(self, provider: Provider, *, most: int, opening: int = 2) -> None:
        """At most `most` are kept open ahead, and `opening` of them are opened at once."""
        if most < 0 or opening < 1:
            raise ContractError(f"expected 0 or more and 1 or more, found {most} and {opening}")
        self._provider = provider
        self._most = most
        self._opening = asyncio.Semaphore(opening)
        self._ahead: dict[bytes, deque[_Slot]] = {}
        self._images: dict[bytes, str] = {}
        """By recipe: for a run it is made once, whatever changes in its folder meanwhile."""
        self._failing: set[bytes | None] = set()
        """Not opened ahead until one was opened when it was needed."""
        self._group: asyncio.TaskGroup | None = None
        self.name = provider.name
        self.footprint = provider.footprint
        self.hits = 0
        """Sandboxes that were opened before they were asked for, or were on their way."""
        self.misses = 0

    @property
    def warm(self) -> int:
        """Open or being opened, and nobody's."""
        return sum(len(slots) for slots in self._ahead.values())

    @property
    def most(self) -> int:
        return self._most

    @most.setter
    def most(self, most: int) -> None:
        """In force with the next `expect`."""
        self._most = max(0, most)

    async def __aenter__(self) -> "Pool":
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        group, self._group = self._group, None
        for slots in self._ahead.values():
            for slot in slots:
                slot.discard()
        self._ahead.clear()
        if group is not None:
            await group.__aexit__(None, None, None)

    def __repr__(self) -> str:
        return f"<Pool of {self.name} warm={self.warm}/{self._most}>"

    # --- the seam ---

    async def prepare(self, recipe: EnvironmentRecipe) -> str:
        """See `Provider.prepare`. The provider is asked again once a sandbox could not be had."""
        key = msgspec.msgpack.encode(recipe)
        if key not in self._images:
            self._images[key] = await self._provider.prepare(recipe)
        return self._images[key]

    async def refuses(self, task: Task, *, network: bool) -> str | None:
        """See `Provider.refuses`."""
        return await self._provider.refuses(task, network=network)

    async def sweep(self) -> list[str]:
        """See `Provider.sweep`."""
        return await self._provider.sweep()

    @asynccontextmanager
    async def open(self, spec: SandboxSpec) -> AsyncIterator[Sandbox]:
        """See `Provider.open`. Waits for one that is on its way rather than start another."""
        slot = self._take(spec)
        sandbox = None if slot is None else await self._opened(slot)
        if slot is None or sandbox is None:
            self.misses += 1
            try:
                async with self._provider.open(spec) as cold:
                    self._failing.discard(key_of(spec))
                    yield cold
            except InfrastructureError:
                self._forget(spec.image)  # it may have been removed
                raise
            return
        self.hits += 1
        try:
            yield sandbox
        finally:
            slot.unused.set()
            error = await slot.end()
        if error is not None:
            raise error

    # --- ahead ---

    def expect(self, specs: Sequence[SandboxSpec]) -> None:
        """What will be opened next, in order. Opens what is missing, closes what is left over."""
        if self._group is None:
            raise ContractError("a pool is used inside its `async with` block")
        keyed = [(key_of(spec), spec) for spec in specs[: self._most]]
        wanted = Counter(key for key, _ in keyed if key is not None)
        for known, slots in list(self._ahead.items()):
            while len(slots) > wanted[known]:
                slots.pop().discard()
            if not slots:
                del self._ahead[known]
        for key, spec in keyed:
            if key is None or key in self._failing:
                continue
            if len(self._ahead.get(key, ())) < wanted[key]:
                slot = _Slot(key, msgspec.structs.replace(spec, episode=WARM))
                self._ahead.setdefault(key, deque()).append(slot)
                slot.task = self._group.create_task(self._keep(slot))

    def _forget(self, image: str) -> None:
        self._images = {key: name for key, name in self._images.items() if name != image}

    def _take(self, spec: SandboxSpec) -> _Slot | None:
        key = key_of(spec)
        slots = self._ahead.get(key) if key is not None else None
        return slots.popleft() if slots else None

    async def _opened(self, slot: _Slot) -> Sandbox | None:
        try:
            return await asyncio.shield(slot.opened)
        except BaseException:
            slot.discard()  # whoever wanted it was cancelled; it is not put back
            await slot.end()
            raise

    async def _keep(self, slot: _Slot) -> None:
        """Open, wait until it is not used any more, close."""
        error: InfrastructureError | None = None
        slot.begun = True
        try:
            if slot.unused.is_set():
                return
            async with AsyncExitStack() as stack:
                async with self._opening:
                    sandbox = await stack.enter_async_context(self._provider.open(slot.spec))
                slot.opened.set_result(sandbox)
                await slot.unused.wait()
        except InfrastructureError as e:
            if slot.opened.done():
                error = e
            else:
                log.warning("a sandbox could not be opened ahead: %s", e)
                self._forget(slot.spec.image)
                self._failing.add(slot.key)
                self._drop(slot)
        finally:
            if not slot.opened.done():
                slot.opened.set_result(None)
            slot.closed.set_result(error)

    def _drop(self, slot: _Slot) -> None:
        slots = self._ahead.get(slot.key)
        if slots is not None and slot in slots:
            slots.remove(slot)


def key_of(spec: SandboxSpec) -> bytes | None:
    """Equal for sandboxes that can stand in for each other; None for those that cannot."""
    if spec.egress is not None or spec.compose is not None:
        return None
    return msgspec.msgpack.encode(msgspec.structs.replace(spec, episode=""))
